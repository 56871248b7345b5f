"""Trains a small residual network, compresses it in every way that has retraining, and prints what each costs.

Without arguments: scikit-learn's digits. With --data: CIFAR-10 from DATA/cifar10 (train_8000.bin, test_4000.bin: rows
of a label byte and 3,072 pixel bytes). Training runs in this process; the service does the rest, through
modelpress.torch. A modelpressd is started unless --target names one.
"""

import argparse
import contextlib
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import modelpress.torch as amct
import numpy as np
import torch
from demo import run as run_onnx
from demo import server
from folder_data import Samples
from torch import nn
from torch.nn import functional

BATCH = 64
CALIBRATION_BATCH = 100
METHODS = [
    "prune30",
    "prune50",
    "prune70",
    "sparse24",
    "ptq",
    "qat8",
    "qat4",
    "prune50+qat8",
    "sparse24+qat8",
]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a projection where the shape changes."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] to [n, outputs, h / stride, w / stride]."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: torch.Tensor = self.relu2(y + self.shortcut(x))
        return result


class ResidualNet(nn.Module):
    """Images to logits of ten classes."""

    def __init__(self, image_channels: int, widths: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(image_channels, widths[0], 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks = [Residual(widths[max(i - 1, 0)], width, stride=1 if i == 0 else 2) for i, width in enumerate(widths)]
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, 10]."""
        x = self.blocks(self.relu(self.bn(self.stem(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


class Data(NamedTuple):
    """Images float32 [n, c, h, w] and their classes."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @property
    def sample(self) -> torch.Tensor:
        """What the network is traced with."""
        return self.test_images[:1]


class Task(NamedTuple):
    """What is trained on what, and for how long."""

    data: Data
    widths: Sequence[int]
    stride: int  # of the first layer
    epochs: int  # of the float network
    retraining_epochs: int

    def new_network(self) -> nn.Module:
        """An untrained one."""
        return ResidualNet(self.data.train_images.shape[1], self.widths, self.stride)


def digits_task() -> Task:
    """scikit-learn's digits; half a minute in all."""
    import digits_data

    return Task(Data(*(torch.from_numpy(array) for array in digits_data.load())), [16, 32], 1, 15, 3)


def cifar10_task(folder: Path) -> Task:
    """CIFAR-10."""

    def read(file: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.fromfile(folder / "cifar10" / file, dtype=np.uint8).reshape(-1, 3073)
        images = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32)) / 255
        return (images - 0.45) / 0.25, torch.from_numpy(rows[:, 0].astype(np.int64))

    return Task(Data(*read("train_8000.bin"), *read("test_4000.bin")), [16, 32, 64], 2, 20, 4)


def train(model: nn.Module, data: Data, epochs: int, rate: float) -> None:
    """Some epochs with a falling learning rate, from a fixed seed."""
    torch.manual_seed(0)
    model.train()
    steps = epochs * (len(data.train_images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(epochs):
        order = torch.randperm(len(data.train_images))
        for step in range(len(data.train_images) // BATCH):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            images = data.train_images[chosen]
            if images.shape[-1] > 8 and step % 2:  # mirrored photos are photos, mirrored digits are not
                images = images.flip(-1)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), data.train_labels[chosen]).backward()
            optimizer.step()
            schedule.step()


def outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits in eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(500)])


def accuracy(model: nn.Module, data: Data) -> float:
    """Share of test images that are classified right."""
    return float((outputs(model, data.test_images).argmax(1) == data.test_labels).float().mean())


def macs(model: nn.Module, sample: torch.Tensor) -> int:
    """Multiplications of the convolutions and Linear layers for one image."""
    total = 0

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in layers]
    outputs(model, sample)
    for hook in hooks:
        hook.remove()
    return total


class Row(NamedTuple):
    """One line of the table; accuracies are shares, None where there is no such thing."""

    method: str
    before: float | None  # right after create, without retraining
    after: float
    fake_quant: float | None  # of the saved model in ONNX Runtime
    difference: float | None  # largest between its outputs and those of the module, relative to the largest output
    macs: int
    bytes: int  # of the deploy model
    seconds: float
    restored: bool | None = None  # whether a new process, from checkpoint and record file, has the same outputs


