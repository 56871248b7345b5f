"""Runs the benchmarks: `./dev bench [NAME] [--json] [--data DIR]`.

Every benchmark measures something real beside what it is compared with, in the same run and by turns, so that both
meet the same load. The figures of a comparison are medians; the aims (docs/benchmarks.md) are printed beside them and
checked by nobody but the reader.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(1, str(Path(__file__).parents[2] / "examples"))

from tests.bench import accuracy, calibration, make_models
from tests.bench.service import service
from tests.e2e.postgres_process import PostgresProcess
from tests.e2e.server_process import GOLDEN_SAVE, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MB = 1e6
TINY_JOBS = 100
TENANCY_SAMPLES = 500
ENGINE_REPEATS = 5
LOAD = {"jobs": 500, "pollers": 200, "uploads": 8, "megabytes": 128}
GOLDEN_TORCHVISION = Path(__file__).parents[1] / "golden" / "prune" / "torchvision"
PRUNED = ["resnet18", "resnet50"]

Result = dict[str, Any]


def run_json(*command: str | Path) -> Any:
    """Runs a program that prints JSON."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{Path(command[0]).name} failed with exit status {done.returncode}")
    return json.loads(done.stdout)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, first column left, others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1e3:.1f} ms"


def us(seconds: float) -> str:
    """Seconds as microseconds."""
    return f"{seconds * 1e6:.0f} us"


def slower_share(first: Sequence[float], second: Sequence[float]) -> float:
    """In what share of all pairs the one of `first` is greater; those that are equal count half. 0.5: neither."""
    ordered = sorted(second)
    below = sum(bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value) for value in first)
    return below / (2 * len(first) * len(second))


