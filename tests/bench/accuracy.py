"""Accuracy, time and memory of quantization beside onnxruntime.quantization on the same networks and samples.

Every quantization runs in a process of its own. The peer comes from the Python package index into a virtual
environment of its own (Debian's build of it cannot be imported); without an index its rows are missing, and the
bench says so. All models, also the float ones, are judged in the same ONNX Runtime: the peer's where it is there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.service import Service, data_folder, service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
PEER_PACKAGES = ["onnxruntime", "onnx", "numpy", "sympy", "pillow"]
# Lent by ./dev where package downloads pass a proxy that signs its own certificates.
CERTIFICATES = Path("/run/host-ca.crt")
MB = 1e6

OURS = {"modelpress IFMR": "", "modelpress HFMG": "common_config { hfmg_quantize { } }\n"}
PEERS = {
    "onnxruntime MinMax, all ops": ["--method=MinMax", "--operators=all"],
    "onnxruntime Percentile, all ops": ["--method=Percentile", "--operators=all"],
    "onnxruntime MinMax, Conv/MatMul/Gemm": ["--method=MinMax", "--operators=weighted"],
    "onnxruntime Percentile, Conv/MatMul/Gemm": ["--method=Percentile", "--operators=weighted"],
}
# What the peer is run with until it succeeds, and how the table calls what is not its normal way.
FALLBACKS: list[tuple[str, list[str]]] = [
    ("", []),
    ("without symbolic shapes", ["--skip_symbolic_shape"]),
    ("per tensor", ["--per_tensor"]),
    ("per tensor, without symbolic shapes", ["--per_tensor", "--skip_symbolic_shape"]),
]

Row = dict[str, Any]


def peer_python(cache: Path) -> Path | None:
    """The Python of a virtual environment with the peer, made the first time; None, after saying so, if that fails."""
    folder = cache / "peer" / "venv"
    python = folder / "bin" / "python"
    if not (cache / "peer" / "complete").exists():
        print(f"installing {', '.join(PEER_PACKAGES)} for the comparison", file=sys.stderr)
        certificates = ["--cert", str(CERTIFICATES)] if CERTIFICATES.exists() and CERTIFICATES.stat().st_size else []
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *certificates, *PEER_PACKAGES],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                print(f"\nonnxruntime could not be installed for the comparison, its rows are missing: {reason}")
                return None
        (cache / "peer" / "complete").touch()
    return python


class Worker:
    """Runs the steps of tests/bench/accuracy_worker.py, each in a process of its own."""

    def __init__(self, data: Path, python: Path | None = None) -> None:
        self._data = data
        self._python = python or Path(sys.executable)

    def step(self, name: str, *arguments: Any) -> Row:
        """The step's answer; an exit without one is an error like others."""
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
        # The peer leaves files of its own in the folder that it runs in.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [self._python, "-m", "tests.bench.accuracy_worker", name, f"--data={self._data}", *map(str, arguments)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            text = f"ended with status {done.returncode}: {done.stderr.strip()[-200:]}"
            return {"error": text, "out_of_memory": done.returncode == -signal.SIGKILL}
        result: Row = json.loads(lines[-1])
        return result

    def need(self, name: str, *arguments: Any) -> Row:
        """The answer of a step that must not fail."""
        result = self.step(name, *arguments)
        if "error" in result:
            raise RuntimeError(f"{name}: {result['error']}")
        return result


