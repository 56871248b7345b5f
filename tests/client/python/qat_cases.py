"""Replays the cases of tests/golden/qat: networks, plans, training."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import json_format, text_format
from modelpress.amct import record_pb2
from modelpress.torch_record import RecordFile
from modelpress.torch_wrappers import wrap
from modelpress.v1 import rewrite_plan_pb2
from torch import nn

GOLDEN = Path(os.environ["MODELPRESS_SOURCE_DIR"]) / "tests" / "golden" / "qat"
FLOWS = sorted(path.name for path in GOLDEN.glob("[qc][0-9]*"))


# The golden files were made with Debian's torch and its plain BLAS (package libblas3); with these, on one thread, they
# are met bit by bit. Another BLAS adds in another order, and training goes apart where a value lies on a step's edge.
_MAPS = Path("/proc/self/maps")
EXACT = _MAPS.exists() and "/blas/libblas.so" in _MAPS.read_text() and "+debian" in torch.__version__


def assert_numbers(found: Any, expected: Any, name: str = "", *, atol: float = 2e-5) -> None:
    """The same numbers, as exactly as the libraries in use allow."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, name
    if EXACT:
        np.testing.assert_array_equal(found, expected, err_msg=name)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=atol, err_msg=name)


def assert_records(found: str, expected: str) -> None:
    """The same record files, text for text where numbers are the same."""
    if EXACT:
        assert found == expected
    numbers = re.compile(r"(?<=: )-?[0-9.]+(?:e-?[0-9]+)?$", re.MULTILINE)
    assert numbers.sub("", found) == numbers.sub("", expected)
    values = [[float(number) for number in numbers.findall(text)] for text in (found, expected)]
    assert_numbers(values[0], values[1])


class Case:
    """A flow case: files of its folder, and what they describe."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDEN / name
        self.info = json.loads((self.folder / "case.json").read_text())
        self.train = {key: torch.from_numpy(value) for key, value in self.arrays("train").items()}
        plan = json.loads((self.folder / "plan.json").read_text())
        self.filter_prune = plan.pop("filter_prune", [])
        config = self.folder / "config.json"
        if config.exists() and "fakequant_precision_mode" in json.loads(config.read_text()):
            plan["force_fp16_quant"] = True
        self.plan = json_format.ParseDict(plan, rewrite_plan_pb2.RewritePlan())

    def arrays(self, name: str) -> dict[str, Any]:
        with np.load(self.folder / f"{name}.npz") as arrays:
            return dict(arrays)

    def record(self) -> record_pb2.ScaleOffsetRecord:
        """The record that create leaves."""
        record = record_pb2.ScaleOffsetRecord()
        created = self.folder / "record_create.txt"
        if created.exists():
            text_format.Parse(created.read_text(), record)
        return record

    def float_net(self) -> nn.Module:
        """The float network."""
        name = f"net_{self.folder.name}"
        spec = importlib.util.spec_from_file_location(name, self.folder / "net.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where pickles look for it
        spec.loader.exec_module(module)
        net: nn.Module = module.Net()
        net.load_state_dict({key: torch.from_numpy(value) for key, value in self.arrays("init_state").items()})
        return net

    def net(self) -> nn.Module:
        """The float network, cut."""
        net = self.float_net()
        for group in self.filter_prune:
            for node in group["producer"]:
                _cut(net.get_submodule(node["name"]), 0, node["prune_index"])
            for node in group["consumer"]:
                module = net.get_submodule(node["name"])
                _cut(module, 0 if isinstance(module, nn.BatchNorm2d) else 1, node["prune_index"])
        return net

    def wrapped(self, path: Path, *, reference_defects: bool) -> nn.Module:
        """The network, wrapped, in training mode; its record goes to `path`."""
        net = self.net()
        wrap(net, self.plan, RecordFile(path, self.record()), reference_defects=reference_defects)
        return net.train()

    def optimizer(self, model: nn.Module) -> Any:
        flow = self.info["flow"]
        return getattr(torch.optim, flow["optimizer"])(model.parameters(), **flow["optimizer_args"])

    def step(self, model: nn.Module, optimizer: Any, index: int) -> float:
        """One training step; its loss."""
        optimizer.zero_grad()
        loss = ((model(*self.inputs(f"x{index}")) - self.train[f"t{index}"]) ** 2).mean()
        loss.backward()
        optimizer.step()
        return float(loss)

    def inputs(self, prefix: str) -> list[torch.Tensor]:
        keys = sorted(key for key in self.train if key.startswith(f"{prefix}_"))
        return [self.train[key] for key in keys]


def _cut(module: nn.Module, axis: int, removed: list[int]) -> None:
    """Cuts output channels (axis 0) with everything that has one entry for each, or input channels (axis 1)."""
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    for name, tensor in tensors.items():
        if tensor.dim() > axis and (axis == 0 or name == "weight"):
            kept = [index for index in range(tensor.shape[axis]) if index not in removed]
            tensor.data = tensor.data.index_select(axis, torch.tensor(kept))
    if isinstance(module, nn.BatchNorm2d):
        module.num_features -= len(removed)
