"""save_model and save_prune_retrain_model through the whole stack: client, socket, server, child, files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import modelpress
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.e2e.server_process import GOLDEN_SAVE, ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path

Array: TypeAlias = np.ndarray[Any, Any]

CASES = sorted(path.parent.name for path in GOLDEN_SAVE.glob("*/modified.onnx"))
ERRORS = json.loads((GOLDEN_SAVE / "errors" / "index.json").read_text())["cases"]
DEVICE_RNN = {"BasicLSTMInplaceFillWindowCache", "BasicGRUInplaceFillWindowCache"}
# The default result is right where the reference's is not.
SHARED = "shared_initializer_handmade"


def parse(path: Path) -> onnx.ModelProto:
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type in DEVICE_RNN:
            attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
            del node.attribute[:]
            node.attribute.extend(attributes)
    return model


def run_model(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def golden_io(case: str, kind: str) -> dict[str, Array]:
    with np.load(GOLDEN_SAVE / case / "io.npz") as arrays:
        return {key.removeprefix(f"{kind}:"): arrays[key] for key in arrays if key.startswith(f"{kind}:")}


def expect_reference_files(case: str, prefix: Path) -> None:
    golden = GOLDEN_SAVE / case
    assert parse(prefix.parent / f"{prefix.name}_deploy_model.onnx") == parse(golden / "deploy.onnx")
    assert parse(prefix.parent / f"{prefix.name}_fake_quant_model.onnx") == parse(golden / "fake_quant.onnx")
    for external in golden.glob("*.external"):
        assert (prefix.parent / external.name).read_bytes() == external.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_golden_case_through_the_cli(case: str, server: ServerProcess, tmp_path: Path) -> None:
    prefix = tmp_path / "results" / "model"
    done = run_cli(
        server.target,
        "save_model",
        f"--modfied_onnx_file={GOLDEN_SAVE / case / 'modified.onnx'}",
        f"--record_file={GOLDEN_SAVE / case / 'record.txt'}",
        f"--save_path={prefix}",
        "--reference_defects",
    )
    assert done.returncode == 0, done.stderr
    expect_reference_files(case, prefix)
    expected = golden_io(case, "fq")
    outputs = run_model(prefix.parent / "model_fake_quant_model.onnx", golden_io(case, "in"))
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        assert outputs[name].tobytes() == values.tobytes(), name  # bit for bit


@pytest.mark.parametrize("case", CASES)
def test_golden_case_through_python(case: str, server: ServerProcess, tmp_path: Path) -> None:
    prefix = tmp_path / "model"
    with modelpress.Client(server.target) as client:
        saved = client.save_model_files(
            GOLDEN_SAVE / case / "modified.onnx",
            GOLDEN_SAVE / case / "record.txt",
            str(prefix),
            reference_defects=True,
        )
    assert saved.deploy_model == prefix.parent / "model_deploy_model.onnx"
    expect_reference_files(case, prefix)
    report = json.loads(saved.report.read_text())
    outputs = {output["name"].rsplit("/")[-1]: output["size_bytes"] for output in report["outputs"]}
    assert outputs[saved.deploy_model.name] == saved.deploy_model.stat().st_size


def test_by_default_shared_tensors_are_quantized_once(server: ServerProcess, tmp_path: Path) -> None:
    with modelpress.Client(server.target) as client:
        saved = client.save_model_files(
            GOLDEN_SAVE / SHARED / "modified.onnx", GOLDEN_SAVE / SHARED / "record.txt", str(tmp_path / "m")
        )
    inputs, floats = golden_io(SHARED, "in"), golden_io(SHARED, "fp")
    outputs = run_model(saved.fake_quant_model, inputs)
    wrong = golden_io(SHARED, "fq")
    for name, expected in floats.items():
        scale = np.abs(expected).max()
        assert np.abs(outputs[name] - expected).max() < 0.05 * scale
        assert np.abs(wrong[name] - expected).max() > 0.05 * scale, "the reference's defect should show in this case"
    assert json.loads(saved.report.read_text())["deviations"]


@pytest.mark.parametrize("entry", ERRORS, ids=[entry["name"] for entry in ERRORS])
def test_error_case_through_the_cli(entry: dict[str, str], server: ServerProcess, tmp_path: Path) -> None:
    done = run_cli(
        server.target,
        "save_model",
        f"--modified_onnx_file={GOLDEN_SAVE / 'errors' / entry['model']}",
        f"--record_file={GOLDEN_SAVE / 'errors' / entry['record']}",
        f"--save_path={tmp_path / 'out' / 'model'}",
        "--output=json",
    )
    if entry["recommended"].startswith("accept"):
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 65, (done.returncode, done.stderr)
    error = json.loads(done.stdout)["error"]
    assert error["reason"]
    # Files are named as they lie in the workspace, under the caller's own base names.
    assert error["file"].rsplit("/", maxsplit=1)[-1] in (entry["model"], entry["record"])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_error_in_python_says_where(server: ServerProcess, tmp_path: Path) -> None:
    errors = GOLDEN_SAVE / "errors"
    with (
        modelpress.Client(server.target) as client,
        pytest.raises(modelpress.InvalidArgument) as caught,
    ):
        client.save_model_files(errors / "base.onnx", errors / "negative_scale_d.record.txt", str(tmp_path / "m"))
    assert caught.value.reason == "RECORD_VALUE"
    assert caught.value.line
    assert caught.value.layer
    assert not list(tmp_path.iterdir())


def test_prune_plain(server: ServerProcess, tmp_path: Path) -> None:
    model = GOLDEN_SAVE / "prune_plain" / "model.onnx"
    done = run_cli(server.target, "save_prune_retrain_model", f"--model={model}", f"--save_path={tmp_path}/p")
    assert done.returncode == 0, done.stderr
    for name in ("p_deploy_model.onnx", "p_fake_quant_model.onnx"):
        assert (tmp_path / name).read_bytes() == model.read_bytes()


def test_validate_only_checks_and_writes_nothing(server: ServerProcess) -> None:
    case = GOLDEN_SAVE / "conv2d_bn_relu_linear"
    with modelpress.Client(server.target) as client:
        workspace = client.create_workspace().name
        client.upload_file(workspace, "m.onnx", case / "modified.onnx")
        client.upload_file(workspace, "r.txt", case / "record.txt")
        operation = client.save_model(workspace, "m.onnx", "r.txt", "out/m", validate_only=True)
        operation.result(timeout=60)
        report = json.loads(operation.metadata.report)
        assert report["validate_only"]
        assert [layer["quantized"] for layer in report["layers"]] == [True] * 4
        assert [file.name.rpartition("/files/")[2] for file in client.list_files(workspace)] == ["m.onnx", "r.txt"]
        bad = GOLDEN_SAVE / "errors"
        client.upload_file(workspace, "m.onnx", bad / "weight_nan.onnx")
        client.upload_file(workspace, "r.txt", bad / "weight_nan.record.txt")
        with pytest.raises(modelpress.InvalidArgument) as caught:
            client.save_model(workspace, "m.onnx", "r.txt", "out/m", validate_only=True).result(timeout=60)
        assert caught.value.reason == "TENSOR_INVALID"
        client.delete_workspace(workspace)


def test_a_queued_job_keeps_the_content_it_was_given(server: ServerProcess, tmp_path: Path) -> None:
    first, second = GOLDEN_SAVE / "conv1d", GOLDEN_SAVE / "conv3d"
    with modelpress.Client(server.target) as client:
        workspace = client.create_workspace().name
        client.upload_file(workspace, "m.onnx", first / "modified.onnx")
        client.upload_file(workspace, "r.txt", first / "record.txt")
        operation = client.save_model(workspace, "m.onnx", "r.txt", "out/m", reference_defects=True)
        client.upload_file(workspace, "m.onnx", second / "modified.onnx")
        client.upload_file(workspace, "r.txt", second / "record.txt")
        response = operation.result(timeout=60)
        client.download_file(response.deploy_model.name, tmp_path / "deploy.onnx")
        client.delete_workspace(workspace)
    assert parse(tmp_path / "deploy.onnx") == parse(first / "deploy.onnx")


def test_bad_names(server: ServerProcess, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    with modelpress.Client(server.target) as client:
        workspace = client.create_workspace().name
        for name in ("../x", "/etc/passwd", "a/../b", "a//b", "a\\b", "x" * 256):
            with pytest.raises(modelpress.InvalidArgument) as caught:
                client.upload_file(workspace, name, source)
            assert caught.value.reason == "NAME_INVALID"
        with pytest.raises(modelpress.InvalidArgument):
            client.save_model(workspace, "m.onnx", "r.txt", "../out").result(timeout=60)
        with pytest.raises(modelpress.NotFound) as missing:
            client.save_model(workspace, "m.onnx", "r.txt", "out/m")
        assert missing.value.reason == "FILE_NOT_FOUND"
        with pytest.raises(modelpress.NotFound) as unknown:
            client.upload_file("workspaces/nowhere", "x", source)
        assert unknown.value.reason == "WORKSPACE_NOT_FOUND"
        client.delete_workspace(workspace)


@pytest.mark.parametrize(
    ("location", "reason"),
    [("../secret.bin", "MODEL_EXTERNAL_DATA"), ("/etc/passwd", "MODEL_EXTERNAL_DATA"), ("gone.bin", "FILE_NOT_FOUND")],
)
def test_external_data_outside_or_missing(server: ServerProcess, tmp_path: Path, location: str, reason: str) -> None:
    model = onnx.load(GOLDEN_SAVE / "external_data_input" / "modified.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with modelpress.Client(server.target) as client:
        workspace = client.create_workspace().name
        client.upload_file(workspace, "model/m.onnx", tmp_path / "m.onnx")
        client.upload_file(workspace, "secret.bin", GOLDEN_SAVE / "external_data_input" / "weights.bin")
        client.upload_file(workspace, "r.txt", GOLDEN_SAVE / "external_data_input" / "record.txt")
        with pytest.raises((modelpress.InvalidArgument, modelpress.NotFound)) as caught:
            client.save_model(workspace, "model/m.onnx", "r.txt", "out/m").result(timeout=60)
        assert caught.value.reason == reason
        client.delete_workspace(workspace)


def test_server_stops_on_sigterm_and_goes_on_where_it_was(tmp_path: Path) -> None:
    case = GOLDEN_SAVE / "conv1d"
    with ServerProcess(tmp_path) as server:
        with modelpress.Client(server.target) as client:
            workspace = client.create_workspace().name
            client.upload_file(workspace, "m.onnx", case / "modified.onnx")
            client.upload_file(workspace, "r.txt", case / "record.txt")
            name = client.save_model(workspace, "m.onnx", "r.txt", "out/m", reference_defects=True).name
        assert server.stop() == 0
        server.start()
        with modelpress.Client(server.target) as client:
            response = client.get_operation(name).result(timeout=60)
            client.download_file(response.deploy_model.name, tmp_path / "deploy.onnx")
    assert parse(tmp_path / "deploy.onnx") == parse(case / "deploy.onnx")
