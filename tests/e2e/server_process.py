"""Starts modelpressd as a process, as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

BIN_DIR = Path(os.environ["MODELPRESS_BIN_DIR"])
SOURCE_DIR = Path(os.environ["MODELPRESS_SOURCE_DIR"])
GOLDEN_SAVE = SOURCE_DIR / "tests" / "golden" / "save"


class ServerProcess:
    """`modelpressd serve` on a free port over `folder`/data; can be killed and started again on the same data."""

    def __init__(self, folder: Path, *flags: str, start_limit_s: float = 20) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.flags = flags
        self.target = ""
        self._start_limit_s = start_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        """Starts it and waits until it listens. A restart keeps the port, so that clients can go on."""
        port_file = self.folder / "port"
        port_file.unlink(missing_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    BIN_DIR / "modelpressd",
                    "serve",
                    f"--data_dir={self.data_dir}",
                    f"--listen=localhost:{self._port}",
                    f"--port_file={port_file}",
                    "--metrics_listen=",
                    *self.flags,
                ],
                stderr=log,
                stdout=log,
            )
        deadline = time.monotonic() + self._start_limit_s
        while not (port_file.exists() and port_file.read_text().strip()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"modelpressd did not start:\n{self.log()[-2000:]}")
            time.sleep(0.01)
        self._port = int(port_file.read_text())
        self.target = f"localhost:{self._port}"

    def log(self) -> str:
        """Everything that it has logged."""
        return (self.folder / "server.log").read_text()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()


def run_cli(target: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command-line client."""
    return subprocess.run(
        [str(BIN_DIR / "modelpress"), *(str(argument) for argument in arguments), f"--target={target}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=options.pop("timeout", 300),
        **options,
    )
