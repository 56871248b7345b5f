"""Wrapped networks against training runs of the reference (tests/golden/qat), and what the reference cannot do."""

import copy
import pickle
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format, text_format
from modelpress import torch_quantizers as q
from modelpress.amct import record_pb2
from modelpress.torch_record import RecordFile
from modelpress.torch_wrappers import folded_scales, is_wrapped, recorded_scales, strip, wrap
from modelpress.v1 import rewrite_plan_pb2
from qat_cases import FLOWS, GOLDEN, Case, assert_numbers, assert_records
from torch import nn

RNN = ("q13_gru", "q16_lstm")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are those of the golden files only when computed in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_state(model: nn.Module, expected: dict[str, Any]) -> None:
    state = model.state_dict()
    for key, value in expected.items():
        assert str(state[key].numpy().dtype) == str(value.dtype), key
        assert_numbers(state[key].numpy(), value, key)


def parse(path: Path) -> record_pb2.ScaleOffsetRecord:
    record: record_pb2.ScaleOffsetRecord = text_format.Parse(path.read_text(), record_pb2.ScaleOffsetRecord())
    return record


# The reference does not train the weights of RNN layers; see test_rnn_trains.
MODES = [(name, mode) for name in FLOWS for mode in (False, True) if mode or name not in RNN]


@pytest.mark.parametrize(("name", "reference_defects"), MODES)
def test_flow(name: str, reference_defects: bool, tmp_path: Path) -> None:
    case = Case(name)
    path = tmp_path / "record.txt"
    model = case.wrapped(path, reference_defects=reference_defects)
    assert is_wrapped(model)
    assert list(model.state_dict()) == case.info["state_dict_keys_in_order"]
    optimizer = case.optimizer(model)
    trace = case.arrays("trace")
    for index in range(case.info["flow"]["steps"]):
        assert_numbers(case.step(model, optimizer, index), trace["loss"][index], f"loss {index}")
        for layer in case.plan.layers:
            if f"{layer.module}|clip" in trace:
                quantized = model.get_submodule(layer.module).quant_module.input_owner
                clip = [float(quantized.acts_clip_max), float(quantized.acts_clip_min)]
                assert_numbers(clip, trace[f"{layer.module}|clip"][index], layer.module)
    expected = case.arrays("state")
    assert list(model.state_dict()) == list(expected)
    assert_state(model, expected)

    if case.info["flow"]["restore_before_eval"]:
        restored = case.wrapped(path, reference_defects=reference_defects)
        restored.load_state_dict(model.state_dict())
        model = restored
    model.eval()
    with torch.no_grad():
        output = model(*case.inputs("eval"))
    if case.info["flow"]["restore_before_eval"] and not reference_defects:
        return  # see test_restore_keeps_trained_clip_values
    assert_state(model, expected | case.arrays("state_eval_diff"))
    assert_numbers(output.numpy(), case.arrays("io")["wrapped_out"], "output", atol=1e-3)
    if not reference_defects and name in ("q15_fp16mode", "c03_24_quant_freq2"):
        return  # see test_scales_of_half_precision and test_record_has_the_masks_in_use
    assert_records(path.read_text(), (case.folder / "record.txt").read_text())


def trained(case: Case, path: Path, *, reference_defects: bool = False) -> tuple[nn.Module, Any]:
    """A wrapped network after the case's training, and its optimizer."""
    model = case.wrapped(path, reference_defects=reference_defects)
    optimizer = case.optimizer(model)
    for index in range(case.info["flow"]["steps"]):
        case.step(model, optimizer, index)
    return model, optimizer


@torch.no_grad()
def evaluate(case: Case, model: nn.Module) -> torch.Tensor:
    output: torch.Tensor = model.eval()(*case.inputs("eval"))
    return output


