"""Files on the caller's machine: digests, chunks, the documented meaning of save_path, and safe writing."""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
# "<prefix>_fake_quant_model.onnx" must fit the 255 bytes of a file name.
MAX_PREFIX_BYTES = 233
_FILE_MODE = 0o640
_LAST_FOLDER_MODE = 0o750


@dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 in lower-case hex of a content."""

    size: int
    sha256: str


def digest_of(path: Path) -> Digest:
    """Reads the file once."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Digest(file.tell(), sha256)


def chunks(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) pieces of a file from `start` on; at least one, so that an empty rest is sent too."""
    with path.open("rb") as file:
        offset = file.seek(start)
        data = file.read(CHUNK_BYTES)
        yield offset, data
        offset += len(data)
        while data := file.read(CHUNK_BYTES):
            yield offset, data
            offset += len(data)


@dataclass(frozen=True)
class SavePath:
    """A save_path taken apart (docs/spec/save.md section 1.1)."""

    folder: Path
    prefix: str

    @classmethod
    def parse(cls, save_path: str) -> "SavePath":
        """Splits a local save_path; raises ValueError where the prefix is too long for the file names made of it."""
        resolved = Path(os.path.realpath(save_path))
        if save_path == "" or save_path.endswith("/"):
            return cls(resolved, "")
        if len(os.fsencode(resolved.name)) > MAX_PREFIX_BYTES:
            raise ValueError(
                f"save_path ends in a name of {len(os.fsencode(resolved.name))} bytes; "
                f"{MAX_PREFIX_BYTES} are the most that leave room for _fake_quant_model.onnx"
            )
        return cls(resolved.parent, resolved.name)


def make_folder(folder: Path) -> None:
    """Creates missing folders: the last with mode 0750, those above with 0777, both less umask."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=_LAST_FOLDER_MODE, exist_ok=True)


@dataclass
class PartialFile:
    """A file being received: written under a temporary name in its folder, and hashed on the way."""

    target: Path
    temporary: Path
    _file: BinaryIO
    _sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, data: bytes) -> None:
        """Appends."""
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def close(self) -> Digest:
        """Ends writing and says what was written."""
        self._file.close()
        return Digest(self.size, self._sha256.hexdigest())


class Outputs:
    """Several files that appear together: `commit` renames all of them, `close` removes what was not committed."""

    def __init__(self) -> None:
        self._parts: list[PartialFile] = []

    def open(self, target: Path) -> PartialFile:
        """Starts a file; its folder must exist."""
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise IsADirectoryError(f"{target} is there and is no regular file")
        descriptor, name = tempfile.mkstemp(prefix=".modelpress-", dir=target.parent)
        part = PartialFile(target, Path(name), os.fdopen(descriptor, "wb"))
        self._parts.append(part)
        return part

    def commit(self) -> None:
        """Gives all files their names and mode 0640; files of these names are replaced."""
        for part in self._parts:
            part.close()
            part.temporary.chmod(_FILE_MODE)
        while self._parts:
            part = self._parts[0]
            part.temporary.replace(part.target)
            self._parts.pop(0)

    def close(self) -> None:
        """Removes the temporary files that are left."""
        for part in self._parts:
            with contextlib.suppress(OSError):
                part.close()
            part.temporary.unlink(missing_ok=True)
        self._parts.clear()

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_file(path: Path, content: bytes) -> None:
    """Writes a file as a whole, with mode 0640; missing folders are made."""
    target = Path(os.path.realpath(path))
    make_folder(target.parent)
    with Outputs() as outputs:
        outputs.open(target).write(content)
        outputs.commit()


def require_file(path: Path, argument: str) -> Path:
    """The path, if it is a regular file; else FileNotFoundError or IsADirectoryError that names the argument."""
    if path.is_file():
        return path
    if path.exists():
        raise IsADirectoryError(f"{argument}: {path} is no regular file")
    raise FileNotFoundError(f"{argument}: {path} does not exist")
