"""Quantizes a real network through a modelpressd of its own, and measures what that costs in accuracy.

Without arguments: the digits network of examples/digits. With --model and --data: a float network of a data folder, for
which a record with plain ranges is made first. The results stay in --out.
"""

import argparse
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folder_data
import grpc
import numpy as np
from folder_data import Samples
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
    """What is quantized and what it is tested on."""

    float_model: Path
    modified_model: Path
    record: Path
    test: Samples


def digits_job() -> Job:
    """The committed network, on scikit-learn's test images."""
    import digits_data

    data = digits_data.load()
    samples = Samples({"images": data.test_images}, data.test_labels)
    return Job(DIGITS / "model.onnx", DIGITS / "modified.onnx", DIGITS / "record.txt", samples)


def folder_job(data: Path, name: str, out: Path) -> Job:
    """A network of a data folder: names its nodes and calibrates it."""
    import max_range_record
    from onnx_pair import onnx

    path = folder_data.find_model(data, name)
    task = folder_data.load(data, path)
    model = onnx.load(path)
    max_range_record.name_nodes(model)
    begin = time.monotonic()
    session = open_model(path)
    try:
        layers = max_range_record.write_record(model, batches(session, task.calibration), out / "record.txt")
    except ValueError as error:
        raise SystemExit(f"{path.name}: {error}") from None
    onnx.save(model, out / "modified.onnx")
    count = len(next(iter(task.calibration.inputs.values())))
    print(f"calibrated {len(layers)} layers on {count} samples in {time.monotonic() - begin:.1f} s")
    return Job(path, out / "modified.onnx", out / "record.txt", task.test)


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


def run(path: Path, samples: Samples) -> NDArray[Any]:
    """The first output for every sample, [samples, ...]."""
    session = open_model(path)
    return np.concatenate([session.run(None, batch)[0] for batch in batches(session, samples)])


def compare(job: Job, fake_quant: Path) -> None:
    """Prints what quantization did to the network's answers."""
    expected, actual = run(job.float_model, job.test), run(fake_quant, job.test)
    count = len(expected)
    if job.test.labels is not None:
        before, after = expected.argmax(1), actual.argmax(1)
        print(f"on {count} test samples:")
        print(f"  top-1 float model      {(before == job.test.labels).mean():7.2%}")
        print(f"  top-1 fake-quant model {(after == job.test.labels).mean():7.2%}")
        print(f"  same answer            {(before == after).mean():7.2%}")
        return
    a, b = expected.reshape(count, -1).astype(np.float64), actual.reshape(count, -1).astype(np.float64)
    if a.shape[1] == 1:  # one number per sample: compare the sequence
        a, b = a.T, b.T
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    print(
        f"cosine of float and fake-quant output on {count} samples: mean {cosine.mean():.4f}, least {cosine.min():.4f}"
    )


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
    job = digits_job() if arguments.model is None else folder_job(arguments.data, arguments.model, out)

    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelpress-demo-")))
        target = stack.enter_context(server(temporary))
        client = stack.enter_context(Client(target))
        show = stack.enter_context(progress_bar("demo"))
        try:
            workspace = client.create_workspace("demo").name

            def upload() -> None:
                client.upload_file(workspace, "model/modified.onnx", job.modified_model, progress=show)
                client.upload_file(workspace, "record/record.txt", job.record, progress=show)

            upload_s, _ = timed(upload)
            operation = client.save_model(workspace, "model/modified.onnx", "record/record.txt", "results/model")
            operation_s, response = timed(lambda: operation.result(progress=show))

            def download() -> None:
                for file in (
                    response.deploy_model,
                    response.fake_quant_model,
                    *response.external_data,
                    response.report,
                ):
                    client.download_file(file.name, out / Path(file.name).name, progress=show)

            download_s, _ = timed(download)
        except Error as error:
            raise SystemExit(f"modelpress: {error}") from None
        for warning in operation.metadata.warnings:
            print(f"warning: {warning}")

    deploy, fake_quant = out / "model_deploy_model.onnx", out / "model_fake_quant_model.onnx"
    print(f"upload {upload_s:.2f} s, save_model {operation_s:.2f} s, download {download_s:.2f} s")
    sizes = {"float model": job.float_model, "deploy model": deploy, "fake-quant model": fake_quant}
    print(", ".join(f"{name} {path.stat().st_size:,} bytes" for name, path in sizes.items()))
    compare(job, fake_quant)
    print(f"the files are in {out.resolve()}")


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that the action took, and its result."""
    begin = time.monotonic()
    result = action()
    return time.monotonic() - begin, result


if __name__ == "__main__":
    main()