@pytest.mark.parametrize("name", FLOWS)
def test_checkpoint_of_the_reference(name: str, tmp_path: Path) -> None:
    """A state of the reference is loaded strictly, and evaluates as it does there."""
    case = Case(name)
    model = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    state = {key: torch.from_numpy(value) for key, value in case.arrays("state").items()}
    model.load_state_dict(state)
    if name in RNN:  # the reference keeps the trained biases in comp_module only
        state |= {key.replace("comp", "replaced"): value for key, value in state.items() if "comp_module" in key}
    assert_state(model, {key: value.numpy() for key, value in state.items()})
    if not case.info["flow"]["restore_before_eval"]:
        output = evaluate(case, model)
        assert_numbers(output.numpy(), case.arrays("io")["wrapped_out"], atol=1e-3)


@pytest.mark.parametrize("name", ["q14_restore", "c04_filter_quant_restore", "q02_batchnum2", "q13_gru"])
def test_restore_keeps_trained_clip_values(name: str, tmp_path: Path) -> None:
    case = Case(name)
    model, _ = trained(case, tmp_path / "record.txt")
    restored = case.wrapped(tmp_path / "restored.txt", reference_defects=False)
    restored.load_state_dict(model.state_dict())
    assert torch.equal(evaluate(case, restored), evaluate(case, model))
    assert_state(restored, {key: value.numpy() for key, value in model.state_dict().items()})
    assert (tmp_path / "restored.txt").read_text() == (tmp_path / "record.txt").read_text()


@pytest.mark.parametrize(
    "name", ["q11_residual_adam", "q04_ulq_weights", "q02_batchnum2", "c03_24_quant_freq2", "q16_lstm"]
)
def test_interrupted_training_goes_on(name: str, tmp_path: Path) -> None:
    case = Case(name)
    whole, _ = trained(case, tmp_path / "record.txt")
    steps = case.info["flow"]["steps"]
    model = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    optimizer = case.optimizer(model)
    for index in range(steps - 1):
        case.step(model, optimizer, index)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pth")
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    resumed = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    resumed.load_state_dict(checkpoint["model"])
    optimizer = case.optimizer(resumed)
    optimizer.load_state_dict(checkpoint["optimizer"])
    case.step(resumed, optimizer, steps - 1)
    assert_same_state(resumed, whole)
    assert torch.equal(evaluate(case, resumed), evaluate(case, whole))


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    other = expected.state_dict()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True, msg=key)


def test_initialisation_starts_again_where_it_was_interrupted(tmp_path: Path) -> None:
    case = Case("q02_batchnum2")
    model = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    with torch.no_grad():
        model(*case.inputs("x0"))
    restored = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    restored.load_state_dict(model.state_dict())
    evaluate(case, restored)
    assert not (tmp_path / "record.txt").exists()  # one of two batches
    evaluate(case, restored)
    assert (tmp_path / "record.txt").exists()


@pytest.mark.parametrize("reference_defects", [False, True])
def test_record_follows_later_training(reference_defects: bool, tmp_path: Path) -> None:
    case, path = Case("q01_share_bn"), tmp_path / "record.txt"
    model, optimizer = trained(case, path, reference_defects=reference_defects)
    evaluate(case, model)
    before = path.read_text()
    model.train()
    case.step(model, optimizer, 0)
    evaluate(case, model)
    assert (path.read_text() == before) == reference_defects
    if not reference_defects:
        module = model.get_submodule("fc").quant_module
        assert parse(path).record[3].value.scale_d == float(module.acts_scale)
        assert list(parse(path).record[3].value.scale_w) == module.wts_scales.tolist()


def test_record_is_not_written_again_without_need(tmp_path: Path) -> None:
    case, path = Case("q01_share_bn"), tmp_path / "record.txt"
    model, _ = trained(case, path)
    evaluate(case, model)
    identity = path.stat().st_ino
    evaluate(case, model)
    assert path.stat().st_ino == identity
    path.unlink()
    evaluate(case, model)
    assert path.exists()


def test_evaluation_without_training_is_recorded(tmp_path: Path) -> None:
    for name in ("q01_share_bn", "q03_clip_skip_cfg"):
        case, path = Case(name), tmp_path / f"{name}.txt"
        model = case.wrapped(path, reference_defects=False)
        evaluate(case, model)
        assert [entry.key for entry in parse(path).record] == [layer.module for layer in case.plan.layers]


