"""The quantizers against the vectors of the reference (tests/golden/qat/unit) and against their definitions."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelpress import torch_quantizers as q

UNIT = Path(os.environ["MODELPRESS_SOURCE_DIR"]) / "tests" / "golden" / "qat" / "unit"


def vectors(prefix: str) -> list[str]:
    return sorted(path.stem for path in UNIT.glob(f"{prefix}_*.npz"))


def load(name: str) -> dict[str, Any]:
    with np.load(UNIT / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) if arrays[key].ndim else arrays[key].item() for key in arrays.files}


def assert_same(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected).to(found.dtype), rtol=0, atol=0, equal_nan=True)


def assert_near(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected).to(found.dtype), rtol=1e-5, atol=1e-6)


def parameter(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32, requires_grad=True)


def test_there_are_vectors() -> None:
    assert len(list(UNIT.glob("*.npz"))) == 55


@pytest.mark.parametrize("name", [name for name in vectors("act") if name != "act_fp16"])
def test_activation(name: str) -> None:
    v = load(name)
    x = v["x"].requires_grad_()
    clip = q.ClipRange(parameter(v["clip_max"]), parameter(v["clip_min"]))
    previous = q.ClipRange(torch.tensor(v["clip_max_pre"]).float(), torch.tensor(v["clip_min_pre"]).float())
    result = q.quantize_activation(
        x, clip, previous, v["num_bits"], fixed_min=v["fixed_min"], asymmetric=v["asymmetric"]
    )
    assert_same(result.values, v["y"])
    assert result.values.dtype == x.dtype
    assert_same(result.quantization.scale, v["scale"])
    assert_same(result.quantization.offset, v["offset"])
    assert_same(result.clip.maximum, v["clip_max_out"])
    assert_same(result.clip.minimum, v["clip_min_out"])
    result.values.backward(v["grad_y"])
    assert x.grad is not None
    assert_same(x.grad, v["grad_x"])
    assert clip.maximum.grad is not None
    assert clip.minimum.grad is not None
    assert_near(clip.maximum.grad, v["grad_clip_max"])
    assert_near(clip.minimum.grad, v["grad_clip_min"])


def test_activation_of_float16() -> None:
    """The reference computes in float16, which moves values near a half step by one step; float32 does not."""
    v = load("act_fp16")
    clip = q.ClipRange(parameter(v["clip_max"]), parameter(v["clip_min"]))
    x = v["x"].requires_grad_()
    result = q.quantize_activation(x, clip, clip, v["num_bits"], fixed_min=False)
    assert_same(result.quantization.scale, v["scale"])
    assert_same(result.quantization.offset, v["offset"])
    expected = q.quantize_activation(x.detach().float(), clip, clip, v["num_bits"], fixed_min=False)
    assert_same(result.values, expected.values.half())
    steps = ((result.values.float() - v["y"].float()) / v["scale"]).abs()
    assert (steps < 0.01).sum() >= 118
    assert steps.max() < 1.01
    result.values.backward(v["grad_y"])
    assert x.grad is not None
    assert_same(x.grad, v["grad_x"])
    assert clip.maximum.grad is not None
    torch.testing.assert_close(clip.maximum.grad, torch.tensor(v["grad_clip_max"]), rtol=1e-2, atol=0)


def first(v: dict[str, Any], weight: torch.Tensor) -> torch.Tensor:
    return q.swap_channels(weight, v["groups"]) if v["module_type"].startswith("ConvTranspose") else weight


@pytest.mark.parametrize("name", vectors("arq"))
def test_arq(name: str) -> None:
    v = load(name)
    weight = v["weight"].requires_grad_()
    rows = first(v, weight)
    scales = q.weight_scales(rows, len(rows) if v["channel_wise"] else 1, v["num_bits"])
    assert_same(scales, v["scale"])
    quantized = q.quantize_weight(rows, scales, v["num_bits"])
    quantized = first(v, quantized)
    assert_same(quantized, v["q"])
    quantized.backward(v["grad_q"])
    assert weight.grad is not None
    assert_same(weight.grad, v["grad_weight"])


@pytest.mark.parametrize("name", vectors("wulq"))
def test_learned_weight_scales(name: str) -> None:
    v = load(name)
    weight = v["weight"].requires_grad_()
    scales = v["scale_in"]
    if v["cur_batch"] == 0:
        scales = q.weight_scales(weight, len(scales), v["num_bits"])
    assert_same(scales, v["scale_out"])
    scales.requires_grad_()
    quantized = q.quantize_weight(weight, 1 / scales if v["s_rec_flag"] else scales, v["num_bits"])
    assert_same(quantized, v["q"])
    quantized.backward(v["grad_q"])
    assert weight.grad is not None
    assert scales.grad is not None
    if "grad_scale" in v:
        assert_same(weight.grad, v["grad_weight"])
        assert_near(scales.grad, v["grad_scale"])
    else:  # the reference's backward fails
        assert_same(weight.grad, v["grad_q"])


def test_learned_scales_per_channel_of_other_ranks() -> None:
    """Where the reference fails, the gradient is that of the same numbers as a 4-D weight."""
    weight = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
    found = []
    for shape in ((4, 3, 3), (4, 3, 3, 1), (4, 3, 3, 1, 1)):
        scales = torch.tensor([0.01, 0.02, 0.005, 0.01], requires_grad=True)
        q.quantize_weight(weight.reshape(shape), scales, 8).backward(gradient.reshape(shape))
        found.append(scales.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in vectors("ifmr") if name != "ifmr_ratio_table"])
def test_range_search(name: str) -> None:
    v = load(name)
    cpu = torch.device("cpu")
    search = q.RangeSearch()
    for key in sorted(key for key in v if key.startswith("batch")):
        search.add(v[key])
    maximum, minimum = search.extremes()
    assert_same(maximum, v["max_value"])
    assert_same(minimum, v["min_value"])
    candidates, scales, losses = search.losses(maximum, minimum, v["num_bits"], cpu)
    assert_same(candidates, v["candidates"])
    assert_same(scales, v["scales"])
    torch.testing.assert_close(losses, v["loss_float64"], rtol=1e-5, atol=1e-12)
    assert losses.argmin() == v["argmin_float32"]
    quantization, clip = search.search(v["num_bits"], cpu)
    assert_same(quantization.scale, v["scale"])
    assert_same(quantization.offset, v["offset"])
    assert_same(clip.maximum, v["clip_max"])
    assert_same(clip.minimum, v["clip_min"])


def test_range_search_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = q.RangeSearch()
    whole.add(batch)
    expected = whole.search(8, batch.device)
    monkeypatch.setattr(q.RangeSearch, "_PIECE", 64)
    pieces = q.RangeSearch()
    pieces.add(batch[:10])
    pieces.add(batch[10:].reshape(99, 10))
    assert pieces.search(8, batch.device) == expected


def test_range_search_leaves_out_one_in_a_million() -> None:
    batch = torch.linspace(-1, 1, 3_000_000)
    batch[0], batch[1], batch[2] = 50, 40, -60
    search = q.RangeSearch()
    search.add(batch[:2_000_000])
    search.add(batch[2_000_000:])
    maximum, minimum = search.extremes()
    assert maximum == batch.sort().values[-3]
    assert minimum == batch.sort().values[2]


def test_range_search_of_nothing() -> None:
    with pytest.raises(RuntimeError, match="no elements"):
        q.RangeSearch().add(torch.empty(0, 3))


def test_search_ratios() -> None:
    assert_same(q._search_ratios(), load("ifmr_ratio_table")["ratios"])


@pytest.mark.parametrize("name", vectors("mask24"))
def test_mask(name: str) -> None:
    v = load(name)
    mask = q.two_of_four_mask(v["weight"], v["axis"])
    assert_same(mask, v["mask"])
    packed = q.pack_mask(mask)
    assert packed == v["packed_int64"].tolist()
    assert_same(q.unpack_mask(packed, mask.shape), mask)


def test_packed_mask_of_another_shape() -> None:
    with pytest.raises(RuntimeError, match=r"a mask of shape \[8, 9\] takes 2 numbers, not 1"):
        q.unpack_mask([0], [8, 9])


# Positions that become zero where ties are not broken towards the lowest index (docs/spec/prune.md section 11).
TIES = (
    "0000[23] 0001[12] 0010[13] 0100[23] 0111[02] 1000[23] 1011[13] 1012[12] 1021[13] 1101[23] 1102[12] 1110[23] "
    "1120[13] 1201[23] 1210[23] 2011[13] 2101[23] 2110[23]"
)


def test_mask_ties() -> None:
    special = {entry[:4]: {int(entry[5]), int(entry[6])} for entry in TIES.split()}
    for code in range(256):
        ranks = [code >> shift & 3 for shift in (6, 4, 2, 0)]
        if set(ranks) != set(range(max(ranks) + 1)):
            continue
        zeroed = {i for i, kept in enumerate(q.two_of_four_mask(torch.tensor([ranks]), 1)[0].tolist()) if kept == 0}
        lowest = set(sorted(range(4), key=lambda i: ranks[i])[:2])
        assert zeroed == special.get("".join(map(str, ranks)), lowest), ranks


def test_nan_counts_as_largest() -> None:
    assert q.two_of_four_mask(torch.tensor([[1.0, torch.nan, 3.0, 2.0]]), 1).tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    clip = q.ClipRange(torch.tensor(1.5), torch.tensor(-1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = q.quantize_activation(x, clip, clip, 8, fixed_min=False).values
    expected = q.quantize_activation(x.float(), clip, clip, 8, fixed_min=False).values
    assert found.dtype == dtype
    assert_same(found, expected.to(dtype))


def test_bad_values() -> None:
    clip = q.ClipRange(torch.tensor(1.0), torch.tensor(-1.0))
    nothing = q.ClipRange(torch.tensor(torch.nan), torch.tensor(torch.nan))
    with pytest.raises(TypeError, match=r"float64"):
        q.quantize_activation(torch.zeros(2, dtype=torch.float64), clip, clip, 8, fixed_min=False)
    for bad in (torch.inf, -torch.inf, torch.nan):
        with pytest.raises(RuntimeError, match="invalid value inf or nan"):
            q.quantize_activation(torch.tensor([0.0, bad, 1.0]), clip, clip, 8, fixed_min=False)
        with pytest.raises(RuntimeError, match="invalid value inf or nan"):
            q.check_weight(torch.tensor([0.0, bad, 1.0]))
    with pytest.raises(RuntimeError, match="Param scale has invalid value"):
        q.quantize_activation(torch.ones(2), nothing, nothing, 8, fixed_min=False)
    with pytest.raises(TypeError, match=r"int8"):
        q.check_weight(torch.zeros(2, dtype=torch.int8))


def test_nothing_to_quantize(caplog: pytest.LogCaptureFixture) -> None:
    clip = q.ClipRange(torch.tensor(1.0), torch.tensor(-1.0))
    assert q.quantize_activation(torch.zeros(0, 3), clip, clip, 8, fixed_min=False).values.shape == (0, 3)
    assert not caplog.messages
    assert_same(q.quantize_activation(torch.zeros(3), clip, clip, 8, fixed_min=False).values, torch.zeros(3))
    assert "all zero" in caplog.text
