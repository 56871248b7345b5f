"""A whole service to be disturbed: several `serve` and `work` processes over one data directory and one database."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelpress.v1 import operations_pb2

from tests.e2e.postgres_process import PostgresProcess
from tests.e2e.server_process import Daemon, ServerProcess, WorkerProcess
from tests.fault.cut_connections import Proxy
from tests.fault.injected_faults import InjectedFaults

if TYPE_CHECKING:
    import random
    from pathlib import Path
    from types import TracebackType

LEASE_S = 2
_FINAL = ", ".join(
    str(operations_pb2.OperationMetadata.State.Value(name)) for name in ("SUCCEEDED", "FAILED", "CANCELLED")
)


class Site:
    """Two servers with a worker each, and a process of workers; clients and database are reached by proxies.

    Every end of an operation that the database ever stores is written down by the database itself: `ends`.
    """

    def __init__(self, folder: Path, *, postgres: bool) -> None:
        self.data_dir = folder / "data"
        self.faults = InjectedFaults(folder / "faults", self.data_dir)
        self.postgres: PostgresProcess | None = None
        self.database_proxy: Proxy | None = None
        self._running = ExitStack()
        flags = [f"--lease_s={LEASE_S}", "--housekeeping_interval_s=5"]
        if postgres:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            self.postgres = self._running.enter_context(PostgresProcess(port=port))
            self.postgres.new_database()
            self.database_proxy = self._running.enter_context(Proxy(port))
            flags.append(f"--database=postgresql://postgres@{self.database_proxy.target}/modelpress")
        environment = self.faults.environment
        self.servers = [
            ServerProcess(folder, *flags, "--workers=1", name=f"server{i}", environment=environment) for i in range(2)
        ]
        self.worker = WorkerProcess(folder, *flags, "--workers=1", environment=environment)
        for daemon in self.daemons:
            self._running.enter_context(daemon)
        self.client_proxies = [self._running.enter_context(Proxy(server.port)) for server in self.servers]
        self._audit()

    @property
    def daemons(self) -> list[Daemon]:
        """All processes but the database's."""
        return [*self.servers, self.worker]

    @property
    def targets(self) -> list[str]:
        """Where clients call; connections can be cut there."""
        return [proxy.target for proxy in self.client_proxies]

    def children(self) -> list[int]:
        """Processes that run operations, or are kept for the next one."""
        return [child for daemon in self.daemons for child in daemon.children()]

    def restart(self, daemon: Daemon, chance: random.Random) -> None:
        """kill -9, and after a moment again."""
        daemon.kill()
        time.sleep(chance.uniform(0.0, 0.5))
        daemon.start()

    def ends(self) -> list[tuple[str, int]]:
        """Ids of operations and the states in which they ended, in the order in which this was stored."""
        statement = "SELECT id, state FROM observed_ends ORDER BY sequence"
        if self.postgres is not None:
            rows = [line.split("|") for line in self.postgres.query(statement).splitlines()]
        else:
            with contextlib.closing(sqlite3.connect(self.data_dir / "modelpress.db", timeout=60)) as database:
                rows = database.execute(statement).fetchall()
        return [(str(name), int(state)) for name, state in rows]

    def damage(self) -> str:
        """What SQLite finds wrong with its file; "" for nothing."""
        if self.postgres is not None:
            return ""
        with contextlib.closing(sqlite3.connect(self.data_dir / "modelpress.db", timeout=60)) as database:
            found = ", ".join(str(row[0]) for row in database.execute("PRAGMA integrity_check"))
        return "" if found == "ok" else found

    def _audit(self) -> None:
        condition = f"NEW.state IN ({_FINAL})"
        if self.postgres is not None:
            self.postgres.query(f"""
                CREATE TABLE observed_ends (sequence BIGSERIAL, id TEXT, state BIGINT);
                CREATE FUNCTION observe_end() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO observed_ends (id, state) VALUES (NEW.id, NEW.state); RETURN NULL; END $$;
                CREATE TRIGGER observe_end AFTER UPDATE OF state ON jobs FOR EACH ROW WHEN ({condition})
                EXECUTE FUNCTION observe_end();
            """)
            return
        with contextlib.closing(sqlite3.connect(self.data_dir / "modelpress.db", timeout=60)) as database:
            database.executescript(f"""
                CREATE TABLE observed_ends (sequence INTEGER PRIMARY KEY, id TEXT, state INTEGER);
                CREATE TRIGGER observe_end AFTER UPDATE OF state ON jobs WHEN {condition}
                BEGIN INSERT INTO observed_ends (id, state) VALUES (NEW.id, NEW.state); END;
            """)

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()
