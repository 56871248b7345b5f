"""Starts modelpressd as a process, as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

BIN_DIR = Path(os.environ["MODELPRESS_BIN_DIR"])
SOURCE_DIR = Path(os.environ["MODELPRESS_SOURCE_DIR"])
GOLDEN_SAVE = SOURCE_DIR / "tests" / "golden" / "save"


class Daemon:
    """One `modelpressd COMMAND` over `folder`/data; can be killed and started again."""

    def __init__(self, command: str, folder: Path, *flags: str, name: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.flags = flags
        self.name = name
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self, *flags: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    BIN_DIR / "modelpressd",
                    self._command,
                    f"--data_dir={self.data_dir}",
                    "--metrics_listen=",
                    *flags,
                    *self.flags,
                ],
                stderr=log,
                stdout=log,
                env=os.environ | self._environment,
            )
        return self._process

    def start(self) -> None:
        """Starts it, or starts it again."""
        self._spawn()

    def log(self) -> str:
        """Everything that it has logged."""
        return (self.folder / f"{self.name}.log").read_text()

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def children(self) -> list[int]:
        """Processes that it has started: of operations, and spare ones."""
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()


class WorkerProcess(Daemon):
    """`modelpressd work`."""

    def __init__(
        self, folder: Path, *flags: str, name: str = "worker", environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__("work", folder, *flags, name=name, environment=environment or {})


class ServerProcess(Daemon):
    """`modelpressd serve` on a free port."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        name: str = "server",
        environment: Mapping[str, str] | None = None,
        start_limit_s: float = 20,
    ) -> None:
        super().__init__("serve", folder, *flags, name=name, environment=environment or {})
        self.target = ""
        self.port = 0
        self._start_limit_s = start_limit_s

    def start(self) -> None:
        """Starts it and waits until it listens. A restart keeps the port, so that clients can go on."""
        port_file = self.folder / f"{self.name}.port"
        port_file.unlink(missing_ok=True)
        process = self._spawn(f"--listen=localhost:{self.port}", f"--port_file={port_file}")
        deadline = time.monotonic() + self._start_limit_s
        while not (port_file.exists() and port_file.read_text().strip()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"modelpressd did not start:\n{self.log()[-2000:]}")
            time.sleep(0.01)
        self.port = int(port_file.read_text())
        self.target = f"localhost:{self.port}"


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
