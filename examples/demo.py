"""Quantizes a real float network through a modelpressd of its own, and measures what that costs in accuracy.

Without arguments: the digits network of examples/digits, with scikit-learn's images. With --model and --data: a float
network of a data folder. The results, and a report to look at, stay in --out.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folder_data
import grpc
import numpy as np
from folder_data import CALIBRATION_SAMPLES, Samples, Task
from modelpress import Client, Error, progress_bar
from numpy.typing import NDArray
from onnx_pair import onnxruntime

DIGITS = Path(__file__).resolve().parent / "digits"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 20
BATCH = 50
# grpc.health.v1.HealthCheckResponse{status: SERVING}
SERVING = b"\x08\x01"


class Job(NamedTuple):
    """What is quantized, and the data for it."""

    model: Path
    task: Task


def digits_job() -> Job:
    """The committed network; calibrated on some of scikit-learn's training images, tested on its test images."""
    import digits_data

    data = digits_data.load()
    some = slice(CALIBRATION_SAMPLES)
    calibration = Samples({"images": data.train_images[some]}, data.train_labels[some])
    return Job(DIGITS / "model.onnx", Task(calibration, Samples({"images": data.test_images}, data.test_labels)))


def folder_job(data: Path, name: str) -> Job:
    """A network of a data folder."""
    path = folder_data.find_model(data, name)
    return Job(path, folder_data.load(data, path))


@contextlib.contextmanager
def server(data_dir: Path) -> Iterator[str]:
    """A modelpressd on a free port; gives its address."""
    executable = shutil.which("modelpressd")
    if executable is None:
        raise SystemExit("modelpressd is not on PATH; run this as ./dev demo")
    port_file = data_dir / "port"
    command = [
        executable,
        "serve",
        f"--data_dir={data_dir / 'data'}",
        "--listen=localhost:0",
        f"--port_file={port_file}",
    ]
    log = data_dir / "modelpressd.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, "--metrics_listen=localhost:0"], stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield _wait_until_serving(process, port_file, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_serving(process: "subprocess.Popen[bytes]", port_file: Path, log: Path) -> str:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        text = port_file.read_text().strip() if port_file.exists() else ""
        if text:
            target = text if ":" in text else f"localhost:{text}"
            with grpc.insecure_channel(target) as channel, contextlib.suppress(grpc.RpcError):
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                if check(b"", timeout=1, wait_for_ready=True) == SERVING:
                    return target
        time.sleep(0.02)
    raise SystemExit(f"modelpressd did not come up; its log:\n{log.read_text(errors='replace')[-4000:]}")


def open_model(path: Path) -> Any:
    """A session of ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def batches(session: Any, samples: Samples) -> Iterator[dict[str, NDArray[Any]]]:
    """The samples as the model takes them: many at once where its first axis is free, else one by one."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    count = len(next(iter(samples.inputs.values())))
    fixed = any(isinstance(shape[0], int) for shape in shapes.values())
    for begin in range(0, count, 1 if fixed else BATCH):
        if fixed:  # an input whose own first axis is 1 keeps it; another shape (a state) is one sample's whole
            yield {
                name: array[begin].reshape([size if isinstance(size, int) else 1 for size in shapes[name]])
                for name, array in samples.inputs.items()
            }
        else:
            yield {name: array[begin : begin + BATCH] for name, array in samples.inputs.items()}


def calibration_data(model: Path, samples: Samples) -> dict[str, NDArray[Any]]:
    """The samples as the service takes them (docs/calibration_data.md)."""
    session = open_model(model)
    if all(value.shape[0] == 1 or not isinstance(value.shape[0], int) for value in session.get_inputs()):
        return samples.inputs
    # An input whose first axis counts no samples, such as a state: batch by batch.
    return {f"{name}__{i}": array for i, batch in enumerate(batches(session, samples)) for name, array in batch.items()}


def run(path: Path, samples: Samples) -> NDArray[Any]:
    """The first output for every sample, [samples, ...]."""
    session = open_model(path)
    return np.concatenate([session.run(None, batch)[0] for batch in batches(session, samples)])


def compare(job: Job, fake_quant: Path) -> None:
    """Prints what quantization did to the network's answers."""
    test = job.task.test
    expected, actual = run(job.model, test), run(fake_quant, test)
    count = len(expected)
    if test.labels is not None:
        before, after = expected.argmax(1), actual.argmax(1)
        print(f"on {count} test samples, in ONNX Runtime:")
        print(f"  top-1 float model      {(before == test.labels).mean():7.2%}")
        print(f"  top-1 fake-quant model {(after == test.labels).mean():7.2%}")
        print(f"  same answer            {(before == after).mean():7.2%}")
        return
    a, b = expected.reshape(count, -1).astype(np.float64), actual.reshape(count, -1).astype(np.float64)
    if a.shape[1] == 1:  # one number per sample: compare the sequence
        a, b = a.T, b.T
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    print(
        f"cosine of float and fake-quant output on {count} samples: mean {cosine.mean():.4f}, least {cosine.min():.4f}"
    )


def print_report(report: dict[str, Any]) -> None:
    """Prints what the report says first: how much was quantized, which layer suffers most, and every warning."""
    layers = {layer["name"]: layer for layer in report["layers"]}
    print(f"{sum(layer['quantized'] for layer in layers.values())} of {len(layers)} layers quantized")
    if report["worst_first"]:
        worst = report["worst_first"][0]
        sqnr = layers[worst]["error"]["sqnr_db"]
        print(f"worst layer: {worst}, " + ("no error" if sqnr is None else f"signal to noise {sqnr:.1f} dB"))
    for warning in report["warnings"]:
        print(f"warning: {warning}")


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a network of the data folder, by name or path")
    parser.add_argument("--data", type=Path, help="a folder with models/ and its data sets")
    parser.add_argument(
        "--out", type=Path, default=Path("modelpress-demo"), help="where the files go (./modelpress-demo)"
    )
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data belong together")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    job = digits_job() if arguments.model is None else folder_job(arguments.data, arguments.model)
    data = calibration_data(job.model, job.task.calibration)

    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelpress-demo-")))
        target = stack.enter_context(server(temporary))
        client = stack.enter_context(Client(target))
        show = stack.enter_context(progress_bar("demo"))
        begin = time.monotonic()
        try:
            files = client.quantize_files(job.model, data, str(out / "model"), progress=show)
        except Error as error:
            raise SystemExit(f"modelpress: {error}") from None
        seconds = time.monotonic() - begin
    # All are there where a call has a save_path.
    deploy, fake_quant, report, page = (
        path for path in (files.deploy_model, files.fake_quant_model, files.report, files.report_html) if path
    )
    samples = len(next(iter(job.task.calibration.inputs.values())))
    print(f"{job.model.name} quantized with {samples} samples in {seconds:.1f} s, upload and download included")
    sizes = {"float model": job.model, "deploy model": deploy, "fake-quant model": fake_quant}
    print(", ".join(f"{name} {path.stat().st_size:,} bytes" for name, path in sizes.items()))
    print_report(json.loads(report.read_text(encoding="utf-8")))
    compare(job, fake_quant)
    print(f"the files are in {out.resolve()}; look at {page.resolve()}")


if __name__ == "__main__":
    main()