def percentile(values: Sequence[float], percent: int) -> float:
    """Gives the value that `percent` of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


@contextmanager
def memory_of(pid: int, interval_s: float = 0.25) -> Iterator[list[float]]:
    """Gives a list to which the resident memory of a process, in MB, is added while the context lasts."""
    memory: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while True:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            memory.append(pages * os.sysconf("SC_PAGE_SIZE") / MB)
            if stop.wait(interval_s):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield memory
    finally:
        stop.set()
        sampler.join()


class Bench:
    """The benchmarks.

    `cache` keeps models between runs; all temporary files lie in it too, so that all use the same disk.
    """

    def __init__(self, cache: Path, options: argparse.Namespace) -> None:
        self.cache = cache
        self.options = options

    @contextmanager
    def server(self, *flags: str) -> Iterator[tuple[ServerProcess, Path]]:
        """Runs modelpressd on an empty data directory; gives it and a folder for temporary files."""
        with (
            tempfile.TemporaryDirectory(dir=self.cache, prefix="server-") as name,
            ServerProcess(Path(name), *flags) as server,
        ):
            yield server, Path(name)

    @contextmanager
    def bare_server(self) -> Iterator[str]:
        """Runs bare_stream_server; gives its target."""
        with subprocess.Popen(["bare_stream_server"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield f"localhost:{int(process.stdout.readline())}"
            process.terminate()

    def engine(self) -> Result:
        """Times the engine in a process of its own beside a plain copy of as many bytes."""
        results: Result = {}
        # Models of another version of the script are not of interest any more, but small harm.
        version = hashlib.sha256(Path(make_models.__file__).read_bytes()).hexdigest()[:12]
        for name in make_models.MODELS:
            folder = self.cache / f"{name}-{version}"
            if not folder.exists():
                make_models.make(name, folder)
            with tempfile.TemporaryDirectory(dir=self.cache, prefix="engine-") as work:
                results[name] = run_json(
                    "engine_bench",
                    f"--model={folder / 'model.onnx'}",
                    f"--record={folder / 'record.txt'}",
                    f"--work_folder={work}/out",
                    f"--repeats={ENGINE_REPEATS}",
                )
            layers = f"{results[name]['runs']['engine'][0]['layers']} layers quantized"
            self._print_engine(f"engine, {name}, {layers}", results[name])
        return results

    def prune(self) -> Result:
        """Times create_prune_retrain_model: the engine alone beside a plain copy, and a whole call to the service."""
        results: Result = {}
        definition = GOLDEN_TORCHVISION / "resnet18" / "prune.cfg"
        for name in PRUNED:
            model = self.cache / f"{name}.onnx"
            make_models.fill(GOLDEN_TORCHVISION / name / "skeleton.onnx", model)
            with tempfile.TemporaryDirectory(dir=self.cache, prefix="prune-") as work:
                results[name] = run_json(
                    "engine_bench",
                    f"--model={model}",
                    f"--definition={definition}",
                    f"--work_folder={work}/out",
                    f"--repeats={ENGINE_REPEATS}",
                )
            self._print_engine(f"create_prune_retrain_model, {name}, half of the channels", results[name])
            seconds, peaks = [], []
            with service(self.cache) as ours, tempfile.TemporaryDirectory(dir=self.cache, prefix="prune-") as work:
                for repeat in range(ENGINE_REPEATS):
                    prefix = Path(work) / f"{repeat}"
                    result = ours.run(
                        "create_prune_retrain_model",
                        f"--model={model}",
                        f"--config_definition={definition}",
                        f"--record_file={prefix}_record.txt",
                        f"--save_path={prefix}",
                    )
                    if "error" in result:
                        sys.exit(result["error"])
                    seconds.append(result["seconds"])
                    peaks.append(result["peak_bytes"])
            results[name]["service"] = {"seconds": seconds, "peak_bytes": peaks}
            print(
                f"  through the service (upload, queue, child process, download; median): "
                f"{ms(statistics.median(seconds))}, peak memory of the child {max(peaks) / MB:.0f} MB"
            )
        return results

    @staticmethod
    def _print_engine(name: str, result: Result) -> None:
        runs = result["runs"]
        written = sum(runs["engine"][0]["output_sizes"])
        moved = result["input_bytes"] + written

        def median(kind: str) -> float:
            return statistics.median(float(run["seconds"]) for run in runs[kind])

        rows = []
        for kind, copy in [
            ("engine", "copy"),
            ("copy", "copy"),
            ("engine_without_fsync", "copy_without_fsync"),
            ("copy_without_fsync", "copy_without_fsync"),
        ]:
            rows.append(
                [
                    kind.replace("_", " "),
                    ms(min(run["seconds"] for run in runs[kind])),
                    ms(median(kind)),
                    f"{moved / MB / median(kind):.0f}",
                    ms(statistics.median(run["cpu_seconds"] for run in runs[kind])),
                    f"{max(run['peak_rss_bytes'] for run in runs[kind]) / MB:.0f} MB",
                    f"{median(kind) / median(copy):.2f}",
                ]
            )
        table(
            f"{name}: {result['input_bytes'] / MB:.0f} MB in, {written / MB:.0f} MB out,"
            f" {result['threads']} threads (aim: 1.5 times the copy)",
            ["", "best", "median", "MB/s in + out", "CPU", "peak memory", "times the copy"],
            rows,
        )
        means = [
            f"{phase} {ms(statistics.median(run['phases'].get(phase, 0.0) for run in runs['engine']))}"
            for phase in runs["engine"][0]["phases"]
        ]
        start = statistics.median(run["initialize_seconds"] for run in runs["engine"])
        print(
            f"  phases (medians): {', '.join(means)}; before them, once per process: preparing ONNX Runtime {ms(start)}"
        )

    def transfer(self) -> Result:
        """Times uploads and downloads beside bare gRPC streams."""
        with self.server() as (server, work), self.bare_server() as bare:
            result: Result = run_json(
                "service_bench",
                "transfer",
                f"--target={server.target}",
                f"--bare_target={bare}",
                f"--work_folder={work}",
            )
        seconds = {kind: statistics.median(values) for kind, values in result["seconds"].items()}
        rates = {kind: result["bytes"] / MB / value for kind, value in seconds.items()}
        rows = []
        for direction, client in [("upload", "hashes first"), ("download", "hashes, writes, syncs")]:
            bare_seconds = seconds[f"{direction}_bare"]
            for what, label in [
                ("bare", "bare gRPC stream"),
                ("stream", "server, same client code"),
                ("client", f"client library ({client})"),
            ]:
                value = seconds[f"{direction}_{what}"]
                rows.append(
                    [
                        f"{direction}: {label}",
                        ms(value),
                        f"{rates[f'{direction}_{what}']:.0f}",
                        f"{value / bare_seconds:.2f}",
                    ]
                )
        rows.append(["SHA-256 of the bytes alone", ms(seconds["sha256"]), f"{rates['sha256']:.0f}", ""])
        rows.append(["writing and syncing the bytes alone", ms(seconds["disk"]), f"{rates['disk']:.0f}", ""])
        table(
            f"transfer of {result['bytes'] / MB:.0f} MB over loopback (aim: 1.2 times the bare stream)",
            ["", "median", "MB/s", "times bare"],
            rows,
        )
        return result

    def tiny(self) -> Result:
        """Times a tiny job from the call to its end, beside the engine alone."""
        case = [
            f"--model={GOLDEN_SAVE / 'conv1d' / 'modified.onnx'}",
            f"--record={GOLDEN_SAVE / 'conv1d' / 'record.txt'}",
        ]
        with self.server() as (server, work):
            jobs = run_json("service_bench", "tiny", f"--target={server.target}", f"--jobs={TINY_JOBS}", *case)[
                "seconds"
            ]
            engine = run_json(
                "engine_bench", *case, f"--work_folder={work}/out", f"--repeats={TINY_JOBS}", "--engine_only"
            )
        runs = engine["runs"]["engine"]
        kinds = {
            "job, from SaveModel to done": jobs,
            "engine alone": [run["seconds"] for run in runs],
            "  of it fsync": [run["phases"]["fsync"] for run in runs],
            "preparing ONNX Runtime (once per job)": [run["initialize_seconds"] for run in runs],
        }
        table(
            f"tiny job, {TINY_JOBS} times (aim: 30 ms)",
            ["", "p50", "p95", "best"],
            [
                [kind, ms(percentile(values, 50)), ms(percentile(values, 95)), ms(min(values))]
                for kind, values in kinds.items()
            ],
        )
        return {"job_seconds": jobs, "engine": runs}

    def polls(self) -> Result:
        """Counts GetOperation calls per second beside calls that do nothing."""
        model = [
            f"--model={GOLDEN_SAVE / 'conv1d' / 'modified.onnx'}",
            f"--record={GOLDEN_SAVE / 'conv1d' / 'record.txt'}",
        ]
        with self.server() as (server, _), self.bare_server() as bare:
            result: Result = run_json(
                "service_bench", "polls", f"--target={server.target}", f"--bare_target={bare}", *model
            )
        rows = []
        for rates in result["concurrency"]:
            real, empty = (statistics.median(rates[key]) for key in ("calls_per_second", "calls_per_second_bare"))
            rows.append([f"{rates['clients']}", f"{real:.0f}", f"{empty:.0f}", f"{100 * real / empty:.0f} %"])
        table(
            f"polls: GetOperation, answers of {result['operation_bytes']} bytes, beside an empty answer (aim: 90 %)",
            ["clients", "calls/s", "empty calls/s", "share"],
            rows,
        )
        return result

    def load(self) -> Result:
        """Many operations, pollers and uploads at once: what each call takes, beside an idle server, and the memory."""
        case = [
            f"--model={GOLDEN_SAVE / 'conv1d' / 'modified.onnx'}",
            f"--record={GOLDEN_SAVE / 'conv1d' / 'record.txt'}",
        ]
        results: Result = {}
        memory: list[float] = []
        with ExitStack() as stack:
            database = []
            if self.options.postgres:
                database = [f"--database={stack.enter_context(PostgresProcess()).new_database()}"]
            server, work = stack.enter_context(self.server(*database))
            command = ["service_bench", "load", f"--target={server.target}", f"--work_folder={work}", *case]
            results["idle"] = run_json(*command, "--jobs=20", "--pollers=2", "--uploads=1", "--megabytes=128")
            with memory_of(server.pid) as memory:
                results["load"] = run_json(*command, *(f"--{key}={value}" for key, value in LOAD.items()))
        load, idle = results["load"], results["idle"]
        rows = []
        for method, calls in load["calls"].items():
            quiet = idle["calls"].get(method, {}).get("seconds", [])
            rows.append(
                [
                    method,
                    f"{len(calls['seconds'])}",
                    *(ms(percentile(calls["seconds"], percent)) for percent in (50, 99)),
                    *(ms(percentile(quiet, percent)) for percent in (50, 99)),
                    f"{sum(calls['failures'].values())}",
                ]
            )
        table(
            f"{LOAD['jobs']} operations queued, {LOAD['pollers']} pollers, {LOAD['uploads']} uploads of "
            f"{LOAD['megabytes']} MB; idle: 20 operations, 2 pollers, 1 upload",
            ["", "calls", "p50", "p99", "p50 idle", "p99 idle", "refused"],
            rows,
        )
        print(
            f"  all accepted within {load['submit_seconds']:.1f} s, done after {load['seconds']:.1f} s, "
            f"{load['failed']} failed"
        )
        tenths = [memory[len(memory) * i // 10] for i in range(10)] + [memory[-1]]
        print(f"  resident memory of the server, MB, from start to end: {' '.join(f'{mb:.0f}' for mb in tenths)}")
        for method, calls in load["calls"].items():
            for message, count in calls["failures"].items():
                print(f"  refused: {method}: {count} x {message}")
        return results | {"memory_mb": memory}

    def tenancy(self) -> Result:
        """Compares what calls take on things of another project and on things that nobody has."""
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="tenancy-") as folder:
            tokens, entries = [], []
            for project in ("alpha", "beta"):
                made = subprocess.run(
                    ["modelpressd", "create-token", "--principal=x", f"--project={project}", "--role=writer"],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                token, entry = made.stdout.split("\n", 1)
                tokens.append(token)
                entries.append(entry)
            credentials = Path(folder) / "credentials"
            credentials.write_text("".join(entries))
            with self.server(f"--credentials_file={credentials}") as (server, _):
                result: Result = run_json(
                    "service_bench",
                    "tenancy",
                    f"--target={server.target}",
                    f"--token={tokens[0]}",
                    f"--other_token={tokens[1]}",
                    f"--samples={TENANCY_SAMPLES}",
                )
        rows = []
        for name, seconds in result.items():
            there, nothing = (statistics.median(seconds[kind]) for kind in ("there", "nothing"))
            rows.append(
                [
                    name,
                    us(there),
                    us(nothing),
                    f"{there / nothing:.3f}",
                    f"{slower_share(seconds['there'], seconds['nothing']):.3f}",
                ]
            )
        # Standard deviation of the Mann-Whitney statistic where both come from one distribution.
        noise = 1.96 * math.sqrt((2 * TENANCY_SAMPLES + 1) / 12) / TENANCY_SAMPLES
        table(
            f"tenancy, {TENANCY_SAMPLES} calls of each kind by turns; aim: the share of pairs in which the first is "
            f"the slower one cannot be told from chance, 0.500 +- {noise:.3f}",
            ["", "another's", "nobody's", "ratio", "share slower"],
            rows,
        )
        return result

    def kernels(self) -> Result:
        """Gives the bytes per second of the SIMD loops beside memcpy."""
        result: Result = run_json("kernels_bench", "--benchmark_format=json", "--benchmark_min_time=0.2s")
        rates = {run["name"]: run["bytes_per_second"] / MB for run in result["benchmarks"]}
        table(
            "kernels: bytes read and written per second",
            ["", "MB/s", "of memcpy"],
            [[name, f"{rate:.0f}", f"{100 * rate / rates['BM_Copy']:.0f} %"] for name, rate in rates.items()],
        )
        return result

    def accuracy(self) -> Result:
        """Accuracy, time and memory of quantization beside onnxruntime.quantization."""
        return accuracy.measure(self.cache, self.options.data, self.options.networks, self.options.limit)

    def calibration(self) -> Result:
        """Time of calibration beside plain inference, and peak memory for few and many samples."""
        return calibration.measure(self.cache, self.options.data, self.options.networks)


BENCHMARKS: dict[str, Callable[[Bench], Result]] = {
    "kernels": Bench.kernels,
    "engine": Bench.engine,
    "prune": Bench.prune,
    "transfer": Bench.transfer,
    "tiny": Bench.tiny,
    "polls": Bench.polls,
    "load": Bench.load,
    "tenancy": Bench.tenancy,
    "accuracy": Bench.accuracy,
    "calibration": Bench.calibration,
}


def main() -> None:
    """Runs one or all."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=[*BENCHMARKS, "all"], default="all")
    parser.add_argument(
        "--json", action="store_true", help="print every single measurement as JSON, and the tables to stderr"
    )
    parser.add_argument("--postgres", action="store_true", help="load: with PostgreSQL instead of SQLite")
    networks = parser.add_argument_group("accuracy and calibration")
    networks.add_argument("--data", type=Path, help="folder with networks and data (docs/benchmarks.md)")
    networks.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="only these")
    networks.add_argument("--limit", type=int, help="at most so many test samples, for a quick look")
    arguments = parser.parse_args()
    names = list(BENCHMARKS) if arguments.name == "all" else [arguments.name]
    tables = sys.stderr if arguments.json else sys.stdout
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(tables):
        print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} before the first measurement")
        cache = Path(os.environ.get("MODELPRESS_BUILD_ROOT", temporary)) / "bench"
        cache.mkdir(exist_ok=True)
        bench = Bench(cache, arguments)
        results = {name: BENCHMARKS[name](bench) for name in names}
    if arguments.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