def test_incomplete_inference_is_not_recorded(tmp_path: Path) -> None:
    case, path = Case("q01_share_bn"), tmp_path / "record.txt"
    model, optimizer = trained(case, path)
    hook = model.get_submodule("fc").register_forward_pre_hook(_fail)
    with pytest.raises(KeyError):
        evaluate(case, model)
    assert not path.exists()
    hook.remove()
    model.train()
    case.step(model, optimizer, 0)  # after which the factors of the failed inference are wrong
    evaluate(case, model)
    scales = [float(model.get_submodule(entry.key).quant_module.input_owner.acts_scale) for entry in parse(path).record]
    assert [entry.value.scale_d for entry in parse(path).record] == scales


def _fail(*_: Any) -> None:
    raise KeyError


def test_scales_of_half_precision(tmp_path: Path) -> None:
    case, path = Case("q15_fp16mode"), tmp_path / "record.txt"
    model, _ = trained(case, path)
    evaluate(case, model)
    expected = text_format.Parse((case.folder / "record.txt").read_text(), record_pb2.ScaleOffsetRecord())
    for found, entry in zip(parse(path).record, expected.record, strict=True):
        assert found.value.scale_d == np.float32(np.float16(found.value.scale_d))
        np.testing.assert_allclose(found.value.scale_d, entry.value.scale_d, rtol=1e-3)
        assert found.value.fakequant_precision_mode == "FORCE_FP16_QUANT"
        assert not entry.value.HasField("fakequant_precision_mode")


def test_record_has_the_masks_in_use(tmp_path: Path) -> None:
    """And all else that it has to have, in the order of the reference."""
    case, path = Case("c03_24_quant_freq2"), tmp_path / "record.txt"
    model, _ = trained(case, path)
    evaluate(case, model)
    record = parse(path)
    for entry in record.prune_record:
        node = entry.selective_prune
        mask = model.get_submodule(node.name).quant_module.wts_mask
        assert node.attr[1].ints == q.pack_mask(mask)
        node.ClearField("attr")
    stale = text_format.Parse((case.folder / "record.txt").read_text(), record_pb2.ScaleOffsetRecord())
    for entry in stale.prune_record:
        entry.selective_prune.ClearField("attr")
    assert record.prune_record == stale.prune_record
    assert [entry.key for entry in record.record] == [entry.key for entry in stale.record]


def make(model: nn.Module, path: Path, *layers: dict[str, Any], reference_defects: bool = False, **plan: Any) -> None:
    """Wraps by a plan of these layers, 8 bits by default."""
    act = {"algo": "ulq_quantize", "dst_type": "INT8", "num_bits": 8, "ifmr_init": True}
    weight = {"algo": "arq_retrain", "dst_type": "INT8", "num_bits": 8, "channel_wise": True}
    described = []
    for layer in layers:
        quantized = {"act": act | layer.get("act", {}), "weight": weight | layer.get("weight", {})}
        described.append(layer if layer.get("num_scales") is None else layer | quantized)
    message = json_format.ParseDict({"batch_num": 1, "layers": described, **plan}, rewrite_plan_pb2.RewritePlan())
    wrap(model, message, RecordFile(path), reference_defects=reference_defects)


