"""The walk over a model's bytes against models built with onnx."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from modelpress.external_data import external_files
from onnx import TensorProto, helper, numpy_helper


def _tensor(name: str, location: str | None) -> Any:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), name)
    if location is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
    return tensor


def _write(path: Path, **graph: Any) -> Path:
    model = helper.make_model(helper.make_graph(graph.pop("nodes", []), "g", [], [], **graph))
    path.write_bytes(model.SerializeToString())
    return path


def test_every_place_of_a_tensor(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=_tensor("", "in_subgraph"))], "then", [], []
    )
    sparse = helper.make_sparse_tensor(_tensor("s", "sparse/values"), _tensor("i", "sparse/indices"), [4])
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Constant", [], ["k"], value=_tensor("", "in_constant")),
                helper.make_node("If", ["x"], ["y"], then_branch=inner),
            ],
            "g",
            [],
            [],
            initializer=[_tensor("a", "a.bin"), _tensor("b", None), _tensor("c", "a.bin")],
            sparse_initializer=[sparse],
        )
    )
    body = [helper.make_node("Constant", [], ["o"], value=_tensor("", "in_function"))]
    model.functions.append(helper.make_function("d", "f", [], ["o"], body, []))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    expected = {"a.bin", "in_constant", "in_subgraph", "sparse/values", "sparse/indices", "in_function"}
    assert sorted(external_files(path)) == sorted(expected)


def test_stale_location_of_an_inline_tensor_is_ignored(tmp_path: Path) -> None:
    tensor = _tensor("a", None)
    tensor.external_data.add(key="location", value="gone")
    assert external_files(_write(tmp_path / "m.onnx", initializer=[tensor])) == []


@pytest.mark.parametrize("location", ["/etc/passwd", "../x", "a/../../x", "", "a\\b"])
def test_location_outside_the_folder(tmp_path: Path, location: str) -> None:
    with pytest.raises(ValueError, match="does not stay"):
        external_files(_write(tmp_path / "m.onnx", initializer=[_tensor("a", location)]))


def test_any_cut_and_any_flip_end_well(tmp_path: Path) -> None:
    """No byte string makes the walk fail in another way than a wrong location."""
    whole = _write(tmp_path / "m.onnx", initializer=[_tensor("a", "a.bin")], nodes=[onnx.NodeProto(name="n")])
    data = whole.read_bytes()
    path = tmp_path / "damaged.onnx"
    damaged = [data[:length] for length in range(len(data))]
    damaged += [
        data[:i] + bytes([data[i] ^ mask]) + data[i + 1 :] for i in range(len(data)) for mask in (1, 0x80, 0xFF)
    ]
    for content in damaged:
        path.write_bytes(content)
        try:
            external_files(path)
        except ValueError as error:
            assert "does not stay" in str(error)  # noqa: PT017  not every damage shows