def definition(method: str) -> str:
    """The simple configuration of a method."""
    parts = []
    for part in method.split("+"):
        if part.startswith("prune"):
            ratio = int(part.removeprefix("prune")) / 100
            parts.append(
                f"prune_config {{ filter_pruner {{ balanced_l2_norm_filter_prune {{ prune_ratio: {ratio} "
                "ascend_optimized: false } } }"
            )
        elif part == "sparse24":
            parts.append("prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: 0 } } }")
        else:
            weights = "INT4" if part == "qat4" else "INT8"
            parts.append(
                "retrain_data_quant_config { ulq_quantize { dst_type: INT8 } } "
                f"retrain_weight_quant_config {{ arq_retrain {{ dst_type: {weights} }} }}"
            )
    return "\n".join(parts)


def create(method: str, model: nn.Module, sample: torch.Tensor, cfg: Path, record: Path) -> nn.Module:
    """The module to go on training with."""
    cfg.write_text(definition(method), encoding="utf-8")
    if "+" in method:
        return amct.create_compressed_retrain_model(model, sample, str(cfg), str(record))
    if method.startswith("qat"):
        config = cfg.with_suffix(".json")
        amct.create_quant_retrain_config(str(config), model, sample, str(cfg))
        return amct.create_quant_retrain_model(str(config), model, str(record), sample)
    return amct.create_prune_retrain_model(model, sample, str(cfg), str(record))


def restore(
    method: str, model: nn.Module, sample: torch.Tensor, cfg: Path, record: Path, checkpoint: Path
) -> nn.Module:
    """The same from a checkpoint."""
    if "+" in method:
        return amct.restore_compressed_retrain_model(model, sample, str(record), str(cfg), str(checkpoint), "model")
    if method.startswith("qat"):
        config = cfg.with_suffix(".json")
        return amct.restore_quant_retrain_model(str(config), model, str(record), sample, str(checkpoint), "model")
    return amct.restore_prune_retrain_model(model, sample, str(record), str(cfg), str(checkpoint), "model")


def save(method: str, model: nn.Module, sample: torch.Tensor, cfg: Path, record: Path, save_path: Path) -> None:
    """Writes both models."""
    names: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamic_axes": {"images": {0: "n"}, "logits": {0: "n"}},
    }
    if "+" in method:
        amct.save_compressed_retrain_model(model, str(record), str(save_path), sample, **names)
    elif method.startswith("qat"):
        config = str(cfg.with_suffix(".json"))
        amct.save_quant_retrain_model(config, model, str(record), str(save_path), sample, **names)
    else:
        amct.save_prune_retrain_model(model, str(save_path), sample, **names)


def evaluate_saved(model: nn.Module, data: Data, save_path: Path) -> tuple[float, float, int]:
    """Accuracy of the fake-quant model in ONNX Runtime, its largest difference, bytes of the deploy model."""
    fake_quant = save_path.with_name(f"{save_path.name}_fake_quant_model.onnx")
    deploy = save_path.with_name(f"{save_path.name}_deploy_model.onnx")
    saved = torch.from_numpy(run_onnx(fake_quant, Samples({"images": data.test_images.numpy()}, None)))
    own = outputs(model, data.test_images)
    right = float((saved.argmax(1) == data.test_labels).float().mean())
    return right, float((saved - own).abs().max() / own.abs().max()), deploy.stat().st_size


def retrain(method: str, network: nn.Module, task: Task, folder: Path) -> Row:
    """Create, retrain, save, and restore in a new process."""
    begin = time.monotonic()
    sample = task.data.sample
    cfg, record, save_path = folder / f"{method}.cfg", folder / f"{method}_record.txt", folder / method
    model = create(method, network, sample, cfg, record)
    # Ranges and masks come from the first forwards: show some training images before the first look at the accuracy.
    with torch.no_grad():
        model(task.data.train_images[:CALIBRATION_BATCH])
    before = accuracy(model, task.data)
    train(model, task.data, task.retraining_epochs, rate=0.02)
    after = accuracy(model, task.data)  # this inference also completes the record file
    save(method, model, sample, cfg, record, save_path)
    seconds = time.monotonic() - begin
    right, difference, size = evaluate_saved(model, task.data, save_path)

    torch.save({"model": model.state_dict()}, folder / f"{method}.pth")
    np.save(folder / f"{method}_outputs.npy", outputs(model, task.data.test_images[:200]).numpy())
    torch.save(network.state_dict(), folder / "float.pth")
    return Row(method, before, after, right, difference, macs(model, sample), size, seconds)