class Branches(nn.Module):
    """The layer that is registered last runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.b(x)
        return y + self.a(x)


LINEAR = {"torch_type": "Linear", "num_scales": 1, "weight": {"channel_wise": False}}


@pytest.mark.parametrize("batch_num", [1, 3])
def test_shared_quantizer_whose_owner_runs_later(batch_num: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Branches(), [torch.randn(5, 4) for _ in range(batch_num)]
    shared = copy.deepcopy(model)
    make(shared, tmp_path / "r.txt", {"module": "a", **LINEAR}, {"module": "b", "share_main": "a", **LINEAR},
         batch_num=batch_num)  # fmt: skip
    make(model, tmp_path / "s.txt", {"module": "a", **LINEAR}, {"module": "b", **LINEAR}, batch_num=batch_num)
    for batch in batches:
        assert torch.equal(shared(batch), model(batch))
    shared.eval()(batches[0])
    model.eval()(batches[0])
    assert (tmp_path / "r.txt").read_text() == (tmp_path / "s.txt").read_text()
    assert [entry.key for entry in parse(tmp_path / "r.txt").record] == ["b", "a"]
    assert not any("b.quant_module.acts" in name for name, _ in shared.named_parameters())
    assert "b.quant_module.acts_comp_reuse.acts_clip_max" in shared.state_dict()


@pytest.mark.parametrize("name", ["q01_share_bn", "c03_24_quant_freq2", "q16_lstm"])
def test_copies_and_pickles(name: str, tmp_path: Path) -> None:
    case = Case(name)
    whole, _ = trained(case, tmp_path / "record.txt")
    model = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    case.step(model, case.optimizer(model), 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(model, tmp_path / "model.pt")
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ]
    for duplicate in copies:
        assert {id(p) for p in duplicate.parameters()}.isdisjoint({id(p) for p in model.parameters()})
        assert len(list(duplicate.parameters())) == len(dict(model.named_parameters()))
        if name == "q01_share_bn":
            owner = duplicate.get_submodule("c2").quant_module
            assert duplicate.get_submodule("c3").quant_module.input_owner is owner
        optimizer = case.optimizer(duplicate)  # the cases' SGD has no state
        for step in range(1, case.info["flow"]["steps"]):
            case.step(duplicate, optimizer, step)
        assert_same_state(duplicate, whole)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", FLOWS)
def test_all_tensors_are_on_the_device_of_the_model(name: str, tmp_path: Path) -> None:
    case = Case(name)
    model = case.net().to("meta")
    wrap(model, case.plan, RecordFile(tmp_path / "record.txt"))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert list(model.state_dict()) == case.info["state_dict_keys_in_order"]


def test_batch_norm_that_is_synchronised(tmp_path: Path) -> None:
    """Before wrapping it is absorbed as any other; after wrapping it may be converted."""
    case = Case("q01_share_bn")
    expected, _ = trained(case, tmp_path / "record.txt")
    evaluate(case, expected)
    text = (tmp_path / "record.txt").read_text()
    (tmp_path / "record.txt").unlink()
    before = nn.SyncBatchNorm.convert_sync_batchnorm(case.net())
    wrap(before, case.plan, RecordFile(tmp_path / "record.txt"))
    after = case.wrapped(tmp_path / "record.txt", reference_defects=False)
    after = nn.SyncBatchNorm.convert_sync_batchnorm(after)
    for model in (before, after):
        assert isinstance(model.get_submodule("c1").bn_module, nn.SyncBatchNorm)
        model.load_state_dict(expected.state_dict())
        evaluate(case, model)
        assert (tmp_path / "record.txt").read_text() == text
        (tmp_path / "record.txt").unlink()
        assert isinstance(strip(model).get_submodule("bn1"), nn.SyncBatchNorm)


@pytest.mark.parametrize("name", FLOWS)
def test_strip(name: str, tmp_path: Path) -> None:
    case = Case(name)
    model, _ = trained(case, tmp_path / "record.txt")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    larger = nn.Sequential(nn.Sequential(model))
    for outer, prefix in ((model, ""), (larger, "0.0.")):
        stripped = strip(outer)
        assert not is_wrapped(stripped)
        float_state = stripped.state_dict()
        assert list(float_state) == [prefix + key for key in case.net().state_dict()]
        for layer in case.plan.layers:
            wrapper = model.get_submodule(layer.module)
            for key, value in wrapper.quant_module.replaced_module.state_dict().items():
                masked = (
                    value * wrapper.quant_module.wts_mask if layer.HasField("selective") and key == "weight" else value
                )
                assert torch.equal(float_state[f"{prefix}{layer.module}.{key}"], masked)
            if layer.HasField("bn"):
                for key, value in wrapper.bn_module.state_dict().items():
                    assert torch.equal(float_state[f"{prefix}{layer.bn}.{key}"], value)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_strip_of_a_float_model() -> None:
    model = Branches()
    stripped = strip(model)
    assert stripped is not model
    assert_same_state(stripped, model)


class Masked(nn.Module):
    """The layers of golden case sel24_update_freq, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c1 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)
        self.f, self.f2 = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self) -> None:
        self.c0(torch.ones(1, 3, 3, 3)), self.c1(torch.ones(1, 8, 3, 3))
        self.f(torch.ones(1, 16)), self.f2(torch.ones(1, 8))


