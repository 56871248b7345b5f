"""Makes system calls of running processes fail and their clocks jump (injected_faults.cc)."""

from __future__ import annotations

import mmap
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.e2e.server_process import BIN_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECOND_NS = 1_000_000_000


class InjectedFaults:
    """What goes wrong in all processes that run with `environment`, from any moment on."""

    def __init__(self, control: Path, folder: Path) -> None:
        """Faults of file calls below `folder`; `control` is a file to be made."""
        control.write_bytes(bytes(32))
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 32)
        self.environment = {
            "LD_PRELOAD": str(BIN_DIR / "libmodelpress_faults.so"),
            "MODELPRESS_FAULTS": str(control),
            "MODELPRESS_FAULTS_FOLDER": str(folder),
        }

    def _write(self, field: int, value: int) -> None:
        struct.pack_into("<q", self._memory, 8 * field, value)

    @contextmanager
    def failing(self, error: int, *, one_in: int) -> Iterator[None]:
        """While it lasts about one in so many file calls fails with this errno."""
        self._write(1, one_in)
        self._write(0, error)
        try:
            yield
        finally:
            self._write(0, 0)

    def set_clock(self, ahead_s: float) -> None:
        """Puts the time of day of all processes ahead of the machine's (or behind)."""
        self._write(2, int(ahead_s * SECOND_NS))

    @property
    def injected(self) -> int:
        """How many calls have failed so far."""
        return int(struct.unpack_from("<q", self._memory, 24)[0])
