"""Hostile ONNX files."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.hostile.case import Case, generator, good_files, good_model, message, number, reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.hostile.case import Content

    Edit = Callable[[onnx.ModelProto], None]


def edited(edit: Edit) -> bytes:
    """The good model with an edit."""
    model = good_model()
    edit(model)
    return bytes(model.SerializeToString())


def model_case(name: str, edit: Edit, *names: str, call: str = "save", harmless: str = "") -> Case:
    """The good model with an edit, refused for one of these reasons."""
    return Case(name, {"m.onnx": lambda: edited(edit)}, call=call, reasons=reasons(*names), harmless=harmless)


def weight(model: onnx.ModelProto) -> TensorProto:
    """The first weight."""
    return model.graph.initializer[0]


# ---- external data --------------------------------------------------------------------------------------


def external(entries: list[tuple[str, str]], tensor: Callable[[onnx.ModelProto], TensorProto] = weight) -> Edit:
    """Makes a tensor external."""

    def edit(model: onnx.ModelProto) -> None:
        target = tensor(model)
        target.ClearField("raw_data")
        target.data_location = TensorProto.EXTERNAL
        for key, value in entries:
            target.external_data.add(key=key, value=value)

    return edit


BAD_LOCATIONS = {
    "parent": "../w.bin",
    "parent_of_parent": "../../../../../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "double_slash": "//etc/passwd",
    "climbs_out": "a/../../w.bin",
    "climbs_and_returns": "sub/../../sub/w.bin",
    "climbs_to_itself": "sub/../w.bin",
    "hidden_parent": "./../w.bin",
    "ends_in_parent": "sub/..",
    "only_parent": "..",
    "dot": ".",
    "dots_and_slashes": "././.",
    "empty": "",
    "slash": "/",
    "null": "w.bin\0.txt",
    "null_first": "\0",
    "backslash": "..\\w.bin",
    "drive": "C:\\Windows\\win.ini",
    "unc": "\\\\host\\share\\w.bin",
    "proc": "/proc/self/environ",
    "device": "/dev/zero",
    "long": "w" * 5000,
    "long_path": "a/" * 3000 + "w.bin",
    "uri": "file:///etc/passwd",
    "newline": "w\n.bin",
    "percent": "%2e%2e/w.bin",
    "wide_slash": "..\u2215w.bin",
    "tilde": "~/w.bin",
    "variable": "$HOME/w.bin",
}


@generator
def external_locations() -> Iterator[Case]:
    """Places outside the workspace, or none at all."""
    for name, location in BAD_LOCATIONS.items():
        yield Case(
            f"external_location_{name}",
            {"m.onnx": edited(external([("location", location)])), "w.bin": bytes(1728)},
            reasons=reasons("MODEL_EXTERNAL_DATA", "FILE_NOT_FOUND", "MODEL_LIMIT"),
        )


def canary_cases(canary: Path) -> Iterator[Case]:
    """A file beside the data directory, by every path that might lead there."""
    name = f"{canary.parent.name}/{canary.name}"
    locations = [str(canary), f"/{canary}", *("../" * climbs + name for climbs in range(1, 6))]
    locations += [f"/proc/self/root{canary}", f"a/{'../' * 3}{name}"]
    for i, location in enumerate(locations):
        yield Case(
            f"canary_{i}",
            {"m.onnx": edited(external([("location", location)]))},
            reasons=reasons("MODEL_EXTERNAL_DATA"),
        )


POSITIONS = {
    "offset_behind_end": [("offset", "1729")],
    "offset_huge": [("offset", "9223372036854775807")],
    "offset_overflowing": [("offset", "18446744073709551615")],
    "offset_beyond_64_bits": [("offset", "18446744073709551616")],
    "offset_negative": [("offset", "-1")],
    "offset_text": [("offset", "zero")],
    "offset_hex": [("offset", "0x0")],
    "offset_fraction": [("offset", "0.5")],
    "length_behind_end": [("offset", "1"), ("length", "1728")],
    "length_huge": [("length", "9223372036854775807")],
    "length_overflowing": [("offset", "1"), ("length", "18446744073709551615")],
    "length_negative": [("length", "-1728")],
    "length_short": [("length", "1724")],
    "length_zero": [("length", "0")],
    "length_text": [("length", "all")],
    "sum_overflowing": [("offset", "18446744073709551000"), ("length", "1728")],
    "exponent": [("length", "1e3")],
}


@generator
def external_positions() -> Iterator[Case]:
    """Offsets and lengths that lie, overflow or are no numbers."""
    for name, entries in POSITIONS.items():
        yield Case(
            f"external_{name}",
            {"m.onnx": edited(external([("location", "w.bin"), *entries])), "w.bin": bytes(1728)},
            reasons=reasons("MODEL_EXTERNAL_DATA", "TENSOR_INVALID"),
        )


@generator
def external_files() -> Iterator[Case]:
    """Files that are missing, empty, the model itself, or too many."""
    refused = reasons("MODEL_EXTERNAL_DATA", "TENSOR_INVALID", "FILE_NOT_FOUND")

    def case(name: str, edit: Edit, **more: Any) -> Case:
        files: dict[str, Content] = {"m.onnx": lambda: edited(edit)} | more.pop("files", {})
        return Case(f"external_{name}", files, reasons=more.pop("reasons", refused), **more)

    yield case("missing", external([("location", "none.bin")]))
    yield case("no_location", external([("offset", "0")]), files={"w.bin": bytes(1728)})
    yield case("no_entries", external([]))
    yield case("empty_file", external([("location", "w.bin")]), files={"w.bin": b""})
    yield case("the_model_itself", external([("location", "m.onnx")]))
    yield case("wrong_size", external([("location", "w.bin")]), files={"w.bin": bytes(1729)})
    yield case(
        "checksum_attribute",
        external([("location", "w.bin"), ("checksum", "\xff" * 100_000)]),
        files={"w.bin": bytes(1728)},
        harmless="checksums are of no use here: files are stored by SHA-256",
    )
    yield case(
        "overlapping_runs",
        lambda model: (
            external([("location", "w.bin"), ("length", "1728")])(model),
            external([("location", "w.bin"), ("offset", "8"), ("length", "64")], lambda m: m.graph.initializer[1])(
                model
            ),
        )[-1],
        files={"w.bin": np.ones(432, np.float32).tobytes()},
        harmless="tensors may share bytes of a file: nothing is written there",
    )

    def both(model: onnx.ModelProto) -> None:
        data = weight(model).raw_data
        external([("location", "w.bin")])(model)
        weight(model).raw_data = data

    yield case("and_inline", both, files={"w.bin": bytes(1728)})

    def repeated(model: onnx.ModelProto) -> None:
        external([("location", "w.bin"), ("location", "../../etc/passwd")])(model)

    yield case("location_twice", repeated, files={"w.bin": bytes(1728)})

    def many(model: onnx.ModelProto) -> None:
        for i in range(3000):
            tensor = model.graph.initializer.add(name=f"t{i}", data_type=TensorProto.FLOAT, dims=[1])
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=f"{'n' * 200}{i}.bin")

    yield case("thousands_missing", many)

    def in_subgraph(model: onnx.ModelProto) -> None:
        inner = helper.make_graph([], "g", [], [], [helper.make_tensor("i", TensorProto.FLOAT, [1], [1.0])])
        external([("location", "../../../etc/passwd")], lambda _: inner.initializer[0])(model)
        node = model.graph.node.add(op_type="If", name="if", input=["x"], output=["z"])
        node.attribute.append(helper.make_attribute("then_branch", inner))

    yield case("in_subgraph", in_subgraph)

    def in_attribute(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
        external([("location", "/etc/shadow")], lambda _: tensor)(model)
        tensor.ClearField("float_data")
        model.graph.node.add(op_type="Constant", name="k", output=["k"]).attribute.append(
            helper.make_attribute("value", tensor)
        )

    yield case("in_constant", in_attribute)

    def in_function(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
        external([("location", "../x")], lambda _: tensor)(model)
        tensor.ClearField("float_data")
        constant = helper.make_node("Constant", [], ["k"])
        constant.attribute.append(helper.make_attribute("value", tensor))
        model.functions.append(helper.make_function("local", "F", [], ["k"], [constant], [helper.make_opsetid("", 13)]))

    yield case("in_function", in_function)


# ---- tensors --------------------------------------------------------------------------------------


@generator
def dims() -> Iterator[Case]:
    """Dims that are negative, overflow, or are not those of the data."""
    values: dict[str, list[int]] = {
        "negative": [-16, 3, 3, 3],
        "two_negative": [-16, -3, 3, 3],
        "smallest": [-(2**63), 1],
        "zero": [0, 3, 3, 3],
        "product_wraps_to_right_size": [16, 3, 3, 3, 2**32, 2**32],
        "product_beyond_64_bits": [2**62, 4],
        "largest": [2**63 - 1, 2**63 - 1],
        "zero_and_overflow": [2**62, 2**62, 0],
        "scalar": [],
        "a_hundred": [1] * 100,
        "a_million": [1] * 1_000_000,
        "too_few": [16, 3, 3, 4],
        "billions": [16, 3, 3_000_000, 3_000],
        "rank_two": [16, 27],
        "other_channels": [8, 6, 3, 3],
    }
    for name, dim in values.items():

        def edit(model: onnx.ModelProto, dim: list[int] = dim) -> None:
            del weight(model).dims[:]
            weight(model).dims.extend(dim)

        saved = name in {"rank_two", "other_channels"}
        yield model_case(
            f"dims_{name}",
            edit,
            harmless="saved with a warning: ONNX Runtime loads neither this nor that" if saved else "",
        )


@generator
def data_fields() -> Iterator[Case]:
    """Data of the wrong length, in the wrong field, of the wrong type."""

    def raw(size: int) -> Edit:
        def edit(model: onnx.ModelProto) -> None:
            weight(model).raw_data = bytes(size)

        return edit

    for size in (0, 1, 1727, 1729, 100_000):
        yield model_case(f"raw_data_of_{size}", raw(size), "TENSOR_INVALID")

    def no_data(model: onnx.ModelProto) -> None:
        weight(model).ClearField("raw_data")

    yield model_case("no_data", no_data, "TENSOR_INVALID")
    for field, value in {
        "float_data": 1.0,
        "int32_data": 1,
        "int64_data": 1,
        "double_data": 1.0,
        "uint64_data": 1,
        "string_data": b"a",
    }.items():

        def one_field(model: onnx.ModelProto, field: str = field, value: Any = value) -> None:
            weight(model).ClearField("raw_data")
            getattr(weight(model), field).extend([value] * (432 if field != "float_data" else 431))

        def both_fields(model: onnx.ModelProto, field: str = field, value: Any = value) -> None:
            getattr(weight(model), field).extend([value] * 432)

        yield model_case(f"data_in_{field}", one_field, "TENSOR_INVALID")
        yield model_case(f"raw_data_and_{field}", both_fields, "TENSOR_INVALID")
    for data_type in (
        0,
        25,
        99,
        1 << 30,
        -1,
        TensorProto.STRING,
        TensorProto.COMPLEX64,
        TensorProto.INT8,
        TensorProto.BOOL,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.UINT4,
        TensorProto.DOUBLE,
    ):

        def typed(model: onnx.ModelProto, data_type: int = data_type) -> None:
            content = weight(model).SerializeToString()
            weight(model).ParseFromString(content + number(2, data_type))

        yield model_case(f"data_type_{data_type}", typed)

    def strings(model: onnx.ModelProto) -> None:
        weight(model).ClearField("raw_data")
        weight(model).data_type = TensorProto.STRING
        weight(model).string_data.extend([b"1"] * 432)

    yield model_case("weights_of_strings", strings)

    def filled_with(value: str) -> Callable[[onnx.ModelProto], None]:
        def fill(model: onnx.ModelProto) -> None:
            weight(model).raw_data = np.full(432, float(value), np.float32).tobytes()

        return fill

    for value in ("nan", "inf", "-inf"):
        yield model_case(f"weights_of_{value}", filled_with(value), "TENSOR_INVALID", "CALIBRATION_FAILED")

    def sparse(model: onnx.ModelProto) -> None:
        dense = weight(model)
        sparse_weight = model.graph.sparse_initializer.add(dims=[16, 3, 3, 3])
        sparse_weight.values.CopyFrom(helper.make_tensor(dense.name, TensorProto.FLOAT, [2], [1.0, 2.0]))
        sparse_weight.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [2], [0, 2**62]))
        del model.graph.initializer[0]

    yield model_case("sparse_weight_with_index_outside", sparse)

    def sparse_lies(model: onnx.ModelProto) -> None:
        sparse(model)
        model.graph.sparse_initializer[0].dims[:] = [2**62, 2**62]
        model.graph.sparse_initializer[0].values.dims[:] = [2**40]

    yield model_case("sparse_weight_with_dims_that_lie", sparse_lies, "TENSOR_INVALID", "MODEL_LIMIT")

    def segment(model: onnx.ModelProto) -> None:
        weight(model).segment.begin = 2**62
        weight(model).segment.end = -1

    yield model_case("segment", segment, harmless="segments are not used, by ONNX Runtime neither")


# ---- graphs --------------------------------------------------------------------------------------


def nested(depth: int, op_type: str = "If") -> onnx.GraphProto:
    """Graphs in graphs."""
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(depth):
        node = helper.make_node(op_type, ["x"], [])
        node.attribute.append(helper.make_attribute("body" if op_type == "Loop" else "then_branch", graph))
        graph = helper.make_graph([node], "level", [], [])
    return graph


@generator
def graphs() -> Iterator[Case]:
    """Graphs that are none."""

    def cycle(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "r"

    yield model_case("cycle_of_two", cycle, "GRAPH_INVALID")

    def self_loop(model: onnx.ModelProto) -> None:
        model.graph.node[1].input[0] = "r"

    yield model_case("node_that_feeds_itself", self_loop, "GRAPH_INVALID")

    def long_cycle(model: onnx.ModelProto) -> None:
        for i in range(50_000):
            model.graph.node.add(op_type="Relu", name=f"n{i}", input=[f"v{i}"], output=[f"v{(i + 1) % 50_000}"])

    yield model_case("cycle_of_50000", long_cycle, "GRAPH_INVALID")

    def dangling(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "nowhere"

    yield model_case("dangling_input", dangling, "GRAPH_INVALID")

    def no_output(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "nowhere"

    yield model_case("output_of_nothing", no_output, "GRAPH_INVALID")

    def duplicate_nodes(model: onnx.ModelProto) -> None:
        model.graph.node[4].name = "conv1"

    yield model_case("two_nodes_of_one_name", duplicate_nodes, "GRAPH_INVALID", "RECORD_UNKNOWN_LAYER")

    def duplicate_values(model: onnx.ModelProto) -> None:
        model.graph.node[4].output[0] = "c"
        model.graph.output[0].name = "c"

    yield model_case("two_values_of_one_name", duplicate_values)

    def duplicate_initializers(model: onnx.ModelProto) -> None:
        model.graph.initializer.add().CopyFrom(weight(model))

    yield model_case("two_initializers_of_one_name", duplicate_initializers, harmless="the last one counts")

    def shadowing(model: onnx.ModelProto) -> None:
        model.graph.node[1].output[0] = "conv1.weight"
        model.graph.node[2].input[0] = "conv1.weight"

    yield model_case("node_output_named_as_a_weight", shadowing)

    def no_inputs(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            del node.input[:]

    yield model_case("nodes_without_inputs", no_inputs)

    def no_outputs(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            del node.output[:]

    yield model_case("nodes_without_outputs", no_outputs)

    def empty_names(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [""] * len(node.input)
            node.output[:] = [""] * len(node.output)

    yield model_case("values_without_names", empty_names)
    yield model_case("nothing_in_the_graph", lambda model: model.graph.Clear())
    yield model_case("no_graph", lambda model: model.ClearField("graph"), "MODEL_UNREADABLE")

    def holding(graph: onnx.GraphProto) -> Callable[[onnx.ModelProto], None]:
        return lambda model: model.graph.node.append(graph.node[0])

    for depth in (33, 60):
        yield model_case(f"nested_{depth}_if", holding(nested(depth)), "MODEL_LIMIT")
    yield model_case("nested_40_loop", holding(nested(40, "Loop")), "MODEL_LIMIT")

    def deep(*fields: int) -> bytes:
        content = b""
        for _ in range(5_000):
            for field in fields:
                content = message(field, content)
        return content

    yield Case(
        "nested_5000_graphs",
        {"m.onnx": lambda: message(7, deep(6, 5, 1))},  # graph.node.attribute.g
        reasons=reasons("MODEL_LIMIT"),
    )
    yield Case(
        "nested_5000_types",
        {"m.onnx": lambda: message(7, message(11, message(2, deep(1, 4))))},  # sequence_type.elem_type
        reasons=reasons("MODEL_LIMIT"),
    )

    def captured(model: onnx.ModelProto) -> None:
        inner = helper.make_graph([helper.make_node("Relu", ["nowhere"], ["a"])], "g", [], [])
        model.graph.node.add(op_type="If", name="if", input=["x"], output=["z"]).attribute.append(
            helper.make_attribute("then_branch", inner)
        )

    yield model_case("subgraph_with_dangling_input", captured, "GRAPH_INVALID")


@generator
def functions() -> Iterator[Case]:
    """Functions that call themselves, or stand for more nodes than there are atoms."""

    def function(model: onnx.ModelProto, name: str, calls: list[str]) -> None:
        nodes = [
            helper.make_node(call, ["a"], [f"v{i}"], domain="local" if call != "Relu" else "")
            for i, call in enumerate(calls)
        ]
        nodes.append(helper.make_node("Relu", ["v0"], ["b"]))
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], nodes, opsets))

    def call(model: onnx.ModelProto, name: str) -> None:
        model.graph.node[1].op_type = name
        model.graph.node[1].domain = "local"
        model.opset_import.append(helper.make_opsetid("local", 1))

    def recursive(model: onnx.ModelProto) -> None:
        function(model, "F", ["F"])
        call(model, "F")

    def mutual(model: onnx.ModelProto) -> None:
        function(model, "F", ["G"])
        function(model, "G", ["H"])
        function(model, "H", ["F"])
        call(model, "F")

    def uncalled(model: onnx.ModelProto) -> None:
        function(model, "F", ["F"])

    def laughs(model: onnx.ModelProto) -> None:
        for i in range(30):
            function(model, f"F{i}", [f"F{i + 1}"] * 10)
        function(model, "F30", ["Relu"])
        call(model, "F0")

    def chain(model: onnx.ModelProto) -> None:
        for i in range(5000):
            function(model, f"F{i}", [f"F{i + 1}"])
        function(model, "F5000", ["Relu"])
        call(model, "F0")

    def in_subgraph(model: onnx.ModelProto) -> None:
        inner = helper.make_graph([helper.make_node("F", ["a"], ["b"], domain="local")], "g", [], [])
        node = helper.make_node("If", ["a"], ["v0"])
        node.attribute.append(helper.make_attribute("then_branch", inner))
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", "F", ["a"], ["v0"], [node], opsets))
        call(model, "F")

    for edit in (recursive, mutual, uncalled, in_subgraph):
        yield model_case(f"function_{edit.__name__}", edit, "GRAPH_INVALID")
        yield model_case(f"function_{edit.__name__}_pruned", edit, "GRAPH_INVALID", call="prune")
    yield model_case("function_billion_laughs", laughs, "MODEL_LIMIT")
    yield model_case("function_billion_laughs_pruned", laughs, "MODEL_LIMIT", call="prune")
    yield model_case("function_long_chain", chain, "MODEL_LIMIT")


@generator
def names() -> Iterator[Case]:
    """Names of a megabyte, of bytes that are no text, of control characters."""
    long = "n" * (1 << 20)

    def set_node(model: onnx.ModelProto, text: str) -> None:
        model.graph.node[1].name = text

    def set_op(model: onnx.ModelProto, text: str) -> None:
        model.graph.node[1].op_type = text

    def set_value(model: onnx.ModelProto, text: str) -> None:
        model.graph.node[1].output[0] = text
        model.graph.node[2].input[0] = text

    def set_tensor(model: onnx.ModelProto, text: str) -> None:
        weight(model).name = text
        model.graph.node[0].input[1] = text

    def set_domain(model: onnx.ModelProto, text: str) -> None:
        model.graph.node[1].domain = text

    def set_input(model: onnx.ModelProto, text: str) -> None:
        model.graph.input[0].name = text
        model.graph.node[0].input[0] = text

    def naming(edit: Callable[[onnx.ModelProto, str], None], text: str) -> Callable[[onnx.ModelProto], None]:
        return lambda model: edit(model, text)

    def bad_name(edit: Callable[[onnx.ModelProto, str], None]) -> Callable[[onnx.ModelProto], None]:
        def spoil(model: onnx.ModelProto) -> None:
            edit(model, "BADNAME")
            weight(model).raw_data = b"1"

        return spoil

    for edit in (set_node, set_op, set_value, set_tensor, set_domain, set_input):
        place = edit.__name__[4:]
        yield model_case(f"megabyte_name_{place}", naming(edit, long), "MODEL_LIMIT")
        # The same name, as bytes that are no UTF-8, in a file with something wrong, so that the error has to quote it.
        content = edited(bad_name(edit))
        yield Case(
            f"invalid_utf8_{place}",
            {"m.onnx": content.replace(b"BADNAME", b"\xff\xfe\xc0\x80\xed\xa0\x80")},
            reasons=reasons("TENSOR_INVALID"),
        )
    dangling = edited(lambda model: model.graph.node[0].input.__setitem__(0, "BADNAME"))
    for name, text in {
        "utf8": b"\xff\xfe\xfd\xfc\xfb\xfa\xf9",
        "controls": b"\x00\x1b[2J\x07\r",
        "format": b"%s%n%x%",
        "html": b"<b>&</b",
    }.items():
        yield Case(
            f"dangling_input_named_{name}",
            {"m.onnx": dangling.replace(b"BADNAME", text.ljust(7, b"!"))},
            reasons=reasons("GRAPH_INVALID"),
        )
    yield Case(
        "dangling_input_of_300000_bytes",
        {"m.onnx": lambda: edited(lambda model: model.graph.node[0].input.__setitem__(0, "n" * 300_000))},
        reasons=reasons("MODEL_LIMIT"),
    )


@generator
def opsets() -> Iterator[Case]:
    """Opsets that nobody knows."""
    for version in (-(2**63), -1, 0, 1, 9, 10):

        def edit(model: onnx.ModelProto, version: int = version) -> None:
            model.opset_import[0].version = version

        yield model_case(f"opset_{version}", edit)
    for version in (1000, 2**31, 2**63 - 1):

        def newer(model: onnx.ModelProto, version: int = version) -> None:
            model.opset_import[0].version = version

        yield model_case(f"opset_{version}", newer, call="calibrate_npz")
    yield model_case(
        "opset_of_a_thousand_domains",
        lambda model: model.opset_import.extend(helper.make_opsetid(f"d{i}", 1) for i in range(1000)),
        harmless="domains that no node is of mean nothing",
    )

    def none(model: onnx.ModelProto) -> None:
        del model.opset_import[:]

    yield model_case("opset_none", none, harmless="saved with a warning: ONNX Runtime loads neither this nor that")

    def unknown_operator(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type = "NoSuchOperator"

    yield model_case("operator_unknown", unknown_operator, call="calibrate_npz")
    for version in (-1, 2**62):

        def ir(model: onnx.ModelProto, version: int = version) -> None:
            model.ir_version = version

        yield model_case(f"ir_version_{version}", ir, call="calibrate_npz", harmless="ONNX Runtime takes old ones")


@generator
def bytes_() -> Iterator[Case]:
    """Bytes that are no ONNX."""
    unreadable = reasons("MODEL_UNREADABLE", "MODEL_LIMIT")

    def case(name: str, content: Content, allowed: frozenset[str] = unreadable) -> Case:
        return Case(f"bytes_{name}", {"m.onnx": content}, reasons=allowed)

    yield case("none", b"")
    yield case("zeros", bytes(100_000))
    yield case("ones", b"\xff" * 100_000)
    yield case("one_byte", b"\x08")
    for seed in range(10):
        yield case(f"random_{seed}", random.Random(seed).randbytes(10_000))
    good = good_model().SerializeToString()
    for part in range(1, 16):
        yield case(f"cut_at_{part}_16th", good[: len(good) * part // 16], frozenset())
    yield case("appended", good + b"\x00")
    for name, text in {
        "text": b"hello",
        "html": b"<!DOCTYPE html>",
        "json": b'{"graph": {}}',
        "zip": good_files()["d.npz"],
        "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
        "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
    }.items():
        yield case(f"of_{name}", text)
    # Lengths and numbers that lie.
    yield case("length_of_4_gib", message(7, b"", 1 << 32))
    yield case("length_of_16_eib", message(7, b"", (1 << 64) - 1))
    yield case("truncated_varint", b"\x3a\xff\xff\xff")
    yield case("varint_of_11_bytes", b"\x3a" + b"\xff" * 10 + b"\x01")
    yield case("field_number_0", b"\x02\x00" + good)
    yield case("group", b"\x0b\x0c" + good)
    yield case("billions_of_nodes_claimed", message(7, message(1, b"", 5_000_000_000)))
    yield case("packed_dims_claimed", message(7, message(5, message(1, b"\x01", 1 << 40))))
    yield case("raw_data_claimed", message(7, message(5, number(1, 1) + number(2, 1) + message(9, b"abcd", 1 << 50))))
    yield case("tensor_without_end", message(7, message(5, message(9, b"", 100))))
    yield case("a_million_empty_graphs", lambda: message(7, b"") * 1_000_000, frozenset())
    yield case("millions_of_empty_nodes", lambda: message(7, message(1, b"") * 2_500_000))
    yield case("millions_of_annotations", lambda: message(7, message(14, b"") * 9_000_000))
    yield case("millions_of_attributes", lambda: message(7, message(1, message(5, b"") * 2_000_000)))
    yield case("millions_of_inputs", lambda: message(7, message(1, message(1, b"") * 2_000_000)))
    yield case("megabytes_of_unknown_fields", lambda: message(7, message(100, bytes(1 << 20)) * 3), frozenset())
    yield case(
        "packed_varints_cut",
        message(7, message(5, number(1, 3) + number(2, 6) + message(5, b"\x01\x02\xff"))),
        reasons("TENSOR_INVALID"),
    )


@generator
def sizes() -> Iterator[Case]:
    """A great many of small things."""

    def chain(count: int, op_type: str = "Relu") -> Edit:
        def edit(model: onnx.ModelProto) -> None:
            model.graph.node[1].output[0] = "v0"
            for i in range(count):
                model.graph.node.add(op_type=op_type, name=f"n{i}", input=[f"v{i}"], output=[f"v{i + 1}"])
            model.graph.node[2].input[0] = f"v{count}"
            # Something that is wrong for sure, found when all of it has been read.
            model.graph.output[0].name = "nowhere"

        return edit

    yield model_case("chain_of_200000_nodes", chain(200_000), "GRAPH_INVALID")

    def star(model: onnx.ModelProto) -> None:
        for i in range(200_000):
            model.graph.node.add(op_type="Relu", input=["x"], output=[f"v{i}"])
        model.graph.output[0].name = "nowhere"

    yield model_case("value_with_200000_uses", star, "GRAPH_INVALID")

    def same_names(model: onnx.ModelProto) -> None:
        for i in range(100_000):
            model.graph.node.add(op_type="Relu", name="same", input=["x"], output=[f"v{i}"])

    yield model_case("name_of_100000_nodes", same_names, "GRAPH_INVALID")

    def tensors(model: onnx.ModelProto) -> None:
        for i in range(200_000):
            model.graph.initializer.add(name=f"t{i}", data_type=1, dims=[1], raw_data=b"1234")
        model.graph.output[0].name = "nowhere"

    yield model_case("initializers_200000", tensors, "GRAPH_INVALID")

    def scopes(model: onnx.ModelProto) -> None:
        # Every inner graph sees every name of the outer one: a copy of them for each would be 10^10 steps.
        inner = helper.make_graph([], "inner", [], [])
        outer = onnx.GraphProto(name="outer")
        for i in range(100_000):
            node = outer.node.add(op_type="If", output=[f"o{i}"])
            if i % 2:
                node.attribute.append(helper.make_attribute("then_branch", inner))
        model.graph.node.add(op_type="If", name="if", input=["x"], output=["z"]).attribute.append(
            helper.make_attribute("then_branch", outer)
        )
        model.graph.output[0].name = "nowhere"

    yield model_case("subgraph_with_50000_subgraphs", scopes, "GRAPH_INVALID")

    def attributes(model: onnx.ModelProto) -> None:
        for i in range(5000):
            model.graph.node[0].attribute.append(helper.make_attribute(f"a{i}", 1))

    yield model_case("attributes_5000_of_one_node", attributes, "MODEL_LIMIT")

    def shapes(model: onnx.ModelProto) -> None:
        for _ in range(200_000):
            model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2**62)

    yield model_case("input_of_200000_dims", shapes, call="calibrate_npz")


@generator
def attribute_values() -> Iterator[Case]:
    """Attributes that no operator can have, for ONNX Runtime and for shape inference."""
    values: dict[str, tuple[str, Any]] = {
        "group_0": ("group", 0),
        "group_negative": ("group", -1),
        "group_huge": ("group", 2**62),
        "strides_0": ("strides", [0, 0]),
        "strides_negative": ("strides", [-1, -1]),
        "strides_huge": ("strides", [2**62, 2**62]),
        "dilations_0": ("dilations", [0, 0]),
        "dilations_huge": ("dilations", [2**62, 2**62]),
        "pads_huge": ("pads", [2**62] * 4),
        "pads_negative": ("pads", [-(2**62)] * 4),
        "pads_too_few": ("pads", [1]),
        "kernel_shape_huge": ("kernel_shape", [2**62, 2**62]),
        "kernel_shape_0": ("kernel_shape", [0, 0]),
        "kernel_shape_empty": ("kernel_shape", []),
        "kernel_shape_of_1000": ("kernel_shape", [3] * 1000),
        "kernel_shape_a_text": ("kernel_shape", "three"),
        "auto_pad_unknown": ("auto_pad", "SOMEHOW"),
    }
    for name, (attribute, value) in values.items():

        def edit(model: onnx.ModelProto, attribute: str = attribute, value: Any = value) -> None:
            node = model.graph.node[0]
            kept = [a for a in node.attribute if a.name != attribute]
            del node.attribute[:]
            node.attribute.extend(kept)
            if value == []:
                node.attribute.add(name=attribute, type=onnx.AttributeProto.INTS)
            else:
                node.attribute.append(helper.make_attribute(attribute, value))

        fits = "a step beyond the input leaves one window" if name == "strides_huge" else ""
        yield model_case(f"conv_{name}", edit, call="calibrate_npz", harmless=fits)
        if name in {"group_0", "group_huge", "strides_0", "pads_huge", "kernel_shape_0", "dilations_huge"}:
            yield model_case(
                f"conv_{name}_pruned", edit, call="prune", harmless="pruning cuts channels whatever the window"
            )

    def reshape(target: list[int]) -> Edit:
        def edit(model: onnx.ModelProto) -> None:
            model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [len(target)], target))
            model.graph.node[3].op_type = "Reshape"
            model.graph.node[3].input.append("shape")

        return edit

    yield model_case("reshape_to_huge", reshape([2**40, 2**40]), call="calibrate_npz")
    yield model_case("reshape_to_negative", reshape([-5, 16]), call="calibrate_npz")
    yield model_case("reshape_to_two_unknown", reshape([-1, -1]), call="calibrate_npz")

    def expand(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [4], [2**20, 16, 2**20, 2**20]))
        model.graph.node[1].op_type = "Expand"
        model.graph.node[1].input.append("shape")

    yield model_case("expand_to_2_to_the_64", expand, call="calibrate_npz")

    def tile(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("reps", TensorProto.INT64, [4], [1, 1, 2**31, 2**31]))
        model.graph.node[1].op_type = "Tile"
        model.graph.node[1].input.append("reps")

    yield model_case("tile_to_2_to_the_62", tile, call="calibrate_npz")

    def endless(model: onnx.ModelProto) -> None:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["cond_in"], ["cond_out"]),
                helper.make_node("Identity", ["s_in"], ["s_out"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
                helper.make_tensor_value_info("s_in", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
                helper.make_tensor_value_info("s_out", TensorProto.FLOAT, None),
            ],
        )
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        loop = helper.make_node("Loop", ["", "yes", "c"], ["r"], name="endless", body=body)
        model.graph.node[1].CopyFrom(loop)

    yield model_case("loop_without_end", endless, "OPERATION_DEADLINE", "RESOURCE_LIMIT", call="calibrate_briefly")