def selective(module: nn.Module, name: str, **settings: Any) -> dict[str, Any]:
    layer = module.get_submodule(name)
    return {"module": name, "torch_type": type(layer).__name__,
            "selective": {"prune_axis": 1, "mask_shape": list(layer.weight.shape), **settings}}  # fmt: skip


def test_masks_without_quantization(tmp_path: Path) -> None:
    folder = GOLDEN.parent / "prune" / "sel24_update_freq"
    path, model = tmp_path / "record.txt", Masked()
    plan = rewrite_plan_pb2.RewritePlan(batch_num=1)
    for name in ("c0", "c1", "f", "f2"):
        json_format.ParseDict(selective(model, name, update_freq=2), plan.layers.add())
    created = text_format.Parse((folder / "record_created.txt").read_text(), record_pb2.ScaleOffsetRecord())
    wrap(model, plan, RecordFile(path, created))
    suffixes = ("wts_scales", "wts_offsets", "cur_batch", "prune_cur_batch", "wts_mask", "s_rec_flag",
                "replaced_module.weight", "replaced_module.bias")  # fmt: skip
    assert list(model.state_dict()) == [f"{name}.{suffix}" for name in ("c0", "c1", "f", "f2") for suffix in suffixes]
    with np.load(folder / "io.npz") as arrays:
        for step in range(4):
            for name in ("c0", "c1", "f", "f2"):
                layer = model.get_submodule(name)
                layer.replaced_module.weight.data = torch.from_numpy(arrays[f"step{step}/weight/{name}"])
            model()
            for name in ("c0", "c1", "f", "f2"):
                mask = model.get_submodule(name).wts_mask
                np.testing.assert_array_equal(mask.numpy(), arrays[f"step{step}/mask/{name}"])
            assert path.read_text() == (folder / f"record_step{step}.txt").read_text()
    stripped = strip(model)
    assert torch.equal(stripped.c1.weight, model.c1.replaced_module.weight * model.c1.wts_mask)
    assert bool((stripped.c1.weight == 0).sum() == stripped.c1.weight.numel() // 2)


def test_masks_before_any_forward(tmp_path: Path) -> None:
    """They are those of the weights, or the plan's."""
    model = Branches()
    expected = q.two_of_four_mask(model.a.weight, 1)
    make(model, tmp_path / "r.txt", selective(model, "a"), selective(model, "b", mask=[0]))
    stripped = strip(model)
    assert torch.equal(stripped.a.weight, model.a.replaced_module.weight * expected)
    assert torch.equal(stripped.b.weight.abs(), torch.zeros(3, 4))


def test_masked_weights_get_no_gradient(tmp_path: Path) -> None:
    model = Branches()
    make(model, tmp_path / "r.txt", selective(model, "a"), {**LINEAR, **selective(model, "b")})
    model(torch.randn(2, 4)).square().sum().backward()
    for module in (model.a, model.b.quant_module):
        assert torch.equal(module.replaced_module.weight.grad != 0, module.wts_mask != 0)


@pytest.mark.parametrize(
    ("layer", "shape", "scales"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 8), 6),
        (nn.Conv3d(2, 4, 3), (2, 2, 4, 4, 4), 4),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 8), 6),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 4, 4), 6),
    ],
)
def test_learned_weight_scales_train(layer: nn.Module, shape: tuple[int, ...], scales: int, tmp_path: Path) -> None:
    """Also for layers where the reference's backward fails; the scales' gradient is the derivative's estimate."""
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    name = type(layer).__name__
    make(model, tmp_path / "r.txt", {"module": "0", "torch_type": name, "num_scales": scales,
                                     "weight": {"algo": "ulq_retrain"}})  # fmt: skip
    model(torch.randn(shape)).square().mean().backward()
    module = model[0].quant_module
    assert module.wts_scales.grad.abs().min() > 0
    assert module.replaced_module.weight.grad.abs().max() > 0
    weight = layer.weight if "Transpose" not in name else q.swap_channels(layer.weight, layer.groups)
    gradient = module.replaced_module.weight.grad
    gradient = gradient if "Transpose" not in name else q.swap_channels(gradient, layer.groups)
    rows, gradient = weight.detach().reshape(scales, -1), gradient.reshape(scales, -1)
    scale = module.wts_scales.detach().unsqueeze(1)
    steps = rows / scale
    slope = torch.where(rows > scale * 127, 127, torch.where(rows < -scale * 128, -128, steps.round() - steps))
    expected = (slope * gradient).sum(1) / np.sqrt(rows.shape[1] * 127)
    torch.testing.assert_close(module.wts_scales.grad, expected, rtol=1e-4, atol=1e-7)


