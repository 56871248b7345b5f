"""Hostile text files: records, simple configurations, JSON configurations, module manifests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.hostile.case import (
    GOOD_RECORD,
    Case,
    generator,
    good_config,
    good_manifest,
    layer_config,
    reasons,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hostile.case import Content

RECORD = reasons(
    "RECORD_SYNTAX",
    "RECORD_EMPTY",
    "RECORD_INCOMPLETE",
    "RECORD_UNKNOWN_LAYER",
    "RECORD_NOT_QUANTIZABLE",
    "RECORD_VALUE",
    "RECORD_LENGTH",
    "RECORD_UNEXPECTED",
    "BIAS_OVERFLOW",
)
CONFIG = reasons("CONFIG_SYNTAX", "CONFIG_TYPE", "CONFIG_VALUE", "CONFIG_UNKNOWN_LAYER", "CONFIG_EMPTY")


def record_entry(value: str, key: str = "conv1") -> bytes:
    """A record of one entry."""
    return f'record {{ key: "{key}" value {{ {value} }} }}\n'.encode()


def as_content(content: str | dict[str, Any] | Content) -> Content:
    """A dictionary (as JSON) or a text as the content of a file."""
    if isinstance(content, dict):
        return json.dumps(content).encode()
    return content.encode() if isinstance(content, str) else content


@generator
def records() -> Iterator[Case]:
    """Record files."""

    def case(name: str, content: Content, allowed: frozenset[str] = RECORD, harmless: str = "") -> Case:
        return Case(f"record_{name}", {"r.txt": content}, reasons=allowed, harmless=harmless)

    good = GOOD_RECORD.encode()
    syntax = reasons("RECORD_SYNTAX")
    yield case("empty", b"", reasons("RECORD_EMPTY"))
    yield case("deep", b"record {" * 100_000, syntax)
    yield case("deep_other_braces", b"record <" * 100_000, syntax)
    yield case("deep_lists", b"record: [" * 100_000, syntax)
    yield case("deep_unknown", b"a {" * 100_000, syntax)
    yield case("extension", b"[a.b.c] { d: 1 }", syntax)
    yield case("any", b"[type.googleapis.com/google.protobuf.Any] { }", syntax)
    yield case("unfinished_text", b'record { key: "conv1', syntax)
    yield case("unfinished", good[:-4], syntax)
    yield case("closed_twice", good + b"}", syntax)
    yield case("twice_an_entry_other_values", good + record_entry("scale_d: nan offset_d: 0 scale_w: 1 offset_w: 0"))
    for name, number in {
        "nan": "nan",
        "inf": "inf",
        "minus_inf": "-inf",
        "1e999": "1e999",
        "minus_1e999": "-1e999",
        "0": "0",
        "minus_1": "-1",
        "1e_999": "1e-999",
        "huge_digits": "1" * 100_000,
        "many_zeros": "0." + "0" * 100_000 + "1",
    }.items():
        yield case(f"scale_d_{name}", record_entry(f"scale_d: {number} offset_d: 0 scale_w: 0.1 offset_w: 0"))
        yield case(f"scale_w_{name}", record_entry(f"scale_d: 0.1 offset_d: 0 scale_w: {number} offset_w: 0"))
    for name, number in {
        "128": "128",
        "minus_129": "-129",
        "int32_max": "2147483647",
        "beyond_int32": "2147483648",
        "beyond_int64": "9" * 30,
        "float": "1.5",
        "text": '"1"',
        "word": "many",
        "hex_huge": "0xffffffffffffffff",
    }.items():
        yield case(f"offset_d_{name}", record_entry(f"scale_d: 0.1 offset_d: {number} scale_w: 0.1 offset_w: 0"))
    yield case("offset_w_not_0", record_entry("scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 5"))
    yield case(
        "shift_bit_huge", record_entry("scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0 shift_bit: 4294967295")
    )

    def scales(number: int) -> Callable[[], bytes]:
        return lambda: record_entry(f"scale_d: 0.1 offset_d: 0 {'scale_w: 0.1 ' * number} offset_w: 0")

    for name, count in {"million": 1_000_000, "five": 5}.items():
        yield case(f"scale_w_{name}_times", scales(count), reasons("RECORD_LENGTH"))
    yield case(
        "million_entries",
        lambda: b"".join(
            b'record { key: "l%d" value { scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 } }\n' % i
            for i in range(1_000_000)
        ),
        reasons("RECORD_UNKNOWN_LAYER"),
    )
    yield case("millions_of_empty_entries", lambda: b"record:[" + b"{}," * 4_500_000 + b"{}]", reasons("RECORD_SYNTAX"))
    yield case(
        "million_equal_entries",
        lambda: (
            good
            + record_entry("scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0") * 200_000
            + b'record { key: "none" value { scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 } }'
        ),
    )
    yield case("crlf", good.replace(b"\n", b"\r\n"), harmless="white space is white space")
    yield case("bom", b"\xef\xbb\xbf" + good, harmless="some editors write it")
    yield case("bom_twice", b"\xef\xbb\xbf" * 2 + good, syntax)
    yield case("null", good + b"\0", syntax)
    yield case("null_in_name", record_entry("scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0", "con\\000v1"))
    yield case("utf16", good.decode().encode("utf-16"), syntax)
    yield case("utf16_without_bom", good.decode().encode("utf-16-be"), syntax)
    yield case("utf32", good.decode().encode("utf-32"), syntax)
    yield case("latin1", good.replace(b"conv1", b"conv\xe9"), syntax)
    yield case("overlong", good.replace(b"conv1", b"conv\xc0\xb1"), syntax)
    yield case("surrogate", good.replace(b"conv1", b"conv\xed\xa0\x80"), syntax)
    yield case("escapes_no_utf8", good.replace(b"conv1", b"conv\\377"), syntax)
    yield case("escape_unknown", good.replace(b"conv1", b"conv\\q"), syntax)
    yield case("escape_beyond_unicode", good.replace(b"conv1", b"\\U0FFFFFFF"), syntax)
    yield case("binary", bytes(range(256)) * 10, syntax)
    yield case(
        "key_of_a_megabyte",
        record_entry("scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0", "k" * (1 << 20)),
        reasons("RECORD_UNKNOWN_LAYER"),
    )
    yield case("key_empty", record_entry("scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0", ""))
    yield case(
        "key_climbs",
        record_entry("scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0", "../../etc/passwd"),
        reasons("RECORD_UNKNOWN_LAYER"),
    )
    yield case("key_missing", b"record { value { scale_d: 1 } }", reasons("RECORD_INCOMPLETE"))
    yield case("value_missing", b'record { key: "conv1" }', harmless="an entry without factors quantizes nothing")
    yield case("type_unknown", record_entry('scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 dst_type: "INT7"'))
    yield case(
        "types_of_both", record_entry('scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 wts_type: "INT4" act_type: "%s"')
    )
    yield case(
        "balance_of_zero",
        record_entry("scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 " + "tensor_balance_factor: 0 " * 3),
    )
    yield case(
        "balance_nan",
        record_entry("scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 " + "tensor_balance_factor: nan " * 3),
    )
    yield case("comment_without_end", b"#" + b"x" * 1_000_000, reasons("RECORD_EMPTY"))
    yield case("strings_joined", lambda: b"record { key: " + b'"c" ' * 200_000 + b"}")


PRUNED = (
    'prune_record { producer { name: "conv1" attr { name: "type" type: STRING s: "Conv2d" } '
    'attr { name: "begin" type: INT i: %s } attr { name: "end" type: INT i: %s } '
    'attr { name: "input_dims" type: INT i: %s } } consumer { name: "%s" } }\n'
)


@generator
def prune_records() -> Iterator[Case]:
    """Records with channels cut."""
    values = {
        "end_huge": ("0", "9223372036854775807", "4", "fc"),
        "begin_negative": ("-9223372036854775808", "16", "4", "fc"),
        "backwards": ("16", "0", "4", "fc"),
        "empty": ("0", "0", "0", "fc"),
        "unknown_consumer": ("0", "16", "4", "none"),
        "itself": ("0", "16", "4", "conv1"),
        "dims_huge": ("0", "16", "9223372036854775807", "fc"),
    }
    for name, numbers in values.items():
        yield Case(f"prune_record_{name}", {"pr.txt": (PRUNED % numbers).encode()}, call="restore")
    yield Case("prune_record_no_producer", {"pr.txt": b"prune_record { }"}, call="restore", harmless="nothing is cut")
    yield Case("prune_record_names_nothing", {"pr.txt": b'prune_record { producer { name: "" } }'}, call="restore")
    yield Case(
        "prune_record_deep",
        {"pr.txt": b"prune_record { producer {" * 50_000},
        call="restore",
        reasons=reasons("RECORD_SYNTAX"),
    )
    yield Case(
        "prune_record_attr_of_a_million",
        {
            "pr.txt": (
                'prune_record { producer { name: "conv1" attr { name: "begin" ' + "ints: 1 " * 1_000_000 + "} } }"
            ).encode()
        },
        call="restore",
        harmless="an attribute of another type is none: nothing is cut",
    )


@generator
def configurations() -> Iterator[Case]:
    """Simple configurations (.cfg)."""

    def case(name: str, content: str | Content, call: str = "define", allowed: frozenset[str] = CONFIG) -> Case:
        data = as_content(content)
        file = {"prune": "p.cfg", "search": "s.cfg"}.get(call, "q.cfg")
        return Case(f"cfg_{call}_{name}", {file: data}, call=call, reasons=allowed)

    for call in ("define", "define_retrain", "prune", "search"):
        yield case("deep", "common_config {" * 100_000, call)
        yield case("deep_prune", "prune_config { filter_pruner {" * 50_000, call)
        yield case("unknown_field", "no_such_field: 1", call)
        yield case("null", b"\0", call)
        yield case("no_utf8", b'skip_layers: "\xff\xfe"', call)
        yield case("random", bytes(range(1, 256)), call)
        yield case("json", "{}", call)
    for number in ("0", "-1", "4294967296", "1e3", "nan", "99999999999999999999999"):
        yield case(f"batch_num_{number}", f"batch_num: {number}", allowed=frozenset())
    for index, number in enumerate(("nan", "inf", "-inf", "1e999", "-1", "2", "0")):
        yield case(
            f"search_step_{index}",
            f"common_config {{ ifmr_quantize {{ search_step: {number} }} }}",
            allowed=frozenset(),
        )
        yield case(
            f"prune_ratio_{index}",
            f"prune_config {{ filter_pruner {{ balanced_l2_norm_filter_prune {{ prune_ratio: {number} }} }} }}",
            "prune",
            allowed=frozenset(),
        )
        if number != "2":
            yield case(f"compress_ratio_{index}", f"compress_ratio: {number}", "search", allowed=frozenset())
    yield case(
        "search_range_backwards", "common_config { ifmr_quantize { search_range_start: 2 search_range_end: 1 } }"
    )
    yield case("search_step_tiny", "common_config { ifmr_quantize { search_step: 1e-38 } }")
    yield case("bins_huge", "common_config { hfmg_quantize { num_of_bins: 4294967295 } }")
    yield case("bins_0", "common_config { hfmg_quantize { num_of_bins: 0 } }")
    yield case("iterations_huge", "common_config { ada_quantize { num_iteration: 4294967295 reg_param: inf } }")
    yield case("bits_huge", "common_config { arq_quantize { quant_bits: 4294967295 } }")
    yield case("skip_unknown_layer", 'skip_layers: "../../etc/passwd"')
    yield case("skip_100000_layers", 'skip_layers: "l" ' * 100_000)
    yield case(
        "override_100000_layers",
        "".join(f'override_layer_configs {{ layer_name: "l{i}" calibration_config {{ }} }}\n' for i in range(100_000)),
    )
    yield case("twenty_megabytes", lambda: b"#" * (20 << 20) + b"\n", allowed=reasons("CONFIG_SYNTAX"))
    yield case("repeated_field_of_a_million", "skip_layers: [" + '"a",' * 1_000_000 + '"b"]')
    yield case(
        "override_by_name_outside",
        'compress_ratio: 1.5 override_prune_cfg: "../../../etc/passwd"',
        "search",
        frozenset(),
    )
    yield case("override_absolute", 'compress_ratio: 1.5 override_prune_cfg: "/etc/passwd"', "search", frozenset())


@generator
def json_configurations() -> Iterator[Case]:
    """JSON configurations."""

    def case(name: str, content: str | dict[str, Any] | Content, allowed: frozenset[str] = CONFIG) -> Case:
        data = as_content(content)
        return Case(f"json_{name}", {"c.json": data}, call="configure", reasons=allowed)

    good = json.dumps(good_config())
    syntax = reasons("CONFIG_SYNTAX")
    yield case("empty", "", syntax)
    yield case("deep_lists", "[" * 100_000, syntax)
    yield case("deep_objects", '{"a":' * 100_000, syntax)
    yield case("deep_closed", "[" * 100_000 + "]" * 100_000, syntax)
    yield case("not_an_object", "[]")
    yield case("null", "null")
    yield case("twice_a_key", good[:-1] + ', "conv1": {}}', syntax)
    yield case("twice_a_key_escaped", good[:-1] + ', "con\\u00761": {}}', syntax)
    yield case("nul_byte", good + "\0", syntax)
    yield case("after_the_end", good + "{}", syntax)
    yield case("lone_surrogate", good.replace("conv1", "\\ud800"), syntax)
    yield case("surrogates_swapped", good.replace("conv1", "\\udc00\\ud800"), syntax)
    yield case("no_utf8", good.encode().replace(b"conv1", b"\xff\xfe"), syntax)
    yield case("utf16", good.encode("utf-16"), syntax)
    yield case("comment", "// hello\n" + good, syntax)
    yield case("single_quotes", good.replace('"', "'"), syntax)
    yield case("trailing_comma", good[:-1] + ",}", syntax)
    yield case("cut", good[: len(good) // 2], syntax)
    for name, number in {
        "nan": "NaN",
        "infinity": "Infinity",
        "1e999": "1e999",
        "minus_1e999": "-1e999",
        "digits": "9" * 10_000,
        "fraction": "0." + "3" * 100_000,
        "negative": "-1",
        "zero": "0",
        "text": '"1"',
        "list": "[1]",
        "true": "true",
        "null": "null",
        "half": "0.5",
        "hex": "0x10",
        "plus": "+1",
    }.items():
        yield case(f"batch_num_{name}", good.replace('"batch_num": 1', f'"batch_num": {number}'))
    for name, value in {
        "huge": [1e300, 1e301],
        "backwards": [2, 1],
        "three": [1, 2, 3],
        "texts": ["a", "b"],
        "empty": [],
        "negative": [-1, -0.5],
    }.items():
        config = good_config()
        config["conv1"]["activation_quant_params"]["search_range"] = value
        yield case(f"search_range_{name}", config)
    for step in (0, -1, 1e-300):
        config = good_config()
        config["conv1"]["activation_quant_params"]["search_step"] = step
        yield case(f"search_step_{step}", config)
    for bits in (0, -8, 9, 2**62, 2**70):
        config = good_config()
        config["conv1"]["weight_quant_params"]["num_bits"] = bits
        yield case(f"num_bits_{bits}", config)
    yield case("unknown_layer", good_config() | {"../../etc/passwd": layer_config()})
    yield case("unknown_key", good_config() | {"conv1": layer_config() | {"__proto__": {}}})
    yield case("version_other", good_config() | {"version": 2**63})
    yield case("layer_not_an_object", good_config() | {"conv1": []})
    yield case("key_of_a_megabyte", good_config() | {"k" * (1 << 20): layer_config()})
    yield case(
        "twenty_thousand_layers",
        lambda: json.dumps(good_config() | {f"l{i}": layer_config() for i in range(20_000)}).encode(),
    )
    yield case("five_million_values", lambda: b'{"a":[' + b"0," * 5_000_000 + b"0]}", syntax)
    yield case("seventy_megabytes", lambda: b'{"a":"' + b"x" * (70 << 20) + b'"}', syntax)


@generator
def manifests() -> Iterator[Case]:
    """Module manifests."""

    def case(name: str, content: str | dict[str, Any] | Content) -> Case:
        data = as_content(content)
        return Case(f"manifest_{name}", {"manifest.json": data}, call="manifest", reasons=reasons("MANIFEST_INVALID"))

    def module(**fields: Any) -> dict[str, Any]:
        made = good_manifest()
        made["modules"][1] |= fields
        return made

    yield case("empty", "")
    yield case("deep", '{"modules":[' * 50_000)
    yield case("deep_unknown", '{"modules":[{"parameters":' + "[" * 50_000)
    yield case("unknown_field", {"modules": [], "more": 1})
    yield case("not_an_object", "[]")
    yield case("twice_a_module", {"modules": good_manifest()["modules"] * 2})
    yield case("no_utf8", b'{"modules":[{"name":"\xff\xfe"}]}')
    yield case("lone_surrogate", '{"modules":[{"name":"\\ud800"}]}')
    yield case("nan", '{"modules":[{"name":"a","dropout":NaN,"groups":NaN}]}')
    yield case("groups_text", module(groups="many"))
    yield case("groups_beyond_64_bits", module(groups=10**30))
    yield case("groups_fraction", module(groups=0.5))
    yield case("shape_of_texts", module(parameters=[{"name": "weight", "shape": ["x"]}]))
    yield case("cut", json.dumps(good_manifest())[:-10])
    yield case("seventeen_megabytes", lambda: b'{"modules":[' + b" " * (17 << 20) + b"]}")
