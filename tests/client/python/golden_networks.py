"""The torch networks of golden cases, and cuts of them."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import json_format
from modelpress.v1 import rewrite_plan_pb2
from torch import nn

GOLDEN = Path(os.environ["MODELPRESS_SOURCE_DIR"]) / "tests" / "golden"


def cuts_of(*cuts: dict[str, Any]) -> list[Any]:
    """Messages, as a plan has them."""
    return [json_format.ParseDict(cut, rewrite_plan_pb2.ModuleCut()) for cut in cuts]


def cut_tensor(name: str, axis: int, kept: list[int], size: int, groups: int = 1) -> dict[str, Any]:
    return {"name": name, "axis": axis, "kept": kept, "size": size, "groups": groups}


def golden_net(case: str) -> nn.Module:
    """The float network of a golden case of quantization-aware training."""
    folder = GOLDEN / "qat" / case
    spec = importlib.util.spec_from_file_location("net", folder / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.Net()
    with np.load(folder / "init_state.npz") as state:
        net.load_state_dict({name: torch.from_numpy(state[name]) for name in state.files})
    return net


def filter_cuts(case: str, net: nn.Module) -> list[Any]:
    """The cuts of a golden case's plan.json, which has records."""
    plan = json.loads((GOLDEN / "qat" / case / "plan.json").read_text())
    cuts: list[dict[str, Any]] = []
    for record in plan.get("filter_prune", []):
        for role in ("producer", "consumer"):
            for entry in record[role]:
                module = net.get_submodule(entry["name"])
                size = entry["end"]
                kept = [i for i in range(size) if i not in entry["prune_index"]]
                axis = 1 if role == "consumer" and entry["type"] == "Conv" else 0
                names = ["weight"] if axis == 1 else ["weight", "bias", "running_mean", "running_var"]
                attribute = {"producer": "out_channels", "consumer": "in_channels"}[role]
                if entry["type"] == "BatchNormalization":
                    attribute = "num_features"
                tensors = [cut_tensor(name, axis, kept, size) for name in names]
                attributes = {attribute: len(kept)}
                cut = {"module": entry["name"], "type": type(module).__name__}
                cuts.append(cut | {"tensors": tensors, "attributes": attributes})
    return cuts_of(*cuts)
