"""Starts a PostgreSQL server of its own, which tests may kill and start again on the same data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from types import TracebackType


def _bin_dir() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("postgres")
    if found is None:
        raise RuntimeError("PostgreSQL is not installed: there is no /usr/lib/postgresql/*/bin/postgres")
    return Path(found).parent


def _as_user() -> tuple[str, ...]:
    """What comes before a command: the server refuses to be run by root.

    Not subprocess's `user`: with it there is a real fork(), for which gRPC waits until its threads are idle.
    """
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.geteuid() == 0 else ()


class PostgresProcess:
    """A cluster in a temporary folder, reached by a Unix socket there. `settings` are "name=value" of postgresql.conf.

    With a `port` it also listens on 127.0.0.1. fsync is on, so that what is killed and started again is what an
    operator would have; pass "fsync=off" for speed.
    """

    def __init__(self, *settings: str, port: int | None = None, start_limit_s: float = 60) -> None:
        self._bin = _bin_dir()
        self._as_user = _as_user()
        # Not pytest's folder: that is closed to other users, and a socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="modelpress-pg-"))
        if self._as_user:
            shutil.chown(self.folder, "postgres")
        self._port = port or 5432
        self._settings = (
            f"unix_socket_directories={self.folder}",
            f"listen_addresses={'' if port is None else '127.0.0.1'}",
            f"port={self._port}",
            *settings,
        )
        self._start_limit_s = start_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [
                *self._as_user,
                self._bin / "initdb",
                f"--pgdata={self.folder / 'data'}",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )

    def start(self) -> None:
        """Starts it, or again after kill(), and waits until it takes connections."""
        deadline = time.monotonic() + self._start_limit_s
        self._spawn()
        while self._run("pg_isready", "--quiet").returncode != 0:
            # Until the last process of a killed server has ended, a new one ends at once.
            if self._process is None or self._process.poll() is not None:
                self._spawn()
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-2000:]}")
            time.sleep(0.05)

    def _spawn(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._as_user,
                    self._bin / "postgres",
                    "-D",
                    self.folder / "data",
                    *(word for setting in self._settings for word in ("-c", setting)),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                str(self._bin / program),
                f"--host={self.folder}",
                f"--port={self._port}",
                "--username=postgres",
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def new_database(self, name: str = "modelpress") -> str:
        """Makes an empty database; returns its URL for `modelpressd --database`."""
        made = self._run("createdb", name)
        if made.returncode != 0:
            raise RuntimeError(made.stderr)
        return f"postgresql://postgres@/{name}?host={quote(str(self.folder), safe='')}"

    def query(self, sql: str, database: str = "modelpress") -> str:
        """Runs a statement; returns its rows as lines, columns separated by "|"."""
        answer = self._run(
            "psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--dbname={database}", f"--command={sql}"
        )
        if answer.returncode != 0:
            raise RuntimeError(answer.stderr)
        return answer.stdout.strip()

    def log(self) -> str:
        """Everything that it has logged."""
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Process id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9 of the first process; the others find out and end by themselves, at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def kill_connections(self) -> int:
        """kill -9 of a process that serves a connection: the server ends them all and recovers. Returns how many."""
        pids = [
            int(pid)
            for pid in self.query(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
                database="postgres",
            ).split()
        ]
        if pids:
            os.kill(pids[0], signal.SIGKILL)
        return len(pids)

    def stop(self) -> None:
        """A fast shutdown: connections are closed, data is written."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=60)

    def __enter__(self) -> PostgresProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGQUIT)  # at once: the data goes with it
            self._process.wait(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)
