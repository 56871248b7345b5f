"""What users of the service run, timed: a server of its own and the command-line client."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.server_process import ServerProcess, run_cli

if TYPE_CHECKING:
    from collections.abc import Iterator

METRICS_PORT = re.compile(r"metrics on port (\d+)")
PEAK_RSS_SUM = re.compile(r"^modelpress_child_peak_rss_bytes_sum(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
LIMIT_S = 1800


class Service:
    """A running server."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def quantize(
        self, model: Path, calibration: Path, prefix: Path, *, definition: str = "", batch_size: int = 0
    ) -> dict[str, Any]:
        """Runs `modelpress quantize`, as `run` does."""
        command: list[Any] = ["quantize", model, f"--calibration-data={calibration}", "-o", prefix]
        if batch_size:
            command.append(f"--batch-size={batch_size}")
        if definition:
            config = prefix.with_name(f"{prefix.name}.cfg")
            config.write_text(definition, encoding="utf-8")
            command.append(f"--config_definition={config}")
        result = self.run(*command)
        if "error" not in result:
            result |= {"fake_quant": f"{prefix}_fake_quant_model.onnx", "report": f"{prefix}_report.json"}
        return result

    def run(self, *command: Any) -> dict[str, Any]:
        """Runs a subcommand of `modelpress`: wall seconds of all of it, peak memory of the engine's process.

        The result has "error", the client's own words, where the command fails.
        """
        before = self._peaks()
        begin = time.monotonic()
        # What is repeated is to run again.
        done = run_cli(self._server.target, *command, "--no_cache", "--output=json", timeout=LIMIT_S)
        seconds = time.monotonic() - begin
        if done.returncode != 0:
            return {"error": _error_text(done.stdout) or f"exit status {done.returncode}: {done.stderr[-200:]}"}
        metadata = json.loads(done.stdout)["operation"]["metadata"]
        begin_time, end_time = (datetime.fromisoformat(metadata[key]) for key in ("start_time", "end_time"))
        return {
            "seconds": seconds,
            "engine_seconds": (end_time - begin_time).total_seconds(),
            "peak_bytes": self._peaks() - before,
        }

    def _peaks(self) -> float:
        """The server's metric: peak memory of every engine process so far, added up."""
        port = METRICS_PORT.search(self._server.log())
        assert port is not None, "the server logs where its metrics are"
        with urllib.request.urlopen(f"http://localhost:{port[1]}/metrics") as answer:
            return sum(float(value) for value in PEAK_RSS_SUM.findall(answer.read().decode()))


def _error_text(stdout: str) -> str:
    try:
        return str(json.loads(stdout)["error"]["message"])[:300]
    except (ValueError, KeyError):
        return ""


@contextmanager
def service(cache: Path) -> Iterator[Service]:
    """Runs modelpressd on an empty data directory below `cache`."""
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix="server-") as name,
        ServerProcess(Path(name), "--metrics_listen=localhost:0") as server,
    ):
        yield Service(server)


def data_folder(data: Path | None) -> Path | None:
    """The folder with networks and data, or None after saying what is missing."""
    folder = data or (Path(os.environ["MODELPRESS_DATA"]) if os.environ.get("MODELPRESS_DATA") else None)
    if folder is None:
        print("\nskipped: needs networks and data; name their folder by --data or MODELPRESS_DATA (docs/benchmarks.md)")
    elif not (folder / "models").is_dir():
        print(f"\nskipped: {folder} has no folder models (docs/benchmarks.md)")
        return None
    return folder and folder.resolve()