def test_extra_arguments_reach_the_layer(tmp_path: Path) -> None:
    layer = nn.ConvTranspose2d(2, 3, 2, stride=2)
    model = nn.ModuleDict({"up": layer})
    make(model, tmp_path / "r.txt", {"module": "up", "torch_type": "ConvTranspose2d", "num_scales": 3})
    assert model["up"](torch.randn(1, 2, 4, 4), output_size=[9, 9]).shape == (1, 3, 9, 9)


def test_autocast(tmp_path: Path) -> None:
    case, path = Case("q01_share_bn"), tmp_path / "record.txt"
    model = case.wrapped(path, reference_defects=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*case.inputs("x0"))
        loss = output.float().square().mean()
    assert output.dtype == torch.bfloat16
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluate(case, model)
    assert len(parse(path).record) == 4


def test_models_that_do_not_fit_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    conv = {"module": "0", "torch_type": "Conv2d", "num_scales": 4}

    def model() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU())

    for layer, message in (
        ({**conv, "module": "9"}, "the model has no layer '9'"),
        ({**conv, "module": ""}, "the model has no layer ''"),
        ({**conv, "torch_type": "Conv3d"}, "layer 0 is a Conv2d, in the plan a Conv3d"),
        ({**conv, "num_scales": 6}, "layer 0 takes 4 weight scales, in the plan 6"),
        ({**conv, "bn": "1"}, "1, behind layer 0, is no batch norm of 4 channels with weights and statistics"),
        ({**conv, "bn": "2"}, "2, behind layer 0, is no batch norm of 4 channels"),
        ({**conv, "bn": "7"}, "the model has no layer '7'"),
        ({**conv, "share_main": "2"}, "layer 0 shares with 2, which has no activation quantizer"),
        ({**conv, "selective": {"prune_axis": 1, "mask_shape": [4, 3, 1, 1]}}, "the weight of layer 0 has the shape"),
        ({**conv, "selective": {"prune_axis": 1, "mask": [1]}}, "takes 2 numbers, not 1"),
    ):
        net = model()
        keys = list(net.state_dict())
        with pytest.raises(RuntimeError, match=message):
            make(net, path, layer)
        assert list(net.state_dict()) == keys
    net = model()
    make(net, path, conv)
    with pytest.raises(RuntimeError, match="wrapped already"):
        make(net, path, conv)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, x: torch.Tensor, *state: torch.Tensor) -> Any:
        return self.rnn(x, state if len(state) == 2 else state[0])


def recurrent(path: Path, layer: nn.RNNBase, **weight: Any) -> Recurrent:
    model = Recurrent(layer)
    gates = 4 if isinstance(layer, nn.LSTM) else 3
    scales = gates * layer.hidden_size if weight.get("channel_wise", True) else gates
    make(model, path, {"module": "rnn", "torch_type": type(layer).__name__, "num_scales": scales, "weight": weight})
    return model