class Accuracy:
    """One run of the benchmark."""

    def __init__(self, cache: Path, data: Path, limit: int | None) -> None:
        self._cache = cache
        self._data = data
        self._limit = limit
        python = peer_python(cache)
        self._has_peer = python is not None
        self._worker = Worker(data, python)

    def rows(self, name: str, ours: Service) -> Iterator[Row]:
        """All rows of a network."""
        with tempfile.TemporaryDirectory(dir=self._cache, prefix="accuracy-") as folder:
            work = Path(folder)
            model = self._data / "models" / f"{name}.onnx"
            calibration, lifted = work / "calibration.npz", work / "lifted.onnx"
            common = [f"--network={name}", f"--reference={work / 'reference.npy'}"]
            common += [f"--limit={self._limit}"] if self._limit else []

            def judged(row: Row, file: Any) -> Row:
                return row | self._worker.step("evaluate", *common, f"--model={file}") if "error" not in row else row

            floating = self._worker.need("evaluate", *common, f"--model={model}")
            yield {"network": name, "method": "float", **floating, "seconds": None}
            samples = self._worker.need("calibrate", f"--network={name}", f"--model={model}", f"--out={calibration}")[
                "samples"
            ]
            can_lift = self._has_peer and self._worker.need("lift", f"--model={model}", f"--out={lifted}")["lifted"]
            for index, (method, definition) in enumerate(OURS.items()):
                row = ours.quantize(model, calibration, work / f"ours{index}", definition=definition)
                row["note"] = ""
                if "error" in row and can_lift:
                    refused = row["error"]
                    row = ours.quantize(lifted, calibration, work / f"lifted{index}", definition=definition)
                    row["note"] = f"lifted to opset 13; as it is: {_one_line(refused)}"
                seconds = row.get("seconds")
                row = judged(row, row.get("fake_quant"))
                yield {"network": name, "method": method, "samples_used": samples, **row, "seconds": seconds}
            if not self._has_peer:
                return
            for method, arguments in PEERS.items():
                out = work / "peer.onnx"
                first_error = ""
                for note, extra in FALLBACKS:
                    row = self._worker.step(
                        "peer",
                        f"--network={name}",
                        f"--model={lifted if can_lift else model}",
                        f"--calibration={calibration}",
                        f"--out={out}",
                        *arguments,
                        *extra,
                    )
                    row["note"] = "; ".join(part for part in ("lifted to opset 13" if can_lift else "", note) if part)
                    first_error = first_error or row.get("error", "")
                    if "error" not in row or row["out_of_memory"]:
                        break
                if first_error and "error" not in row:
                    row["first_error"] = first_error
                seconds = row.get("seconds")
                row = judged(row, out)
                yield {"network": name, "method": method, "samples_used": samples, **row, "seconds": seconds}


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/benchmarks.md."""
    lines = [
        "| network | method | result | agreement with float | seconds | peak memory | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["network"] if row["method"] == "float" else "", row["method"]]
        if "error" in row:
            cells += ["fails", "", "", "", _one_line(row["error"])]
        else:
            value, agreement = row["texts"]
            measure = f"{row['measure']}, {row['samples']} samples" if row["method"] == "float" else row.get("note", "")
            seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
            peak = f"{row['peak_bytes'] / MB:.0f} MB" if "peak_bytes" in row else ""
            cells += [value, agreement, seconds, peak, measure]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(cache: Path, data: Path | None, names: Sequence[str], limit: int | None) -> Row:
    """Measures the named networks, all without names; prints the table."""
    folder = data_folder(data)
    if folder is None:
        return {"skipped": "no data"}
    from tests.bench.networks import NETWORKS

    unknown = set(names) - set(NETWORKS)
    if unknown:
        sys.exit(f"unknown networks {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    run = Accuracy(cache, folder, limit)
    rows: list[Row] = []
    with service(cache) as ours:
        for name in names or NETWORKS:
            if not (folder / "models" / f"{name}.onnx").is_file():
                print(f"\nskipped: no {folder / 'models' / name}.onnx")
                continue
            for row in run.rows(name, ours):
                print(json.dumps(row), file=sys.stderr, flush=True)
                rows.append(row)
    versions = sorted({row["onnxruntime"] for row in rows if "onnxruntime" in row})
    print(
        f"\nall models judged in ONNX Runtime {', '.join(versions)}; peak memory of the peer includes Python itself\n"
    )
    print(markdown(rows))
    return {"rows": rows}