def same_outputs_after_restore(method: str, task: Task, folder: Path) -> bool:
    """For a new process: restores the module from what `retrain` left, and compares its outputs."""
    network = task.new_network()
    network.load_state_dict(torch.load(folder / "float.pth", weights_only=True))
    cfg, record = folder / f"{method}.cfg", folder / f"{method}_record.txt"
    copied = folder / f"{method}_restored_record.txt"  # restore_quant_retrain_model empties the file that it is given
    copied.write_bytes(record.read_bytes())
    model = restore(method, network, task.data.sample, cfg, copied, folder / f"{method}.pth")
    own = outputs(model, task.data.test_images[:200]).numpy()
    return bool(np.array_equal(own, np.load(folder / f"{method}_outputs.npy")))


def post_training(network: nn.Module, task: Task, folder: Path) -> Row:
    """Quantizes without retraining."""
    begin = time.monotonic()
    names: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamic_axes": {"images": {0: "n"}, "logits": {0: "n"}},
    }
    config, modified, record = (str(folder / name) for name in ("ptq.json", "ptq.onnx", "ptq_record.txt"))
    sample = task.data.sample
    amct.create_quant_config(config, network, sample, batch_num=1)
    model = amct.quantize_model(config, modified, record, network, sample, **names)
    with torch.no_grad():
        model(task.data.train_images[:CALIBRATION_BATCH])
    amct.save_model(modified, record, str(folder / "ptq"))
    seconds = time.monotonic() - begin
    right, difference, size = evaluate_saved(network, task.data, folder / "ptq")
    return Row("ptq", None, right, right, difference, macs(network, sample), size, seconds)


def print_table(rows: Sequence[Row]) -> None:
    """Markdown."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.2%}"

    print(
        "| method | before retraining | after | fake_quant in ONNX Runtime | largest difference | MACs | deploy model "
        "| seconds | restored equal |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        restored = {None: "", True: "yes", False: "NO"}[row.restored]
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        print(
            f"| {row.method} | {percent(row.before)} | {percent(row.after)} | {percent(row.fake_quant)} | {difference} "
            f"| {row.macs:,} | {row.bytes:,} B | {row.seconds:.1f} | {restored} |"
        )


def compress(task: Task, methods: Sequence[str], folder: Path, again: Sequence[str]) -> list[Row]:
    """All of it. `again` is the command line that starts this program for a restore, less what to restore."""
    torch.manual_seed(0)
    network = task.new_network()
    begin = time.monotonic()
    train(network, task.data, task.epochs, rate=0.1)
    seconds = time.monotonic() - begin
    network.eval()
    path = folder / "float.onnx"
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    amct.export(network, path, task.data.sample, ["images"], ["logits"], axes)
    right = accuracy(network, task.data)
    rows = [Row("float", None, right, None, None, macs(network, task.data.sample), path.stat().st_size, seconds)]
    for method in methods:
        if method == "ptq":
            rows.append(post_training(network, task, folder))
            continue
        row = retrain(method, copy.deepcopy(network), task, folder)
        new_process = subprocess.run([*again, "--restore", method], check=False, capture_output=True, text=True)
        if new_process.returncode != 0:
            raise SystemExit(f"restoring {method} failed:\n{new_process.stderr}")
        rows.append(row._replace(restored=json.loads(new_process.stdout.splitlines()[-1])))
    return rows


@contextlib.contextmanager
def _target(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="modelpress-retrain-") as folder, server(Path(folder)) as target:
        yield target


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar10/")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="which rows (all)")
    parser.add_argument("--epochs", type=int, help="of the float network")
    parser.add_argument("--retraining_epochs", type=int, help="of each method")
    parser.add_argument("--target", help="host:port of a server")
    parser.add_argument(
        "--out", type=Path, default=Path("modelpress-retrain"), help="where the files go (./modelpress-retrain)"
    )
    parser.add_argument("--restore", help=argparse.SUPPRESS)  # a method, in the new process
    arguments = parser.parse_args()
    task = digits_task() if arguments.data is None else cifar10_task(arguments.data)
    task = task._replace(
        epochs=arguments.epochs or task.epochs,
        retraining_epochs=arguments.retraining_epochs or task.retraining_epochs,
    )
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with _target(arguments.target) as target:
        amct.connect(target)
        if arguments.restore:
            print(json.dumps(same_outputs_after_restore(arguments.restore, task, out)))
            return
        again = [sys.executable, __file__, "--target", target, "--out", str(out)]
        again += ["--data", str(arguments.data)] if arguments.data else []
        rows = compress(task, arguments.methods, out, again)
    print_table(rows)


if __name__ == "__main__":
    main()