@pytest.mark.parametrize("name", RNN)
def test_rnn_trains(name: str, tmp_path: Path) -> None:
    """The first forward is the reference's, the gradients of biases too; the weights get theirs."""
    case = Case(name)
    models = [case.wrapped(tmp_path / "r.txt", reference_defects=defects) for defects in (False, True)]
    model, reference = models
    losses = [case.step(each, torch.optim.SGD(each.parameters(), lr=0.05), 0) for each in models]
    assert losses[0] == losses[1]
    assert_numbers(losses[0], case.arrays("trace")["loss"][0])
    layer, other = model.rnn.quant_module, reference.rnn.quant_module
    for key, parameter in layer.replaced_module.named_parameters():
        copied = other.comp_module.get_parameter(key)
        if "bias" in key:
            assert torch.equal(parameter.grad, copied.grad)
        else:
            assert copied.grad is None
            assert (parameter.grad != 0).all()
        assert parameter is layer.comp_module.get_parameter(key)
        assert torch.equal(strip(model).get_parameter(f"rnn.{key}"), parameter)
    first = case.step(model, case.optimizer(model), 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        last = case.step(model, optimizer, 1)
    assert last < first


@pytest.mark.parametrize("layer_type", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}])
@pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_rnn_gradients(
    layer_type: type[nn.RNNBase], options: dict[str, bool], algo: str, channel_wise: bool, tmp_path: Path
) -> None:
    """The weights' gradients are those of a float layer that has the quantized weights, inputs and states."""
    torch.manual_seed(0)
    layer = layer_type(4, 5, **options)
    model = recurrent(tmp_path / "r.txt", layer, algo=algo, channel_wise=channel_wise)
    state = [torch.randn(1, 3, 5) for _ in range(2 if layer_type is nn.LSTM else 1)]
    x = torch.randn(3, 1, 4) if options.get("batch_first") else torch.randn(1, 3, 4)
    outputs, _ = model(x, *state)
    outputs.square().sum().backward()
    module = model.rnn.quant_module
    plain = copy.deepcopy(layer)
    plain.zero_grad()
    scales = {"ih": module.wts_scales, "hh": module.rec_wts_scales}
    for kind, scale in scales.items():
        weight = plain.get_parameter(f"weight_{kind}_l0")
        weight.data = q.quantize_weight(weight.data, scale.detach(), 8)
        assert (scale.grad is not None) == (algo == "ulq_retrain")
        assert scale.isfinite().all()
        assert channel_wise or algo == "ulq_retrain" or len(set(scale.tolist())) == 1
    x = q.fake_quantize(x, q.Quantization(module.acts_scale, module.acts_offset), 8)
    state[0] = q.fake_quantize(state[0], q.Quantization(module.acts_h_scale, module.acts_h_offset), 8)
    expected, _ = plain(x, tuple(state) if len(state) == 2 else state[0])
    expected.square().sum().backward()
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(key).grad, rtol=1e-4, atol=1e-6)
    assert module.acts_h_clip_max.grad is not None
    model.eval()(x, *state)
    value = parse(tmp_path / "r.txt").record[0].value
    assert len(value.scale_w) == len(value.scale_r) == len(module.wts_scales)


@pytest.mark.parametrize("layer", [nn.GRU(4, 5), nn.LSTM(4, 5), nn.LSTM(4, 5, batch_first=True)])
def test_rnn_output_has_the_shape_of_the_float_layer(layer: nn.RNNBase, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 4)
    state = [torch.randn(1, 3, 5) for _ in range(2 if isinstance(layer, nn.LSTM) else 1)]
    expected, last = copy.deepcopy(layer)(x, tuple(state) if len(state) == 2 else state[0])
    model = recurrent(tmp_path / "r.txt", layer)
    output, found = model(x, *state)
    torch.testing.assert_close(output, expected, rtol=0, atol=0.1)
    torch.testing.assert_close(found, last, rtol=0, atol=0.1)


