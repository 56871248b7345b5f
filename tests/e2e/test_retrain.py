"""Pruning and quantization-aware training with modelpress.torch against a real server."""

from __future__ import annotations

import copy
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import modelpress.torch as amct
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from modelpress import Client
from modelpress.amct import record_pb2
from torch import nn

from tests.e2e.server_process import SOURCE_DIR, ServerProcess

GOLDEN_QAT = SOURCE_DIR / "tests" / "golden" / "qat"
GOLDEN_CASES = sorted(path.parent.name for path in GOLDEN_QAT.glob("*/deploy.onnx"))
SHAPE = (2, 3, 12, 12)

PRUNE = """
prune_config {
  filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.5 ascend_optimized: false } }
}
"""
SPARSE = "prune_config { n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: M4N2 update_freq: 0 } } }\n"
NUMBER = re.compile(r"(?<=: )-?[0-9.]+(?:e-?[0-9]+)?$", re.MULTILINE)
QUANT = "retrain_data_quant_config { ulq_quantize {} }\nretrain_weight_quant_config { arq_retrain {} }\n"


class Net(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = torch.relu(y + self.bn(self.depthwise(self.left(y))))
        z: torch.Tensor = self.fc(torch.flatten(self.pool(y), 1))
        return z


def trained_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    train(net)
    net.eval()
    return net


def train(model: nn.Module, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(steps):
        x = torch.randn(SHAPE)
        optimizer.zero_grad()
        (model(x) - x.mean((2, 3)).sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def infer(model: nn.Module, x: torch.Tensor | None = None) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        output: torch.Tensor = model(torch.randn(SHAPE) if x is None else x)
    return output


def run(path: Path, x: torch.Tensor) -> torch.Tensor:
    """A fake_quant model in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)


@pytest.fixture
def folder(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with configurations, and a connection."""
    monkeypatch.chdir(tmp_path)
    Path("prune_cfg.cfg").write_text(PRUNE)
    Path("sparse_cfg.cfg").write_text(SPARSE)
    Path("compressed_cfg.cfg").write_text(PRUNE + QUANT)
    Path("sparse_compressed_cfg.cfg").write_text(SPARSE + QUANT)
    amct.connect(server.target)
    return tmp_path


# ---- the documented examples ----


def run_example(page: str, names: dict[str, Any], *completions: tuple[str, str]) -> dict[str, Any]:
    """Runs a page's example with `names` for those that it leaves open, and the replacements for what is no Python."""
    text = (Path(__file__).parent / "documented_examples.md").read_text()
    found = re.search(rf"^# {page}\n\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    code = found[1].replace("import amct_pytorch as amct", "import modelpress.torch as amct")
    for old, new in completions:
        assert old in code
        code = code.replace(old, new)
    space = {"torch": torch, "os": os, "TMP": "tmp", "OUTPUTS_DIR": "outputs", "input_shape": SHAPE} | names
    exec(compile(code, page, "exec"), space)
    return space


def test_documented_pruning(folder: Path) -> None:
    net = trained_net()
    torch.save(net.state_dict(), "float.pth")
    x = torch.randn(SHAPE)
    pruned = amct.create_prune_retrain_model(net, (x,), "./prune_cfg.cfg", "tmp/scale_offset_record.txt")
    assert pruned.left.out_channels == 8
    names = {"build_model": Net, "train": train, "infer": infer, "pruned_retrain_model": pruned}
    run_example("save_prune_retrain_model", names)
    files = [folder / "outputs" / f"custom_name_{kind}_model.onnx" for kind in ("deploy", "fake_quant")]
    assert files[0].read_bytes() == files[1].read_bytes()
    expected = infer(pruned, x)
    assert torch.allclose(run(files[1], x), expected, atol=1e-5)

    torch.save({"state_dict": pruned.state_dict()}, "tmp.pth")
    names = {"build_model": Net, "state_dict_path": "float.pth"}
    space = run_example("restore_prune_retrain_model", names, ("/your/path/to/save/tmp.pth", "'tmp.pth'"))
    restored = space["prune_retrain_model"]
    assert restored.training
    assert torch.equal(infer(restored, x), expected)


def test_documented_quantization_aware_training(folder: Path) -> None:
    net = trained_net()
    x = torch.randn(SHAPE)
    amct.create_quant_retrain_config("tmp/config.json", net, x)
    config = json.loads(Path("tmp/config.json").read_text())
    assert [name for name, layer in config.items() if isinstance(layer, dict)] == ["stem.0", "left", "depthwise", "fc"]
    model = amct.create_quant_retrain_model("tmp/config.json", net, "tmp/record.txt", (x,))
    assert Path("tmp/record.txt").read_bytes() == b""
    train(model)
    torch.save(model.state_dict(), "tmp.pth")
    names = {
        "build_model": lambda: model,
        "state_dict_path": "tmp.pth",
        "train_model": lambda model, _: train(model),
        "infer_model": infer,
        "quant_retrain_model": model,
        "input_batch": x,
        "config_json_file": "tmp/config.json",
        "record_file": "tmp/record.txt",
    }
    run_example("save_quant_retrain_model", names, ('save_path="./results/model"', '"./results/model",'))
    assert Path("tmp/record.txt").read_text().count("scale_d") == 4
    simulated = run(folder / "results" / "model_fake_quant_model.onnx", x)
    assert torch.allclose(simulated, infer(model, x), atol=2e-2)
    assert (folder / "results" / "model_deploy_model.onnx").exists()


def test_documented_compression(folder: Path) -> None:
    x = torch.randn(SHAPE)
    space = run_example("create_compressed_retrain_model", {"build_model": trained_net})
    model = space["compressed_retrain_model"]
    assert model.training
    assert "prune_record" in Path("tmp/compressed_record.txt").read_text()
    train(model)
    expected = infer(model, x)
    record = Path("tmp/compressed_record.txt").read_text()
    assert record.count("scale_d") == 4
    assert "prune_record" in record
    amct.save_compressed_retrain_model(model, "tmp/compressed_record.txt", "results/model", x, ["in"], ["out"])
    assert torch.allclose(run(folder / "results" / "model_fake_quant_model.onnx", x), expected, atol=2e-2)


def test_documented_post_training_quantization(folder: Path) -> None:
    net = trained_net()
    x = torch.randn(SHAPE)
    amct.create_quant_config("c.json", net, x, batch_num=2)
    model = amct.quantize_model("c.json", "./tmp/modfied_model.onnx", "./tmp/scale_offset_record.txt", net, x)
    run_example("save_model", {"calibration_model": model.eval(), "input_batch": x, "batch_num": range(2)})
    assert torch.allclose(run(folder / "results" / "model_fake_quant_model.onnx", x), infer(net, x), atol=0.1)


class NetWithHead(Net):
    """A second head, which only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + self.head(self.left(self.stem(x))).mean((2, 3)) if self.training else y


@pytest.mark.usefixtures("folder")
def test_a_head_that_only_training_uses() -> None:
    """What it reads keeps its channels, and the rest is pruned."""
    x = torch.randn(SHAPE)
    model = amct.create_prune_retrain_model(NetWithHead(), x, "prune_cfg.cfg", "record.txt")
    assert model.left.out_channels == 16
    train(model)
    amct.save_prune_retrain_model(model, "m", x)


# ---- restoring ----


def _prepare(kind: str, net: nn.Module, x: torch.Tensor) -> nn.Module:
    """The module of a created job; its files are named after the kind."""
    if kind == "quant":
        amct.create_quant_retrain_config("config.json", net, x)
        return amct.create_quant_retrain_model("config.json", net, f"{kind}.txt", x)
    if kind in {"prune", "sparse"}:
        return amct.create_prune_retrain_model(net, x, f"{kind}_cfg.cfg", f"{kind}.txt")
    return amct.create_compressed_retrain_model(net, x, f"{kind}_cfg.cfg", f"{kind}.txt")


def _restore(kind: str, x: torch.Tensor) -> nn.Module:
    if kind == "quant":
        return amct.restore_quant_retrain_model("config.json", Net(), f"{kind}.txt", x, f"{kind}.pth", "net")
    restore = amct.restore_compressed_retrain_model
    if kind in {"prune", "sparse"}:
        restore = amct.restore_prune_retrain_model
    return restore(Net(), x, f"{kind}.txt", f"{kind}_cfg.cfg", f"{kind}.pth", "net")


def _save(kind: str, model: nn.Module, x: torch.Tensor, save_path: str) -> None:
    if kind == "quant":
        amct.save_quant_retrain_model("config.json", model, f"{kind}.txt", save_path, x)
    elif kind in {"prune", "sparse"}:
        amct.save_prune_retrain_model(model, save_path, x)
    else:
        amct.save_compressed_retrain_model(model, f"{kind}.txt", save_path, x)


KINDS = ["prune", "sparse", "quant", "compressed", "sparse_compressed"]
SAVED = ("deploy_model.onnx", "fake_quant_model.onnx")


def _restore_elsewhere(kind: str, target: str, folder: Path, x: Any) -> Any:
    """What a new process does: restores, infers, saves."""
    os.chdir(folder)
    amct.connect(target)
    inputs = torch.from_numpy(x)
    model = _restore(kind, inputs)
    output = infer(model, inputs)
    _save(kind, model, inputs, "again/m")
    return output.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_restore_in_a_new_process(kind: str, server: ServerProcess, folder: Path) -> None:
    x = torch.randn(SHAPE)
    model = _prepare(kind, trained_net(), x)
    train(model)
    torch.save({"net": model.state_dict(), "epoch": 3}, f"{kind}.pth")
    expected = infer(model, x)
    _save(kind, model, x, "first/m")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        output = pool.apply(_restore_elsewhere, (kind, server.target, folder, x.numpy()))
    assert np.array_equal(output, expected.numpy())
    for name in SAVED:
        assert (folder / "again" / f"m_{name}").read_bytes() == (folder / "first" / f"m_{name}").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_and_pruned_weights_reach_the_files(kind: str, folder: Path) -> None:
    x = torch.randn(SHAPE)
    model = _prepare(kind, trained_net(), x)
    train(model)
    expected = infer(model, x)
    before = copy.deepcopy(model.state_dict())
    _save(kind, model, x, "out/m")
    after = model.state_dict()
    assert all(torch.allclose(value, after[name], 0, 0, equal_nan=True) for name, value in before.items())
    assert torch.allclose(run(folder / "out" / "m_fake_quant_model.onnx", x), expected, atol=2e-2)
    report = json.loads((folder / "out" / "m_report.json").read_text())
    assert report


# ---- interrupted training ----

STEPS = 6
KILLED_AFTER = 3


def _training_process(kind: str, target: str, folder: Path, kill: bool) -> None:
    """A training script: goes on from its last checkpoint, writes one after each step, saves at the end."""
    os.chdir(folder)
    amct.connect(target)
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    checkpoint = Path(f"{kind}.pth")
    first = 0
    if checkpoint.exists():
        model = _restore(kind, x)
        first = torch.load(checkpoint, weights_only=True)["step"]
    else:
        model = _prepare(kind, trained_net(), x)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    if first:
        optimizer.load_state_dict(torch.load(checkpoint, weights_only=True)["optimizer"])
    model.train()
    for step in range(first, STEPS):
        torch.manual_seed(step)
        x = torch.randn(SHAPE)
        optimizer.zero_grad()
        (model(x) - x.mean((2, 3)).sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        state = {"net": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
        torch.save(state, "new.pth")
        Path("new.pth").replace(checkpoint)
        if kill and step + 1 == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
    infer(model, x)
    _save(kind, model, x, "out/m")


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_process_goes_on(kind: str, server: ServerProcess, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")

    def run_process(job: Path, kill: bool) -> int | None:
        process = context.Process(target=_training_process, args=(kind, server.target, job, kill))
        process.start()
        process.join()
        return process.exitcode

    jobs = [folder / "whole", folder / "killed"]
    for job in jobs:
        job.mkdir()
        for cfg in folder.glob("*.cfg"):
            shutil.copy(cfg, job)
    assert run_process(jobs[0], kill=False) == 0
    assert run_process(jobs[1], kill=True) == -signal.SIGKILL
    assert not (jobs[1] / "out").exists()
    assert run_process(jobs[1], kill=False) == 0
    for name in SAVED:
        assert (jobs[1] / "out" / f"m_{name}").read_bytes() == (jobs[0] / "out" / f"m_{name}").read_bytes()


# ---- the server's own pruned model ----


def test_the_pruned_module_and_the_pruned_model_agree(server: ServerProcess, folder: Path) -> None:
    x = torch.randn(SHAPE)
    net = trained_net()
    module = amct.create_prune_retrain_model(net, x, "prune_cfg.cfg", "record.txt")
    amct.export_for_quantization(net, folder / "net.onnx", x)
    amct.write_manifest(net, folder / "modules.json")
    with Client(server.target) as client:
        pruned = client.create_prune_retrain_model_files(
            folder / "net.onnx",
            folder / "prune_cfg.cfg",
            folder / "again.txt",
            str(folder / "m"),
            module_manifest=folder / "modules.json",
        )
    assert (folder / "again.txt").read_text() == (folder / "record.txt").read_text()
    assert pruned.pruned_model is not None
    assert module.left.out_channels == 8
    assert torch.allclose(run(pruned.pruned_model, x), infer(module, x), rtol=1e-5, atol=1e-5)


# ---- several jobs, and a server that goes away ----


def test_jobs_in_turns(folder: Path) -> None:
    """Two jobs in one process give what each gives alone."""
    x = torch.randn(SHAPE)
    alone = []
    for seed in (1, 2):
        job = folder / f"alone{seed}"
        shutil.copytree(folder, job, ignore=shutil.ignore_patterns("alone*"))
        os.chdir(job)
        model = _prepare("compressed", trained_net(seed), x)
        train(model)
        infer(model, x)
        _save("compressed", model, x, "m")
        alone.append(job)
    jobs = []
    for seed in (1, 2):
        job = folder / f"together{seed}"
        shutil.copytree(alone[seed - 1], job)
        os.chdir(job)
        jobs.append((job, seed, _prepare("compressed", trained_net(seed), x), torch.get_rng_state()))
    for job, _, model, state in jobs:
        os.chdir(job)
        torch.set_rng_state(state)
        train(model)
    for job, _, model, _ in jobs:
        os.chdir(job)
        infer(model, x)
    for (job, _, model, _), reference in zip(jobs, alone, strict=True):
        os.chdir(job)
        _save("compressed", model, x, "again")
        for name in SAVED:
            assert (job / f"again_{name}").read_bytes() == (reference / f"m_{name}").read_bytes()


def _job(target: str, folder: Path, seed: int) -> list[bytes]:
    """A whole job in a folder of its own."""
    folder.mkdir()
    (folder / "c.cfg").write_text(PRUNE + QUANT)
    session = amct.Session(target)
    net = trained_net(seed)
    x = torch.randn(SHAPE)
    model = session.create_compressed_retrain_model(net, x, f"{folder}/c.cfg", f"{folder}/r.txt")
    train(model)
    infer(model, x)
    session.save_compressed_retrain_model(model, f"{folder}/r.txt", f"{folder}/m", x)
    return [(folder / f"m_{name}").read_bytes() for name in SAVED]


def test_jobs_at_once(server: ServerProcess, tmp_path: Path) -> None:
    alone = [_job(server.target, tmp_path / f"alone{seed}", seed) for seed in range(2)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        jobs = [(server.target, tmp_path / f"job{seed}", seed) for seed in range(2)]
        together = pool.starmap(_job, jobs)
    assert together == alone


@pytest.mark.skipif("MODELPRESS_TEST_TARGET" in os.environ, reason="needs a server of its own")
@pytest.mark.parametrize("kind", ["prune", "compressed"])
def test_the_server_restarts_in_between(kind: str, folder: Path) -> None:
    x = torch.randn(SHAPE)
    (folder / "server").mkdir()
    with ServerProcess(folder / "server") as server:
        amct.connect(server.target)
        model = _prepare(kind, trained_net(), x)
        server.kill()
        train(model)
        expected = infer(model, x)
        torch.save({"net": model.state_dict()}, f"{kind}.pth")
        server.start()
        _save(kind, model, x, "out/m")
        assert torch.equal(infer(_restore(kind, x), x), expected)


# ---- the reference's bytes ----


def golden_net(case: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("net", case / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.Net()
    with np.load(case / "init_state.npz") as state:
        net.load_state_dict({name: torch.from_numpy(state[name]) for name in state.files})
    return net


def arrays_of(data: Any, pattern: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(data[name]) for name in sorted(data.files) if re.fullmatch(pattern, name))


def normalized(file: bytes) -> Any:
    """Without what is random in the reference, or depends on how often torch has exported."""
    model = onnx.load_from_string(file)
    for node in model.graph.node:
        # torch numbers tensors that it computes; the reference exports again when the batch norms are gone.
        for i, name in enumerate(node.input):
            node.input[i] = re.sub(r"^onnx::MatMul_\d+", "onnx::MatMul", name)
        if node.op_type.startswith("Basic"):  # recurrent layers of the device
            node.attribute.sort(key=lambda attribute: attribute.name)
    for tensor in model.graph.initializer:
        tensor.name = re.sub(r"^onnx::MatMul_\d+", "onnx::MatMul", tensor.name)
    return model


def parsed_record(text: str) -> Any:
    return text_format.Parse(text, record_pb2.ScaleOffsetRecord())


@pytest.mark.parametrize("name", [case for case in GOLDEN_CASES if case != "q15_fp16mode"])
def test_golden_flow(name: str, server: ServerProcess, folder: Path) -> None:
    """From the float network and the reference's checkpoint after training to the reference's files, byte for byte.

    Of q15 the reference ignores a part of the configuration (docs/spec/qat.md D-10).
    """
    case = GOLDEN_QAT / name
    description = json.loads((case / "case.json").read_text())
    flow = description["flow"]
    compressed = flow["api"] == "compressed"
    config = str(case / ("quant.cfg" if compressed else "config.json"))
    reference = amct.Session(server.target, reference_defects=True)
    # The reference initialises clip values again after restoring (D-2); most cases have no restoring.
    restoring = reference if flow["restore_before_eval"] else amct.Session(server.target)
    data = np.load(case / "train.npz")
    dummy = arrays_of(data, "dummy_.*")
    net = golden_net(case)
    with np.load(case / "state.npz") as state:
        torch.save({key: torch.from_numpy(state[key]) for key in state.files}, "c.pth")
        keys = state.files
    expected_record = (case / "record.txt").read_text()
    if compressed:
        created = reference.create_compressed_retrain_model(net, dummy, config, "record.txt")
        assert Path("record.txt").read_text() == (case / "record_create.txt").read_text()
        trained = parsed_record(expected_record)  # as it is before the first evaluation, with masks
        del trained.record[:]
        Path("record.txt").write_text(text_format.MessageToString(trained))
        model = restoring.restore_compressed_retrain_model(net, dummy, "record.txt", config, "c.pth")
    else:
        created = reference.create_quant_retrain_model(config, net, "record.txt", dummy)
        model = restoring.restore_quant_retrain_model(config, net, "record.txt", dummy, "c.pth")
    assert list(created.state_dict()) == list(model.state_dict()) == keys
    model.eval()
    with torch.no_grad():
        for _ in range(flow["eval_inferences"]):
            model(*arrays_of(data, "eval_.*"))
    record = Path("record.txt").read_text()
    if flow["restore_before_eval"]:  # initialised by activations, whose last bits depend on libraries
        found, expected = ([float(number) for number in NUMBER.findall(text)] for text in (record, expected_record))
        assert np.allclose(found, expected, rtol=1e-3)
        Path("record.txt").write_text(expected_record)
    elif name == "c03_24_quant_freq2":  # the reference's record keeps the first mask (D-16)
        assert parsed_record(record).record == parsed_record(expected_record).record
    else:
        assert record == expected_record
    if any(isinstance(module, nn.RNNBase) for module in net.modules()):
        created.load_state_dict(torch.load("c.pth"))
        model = created  # the reference saves recurrent layers as they were before the training (D-8)
    names = flow["save"]
    labels_of = names["dynamic_axes"] or {}
    axes = {value: {int(axis): label for axis, label in labels.items()} for value, labels in labels_of.items()}
    options = (dummy, names["input_names"], names["output_names"], axes)
    if compressed:
        reference.save_compressed_retrain_model(model, "record.txt", "out/", *options)
    else:
        reference.save_quant_retrain_model(config, model, "record.txt", "out/", *options)
    if torch.__version__ == description["reference"]["torch"]:
        for file in ("deploy", "fake_quant"):
            written = (folder / "out" / f"{file}_model.onnx").read_bytes()
            golden = (case / f"{file}.onnx").read_bytes()
            assert written == golden or normalized(written) == normalized(golden)


def test_auto_channel_prune_search(folder: Path) -> None:
    (folder / "search.cfg").write_text(
        "compress_ratio: 1.5\nascend_optimized: false\nmax_prune_ratio: 0.5\ntest_iteration: 1\n"
    )
    net = trained_net()
    data = [torch.randn(SHAPE), torch.randn(2, 4)]
    amct.auto_channel_prune_search(net, "search.cfg", data, "found.cfg", "TaylorLossSensitivity", "GreedySearch")
    assert "prune_ratio" in Path("found.cfg").read_text()
    pruned = amct.create_prune_retrain_model(net, (data[0],), "found.cfg", "record.txt")
    infer(pruned)
