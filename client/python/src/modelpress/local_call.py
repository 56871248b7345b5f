"""What a call on local files sends, and where its results go."""

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpress.checkpoint import convert_checkpoint
from modelpress.external_data import external_files
from modelpress.local_files import SavePath, require_file
from modelpress.parameters import LocalData, LocalPath

_MAX_DATA_FILES = 10_000  # of a folder; the server pins every file with the operation


@dataclass
class LocalCall:
    """Local paths go in, names in the workspace come out; every argument has a folder of its own there.

    Attributes:
        inputs: (name in the workspace, local file), in the order to send them.
        absent: names of inputs that are not there, nor may be in a kept workspace.
        places: where results go: name in the workspace -> local file, or, with "/" at the end of the name, a folder.
    """

    inputs: list[tuple[str, Path]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    places: dict[str, Path] = field(default_factory=dict)

    def send_model(self, path: LocalPath, argument: str, folder: str = "model") -> str:
        """A model and the files it keeps tensors in."""
        model = require_file(Path(path), argument)
        for location in external_files(model):
            external = require_file(model.parent / location, f"external data of {model}")
            self.inputs.append((os.path.normpath(f"{folder}/{location}"), external))
        return self.send(model, argument, folder)

    def send(self, path: LocalPath, argument: str, folder: str) -> str:
        """One file."""
        local = require_file(Path(path), argument)
        self.inputs.append((f"{folder}/{local.name}", local))
        return self.inputs[-1][0]

    def send_data(self, data: LocalData, argument: str, scratch: Path) -> str:
        """Calibration data; arrays are first written to a file in `scratch`."""
        if not isinstance(data, str | os.PathLike):
            path = scratch / f"{argument}.npz"
            write_npz(path, data, argument)
            return self.send(path, argument, argument)
        local = Path(data)
        if not local.is_dir():
            return self.send(local, argument, argument)
        files = _list_folder(local)
        if not files:
            raise ValueError(f"{argument}: the folder {local} holds no files")
        # Named after what is in it: a kept workspace may hold files of an earlier call, which must not be taken for
        # this one's.
        folder = f"{argument}-{hashlib.sha256(os.fsencode(chr(10).join(files))).hexdigest()[:16]}"
        self.inputs += [(f"{folder}/{name}", require_file(local / name, argument)) for name in files]
        return folder

    def send_weights(self, path: LocalPath, state_dict_name: str, scratch: Path) -> str:
        """Weights; what is no .safetensors file is first converted to one in `scratch`."""
        local = require_file(Path(path), "weights")
        if local.suffix != ".safetensors":
            converted = scratch / f"{local.name}.safetensors"
            convert_checkpoint(local, converted, state_dict_name)
            local = converted
        return self.send(local, "weights", "weights")

    def receive(self, path: LocalPath, argument: str, folder: str, *, with_folder: bool = False) -> str:
        """A file to write; with_folder: and other files beside it."""
        text = os.fspath(path)
        resolved = Path(os.path.realpath(text))
        if not text or text.endswith("/") or resolved.is_dir():
            raise ValueError(f"{argument}: {text!r} is not the path of a file")
        name = f"{folder}/{resolved.name}"
        if with_folder:
            self.places[f"{folder}/"] = resolved.parent
        else:
            self.places[name] = resolved
        return name

    def replace(self, path: LocalPath, argument: str, folder: str, *, needed: bool) -> str:
        """A file to read, if it is there or if it is needed, and to write."""
        name = self.receive(path, argument, folder)
        if needed or Path(path).exists():
            self.inputs.append((name, require_file(Path(path), argument)))
        else:
            self.absent.append(name)
        return name

    def receive_saved(self, save_path: str) -> str:
        """The files that begin with save_path."""
        target = SavePath.parse(save_path)
        self.places["results/"] = target.folder
        return f"results/{target.prefix}"

    def path_of(self, name: str) -> Path:
        """Where the result `name` goes; ValueError for one that was not asked for, which only a wrong server names."""
        folder, slash, base = name.rpartition("/")
        path = self.places.get(name) if base else None
        if path is None and base not in {"", ".", ".."} and f"{folder}{slash}" in self.places:
            path = self.places[f"{folder}{slash}"] / base
        if path is None:
            raise ValueError(f"the server named an output that was not asked for: {name}")
        return path


def write_npz(path: Path, data: Any, argument: str) -> None:
    """Arrays as an .npz file: {input: all samples}, or a list of {input: one batch}."""
    import numpy as np

    def check(batch: object) -> Mapping[str, Any]:
        if not isinstance(batch, Mapping) or not all(isinstance(name, str) for name in batch):
            raise TypeError(
                f"{argument} must be a path, a dict of arrays by input, or a list of such dicts, "
                f"not {type(batch).__name__}"
            )
        return batch

    if isinstance(data, Mapping):
        arrays = dict(check(data))
    elif isinstance(data, Sequence):
        arrays = {f"{name}__{i}": array for i, batch in enumerate(data) for name, array in check(batch).items()}
    else:
        arrays = dict(check(data))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.save(member, np.asarray(array), allow_pickle=False)


def _list_folder(folder: Path) -> list[str]:
    """The files below a folder, by their paths in it, sorted; hidden ones are left out."""
    files: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.relpath(Path(place) / name, folder) for name in names if not name.startswith(".")]
        if len(files) > _MAX_DATA_FILES:
            raise ValueError(
                f"{folder} holds more than {_MAX_DATA_FILES} files; put the samples together into .npz files"
            )
    return sorted(files)