def test_rnn_needs_its_state(tmp_path: Path) -> None:
    model = recurrent(tmp_path / "r.txt", nn.GRU(4, 5))
    with pytest.raises(ValueError, match="rnn: a quantized RNN layer needs its initial state"):
        model.rnn(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match="rnn: the input of a quantized RNN layer must be a tensor of 3 axes"):
        model.rnn(torch.randn(2, 4), torch.randn(1, 5))


def _train_in_group(rank: int, folder: str) -> None:
    """One of two processes, each with its own batches."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    case = Case("q11_residual_adam")
    model = case.wrapped(Path(folder) / f"record{rank}.txt", reference_defects=False)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
    clip, inputs = [], case.inputs("x0")[0]
    for step in range(3):
        optimizer.zero_grad()
        parallel(inputs * (1 + rank + step)).square().mean().backward()
        clip.append(float(model.get_submodule("stem").quant_module.acts_clip_max))
        optimizer.step()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    if rank == 0:
        evaluate(case, model)  # alone
    state = copy.deepcopy(model).state_dict()
    torch.save({"clip": clip, "state": state, "gradients": gradients}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_training_in_a_process_group(tmp_path: Path) -> None:
    """Clip values are the mean of the processes', parameters stay equal, and one process writes the record."""
    torch.multiprocessing.spawn(_train_in_group, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert results[0]["clip"] == results[1]["clip"]
    case = Case("q11_residual_adam")
    ends = []
    for rank in range(2):
        model = case.wrapped(tmp_path / "alone.txt", reference_defects=False)
        model(case.inputs("x0")[0] * (1 + rank))
        ends.append(model.get_submodule("stem").quant_module.acts_clip_max)
    assert results[0]["clip"][0] == float((ends[0] + ends[1]) / 2)
    for key, gradient in results[0]["gradients"].items():
        other = results[1]["gradients"][key]
        assert (gradient is None and other is None) or torch.equal(gradient, other), key
    for key, value in case.wrapped(tmp_path / "alone.txt", reference_defects=False).named_parameters():
        if value.requires_grad and "clip" not in key:
            assert torch.equal(results[0]["state"][key], results[1]["state"][key]), key
    assert len(parse(tmp_path / "record0.txt").record) == len(case.plan.layers)
    assert not (tmp_path / "record1.txt").exists()


def test_scales_of_folded_weights() -> None:
    with np.load(GOLDEN / "unit" / "record_scale_bn.npz") as v:
        norm = nn.BatchNorm2d(5, eps=v["eps"].item())
        norm.weight.data, norm.running_var = torch.from_numpy(v["bn_weight"]), torch.from_numpy(v["running_var"])
        found = folded_scales(torch.from_numpy(v["wts_scales"]), norm)
        np.testing.assert_array_equal(found.detach().numpy(), v["scale_w"])
    assert recorded_scales(torch.tensor([-0.5, 0.0, 1e-8, 2.0])).tolist() == [0.5, 1, 1, 2]


@pytest.mark.parametrize("name", ["q01_share_bn", "q04_ulq_weights", "q16_lstm"])
def test_several_forwards_before_a_backward(name: str, tmp_path: Path) -> None:
    """Gradients add up as when each forward is followed by its backward."""
    case = Case(name)
    models = [case.wrapped(tmp_path / "record.txt", reference_defects=False) for _ in range(2)]
    losses = [models[0](*case.inputs(f"x{index}")).square().mean() for index in range(2)]
    for loss in losses:
        loss.backward()
    for index in range(2):
        models[1](*case.inputs(f"x{index}")).square().mean().backward()
    for (key, parameter), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), key


def test_inference_mode(tmp_path: Path) -> None:
    """An evaluation in it leaves a model that trains on."""
    case = Case("q11_residual_adam")
    expected, _ = trained(case, tmp_path / "record.txt")
    with torch.inference_mode():
        expected.eval()(*case.inputs("eval"))
    model, _ = trained(case, tmp_path / "record.txt")
    evaluate(case, model)
    for each in (model, expected):
        case.step(each.train(), case.optimizer(each), 0)
    assert_same_state(model, expected)
