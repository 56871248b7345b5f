"""Cuts of golden cases' networks, as rewrite plans have them."""

from typing import Any

from google.protobuf import json_format
from modelpress.v1 import rewrite_plan_pb2
from qat_cases import Case
from torch import nn


def cuts_of(*cuts: dict[str, Any]) -> list[Any]:
    """Messages, as a plan has them."""
    return [json_format.ParseDict(cut, rewrite_plan_pb2.ModuleCut()) for cut in cuts]


def cut_tensor(name: str, axis: int, kept: list[int], size: int, groups: int = 1) -> dict[str, Any]:
    return {"name": name, "axis": axis, "kept": kept, "size": size, "groups": groups}


def filter_cuts(case: Case, net: nn.Module) -> list[Any]:
    """The cuts of the case's records."""
    cuts: list[dict[str, Any]] = []
    for record in case.filter_prune:
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
