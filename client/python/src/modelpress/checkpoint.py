"""Checkpoints of torch.save as safetensors, the form in which the service takes weights."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelpress.local_files import require_file


def convert_checkpoint(checkpoint: Path, target: Path, state_dict_name: str = "") -> None:
    """Writes the tensors of a checkpoint to a safetensors file.

    Entries of nested dictionaries get their keys joined by "."; entries that are no tensors (an epoch, an optimizer's
    settings) are left out. Nothing of the checkpoint is executed.

    Args:
        checkpoint: what torch.save wrote: a state_dict, or a dictionary that has one.
        target: the file to write.
        state_dict_name: only the tensors below this key; "": all.

    Raises:
        ValueError: it is no such checkpoint (a pickled module, say), or has no tensors at state_dict_name.
        ModuleNotFoundError: torch or safetensors is not installed.
    """
    require_file(checkpoint, "weights")
    try:
        import torch
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading the checkpoint {checkpoint} needs {error.name}: install modelpress[torch], or give weights as "
            ".safetensors"
        ) from error
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"weights: {checkpoint} is no checkpoint of tensors alone (of a module, save its state_dict()): {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"weights: {checkpoint} holds a {type(content).__name__}, not a dictionary of tensors")
    tensors: dict[str, Any] = {}
    storages: set[int] = set()
    for name, value in _entries(content):
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            continue
        if state_dict_name and not name.startswith(f"{state_dict_name}."):
            continue
        if name in tensors:
            raise ValueError(f"weights: {checkpoint} has two tensors {name!r}")
        # The format has no shared storage: of tied weights each gets its own.
        storage = value.untyped_storage().data_ptr()
        tensors[name] = value.detach().clone() if storage in storages else value.detach()
        tensors[name] = tensors[name].contiguous()
        storages.add(storage)
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:10])
        below = f" at state_dict_name {state_dict_name!r}" if state_dict_name else ""
        raise ValueError(f"weights: {checkpoint} has no tensors{below}; its keys: {keys}")
    save_file(tensors, target)


def _entries(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
