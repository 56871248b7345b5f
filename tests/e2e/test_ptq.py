"""Post-training quantization through the whole stack: client, socket, server, child, engine, files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import modelpress
import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from modelpress.amct import record_pb2

from tests.e2e.server_process import SOURCE_DIR, ServerProcess, run_cli

if TYPE_CHECKING:
    from collections.abc import Callable

Array: TypeAlias = np.ndarray[Any, Any]

GOLDEN = SOURCE_DIR / "tests" / "golden" / "ptq"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/modified.onnx"))
# Relative difference of balance factors, and of all that follows from them: another inference engine's activations, and
# another library's powf (ptq.md section 9).
BALANCED = {"dmq": 1e-6, "dmq_strength": 1e-6}


def case_of(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((GOLDEN / name / "case.json").read_text())
    return case


def balanced(name: str) -> bool:
    return (GOLDEN / name / "record_balance.txt").exists()


def parse(text: str) -> dict[str, Any]:
    record = text_format.Parse(text, record_pb2.ScaleOffsetRecord())
    return {entry.key: entry.value for entry in record.record}


def expect_record(written: Path, golden: Path, tolerance: float = 0) -> None:
    """Keys in order; activation factors within the tolerance for another inference engine, the rest exact."""
    actual, expected = parse(written.read_text()), parse(golden.read_text())
    assert list(actual) == list(expected)
    for key, want in expected.items():
        have = actual[key]
        for field in ("scale_d", "scale_h"):
            assert math.isclose(getattr(have, field), getattr(want, field), rel_tol=1e-5), (key, field)
        for field in ("offset_d", "offset_h"):
            assert abs(getattr(have, field) - getattr(want, field)) <= 1, (key, field)
        for field in ("scale_w", "scale_r", "tensor_balance_factor"):
            assert np.allclose(getattr(have, field), getattr(want, field), rtol=tolerance, atol=0), (key, field)
        for message in (have, want):
            for field in ("scale_d", "offset_d", "scale_h", "offset_h"):
                message.ClearField(field)
            if tolerance:
                for field in ("scale_w", "tensor_balance_factor"):
                    message.ClearField(field)
        assert have == want, key


def expect_weights(written: Path, case: str) -> None:
    golden = GOLDEN / case / "record_weights.txt"
    if case in BALANCED:
        expect_record(written, golden, BALANCED[case])
    else:
        assert written.read_text() == golden.read_text()


def cli(server: ServerProcess, *arguments: Any) -> str:
    done = run_cli(server.target, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def config_flags(case: str) -> list[str]:
    arguments = case_of(case)["create_quant_config_args"]
    if isinstance(arguments, str):
        return [f"--config_defination={GOLDEN / case / arguments}"]
    flags = [f"--batch_num={arguments['batch_num']}"]
    if "skip_layers" in arguments:
        flags.append(f"--skip_layers={','.join(arguments['skip_layers'])}")
    if not arguments.get("activation_offset", True):
        flags.append("--no-activation_offset")
    return flags


@pytest.mark.parametrize("case", CASES)
def test_golden_case_through_the_cli(case: str, server: ServerProcess, tmp_path: Path) -> None:
    """The documented steps, one command each."""
    golden = GOLDEN / case
    config, record, modified = golden / "config.json", tmp_path / "r" / "record.txt", tmp_path / "m" / "modified.onnx"
    model, data = f"--model={golden / 'model.onnx'}", f"--calibration-data={golden / 'calib.npz'}"

    made = tmp_path / "made.json"
    cli(server, "create_quant_config", f"--config_file={made}", model, *config_flags(case), "--reference_defects")
    generated = golden / "config_generated.json"  # where config.json was edited by hand
    assert made.read_bytes() == (generated if generated.exists() else config).read_bytes()

    common = (f"--config_file={config}", f"--record_file={record}", "--reference_defects")
    if balanced(case):
        cli(server, "quantize_preprocess", *common, model, data)
        expect_record(record, golden / "record_balance.txt", BALANCED.get(case, 0))
    sample = f"--input_data={golden / 'calib.npz'}"
    cli(server, "quantize_model", *common, model, f"--modfied_onnx_file={modified}", sample)
    expect_weights(record, case)
    cli(server, "calibrate", *common, model, f"--modfied_onnx_file={modified}", data)
    expect_record(record, golden / "record.txt", BALANCED.get(case, 0))

    cli(
        server,
        "save_model",
        f"--modfied_onnx_file={modified}",
        f"--record_file={record}",
        f"--save_path={tmp_path}/out/x",
    )
    assert (tmp_path / "out" / "x_deploy_model.onnx").stat().st_size > 0
    inputs = calibration_batches(golden / "calib.npz")[0]
    outputs = run_model(tmp_path / "out" / "x_fake_quant_model.onnx", inputs)
    assert all(np.isfinite(array).all() for array in outputs)


@pytest.mark.parametrize("case", CASES)
def test_golden_case_through_python(case: str, server: ServerProcess, tmp_path: Path) -> None:
    golden = GOLDEN / case
    config, record, modified = golden / "config.json", tmp_path / "record.txt", tmp_path / "modified.onnx"
    batches = calibration_batches(golden / "calib.npz")
    with modelpress.Client(server.target) as client:
        if balanced(case):
            client.quantize_preprocess_files(config, record, golden / "model.onnx", batches[:1], reference_defects=True)
        quantized = client.quantize_model_files(
            golden / "model.onnx",
            config_file=config,
            modified_onnx_file=modified,
            record_file=record,
            sample_data=batches[:1],
            reference_defects=True,
        )
        assert quantized.modified_onnx_file == modified
        expect_weights(record, case)
        client.calibrate_files(
            record, config, batches, modified_onnx_file=modified, model=golden / "model.onnx", reference_defects=True
        )
        expect_record(record, golden / "record.txt", BALANCED.get(case, 0))


def test_key_value_caches(server: ServerProcess, tmp_path: Path) -> None:
    golden = GOLDEN / "kv_cache"
    config, record = tmp_path / "c.json", tmp_path / "record.txt"
    cli(
        server,
        "create_quant_config",
        f"--config_file={config}",
        f"--model={golden / 'model.onnx'}",
        "--kv_cache",
        f"--config_definition={golden / 'kv.cfg'}",
    )
    assert config.read_bytes() == (golden / "config.json").read_bytes()
    cli(
        server,
        "calibrate",
        f"--config_file={config}",
        f"--record_file={record}",
        f"--model={golden / 'model.onnx'}",
        f"--calibration-data={golden / 'calib.npz'}",
    )
    actual, expected = (
        text_format.Parse(path.read_text(), record_pb2.ScaleOffsetRecord()).record
        for path in (record, golden / "record.txt")
    )
    assert [entry.key for entry in actual] == [entry.key for entry in expected]
    for have, want in zip(actual, expected, strict=True):
        assert np.allclose(have.kv_cache_value.scale, want.kv_cache_value.scale, rtol=1e-5), want.key
        assert np.allclose(have.kv_cache_value.offset, want.kv_cache_value.offset, atol=1), want.key


def calibration_batches(path: Path) -> list[dict[str, Array]]:
    """{input: array} by batch, of members <input>__<batch>."""
    batches: dict[int, dict[str, Array]] = {}
    with np.load(path) as members:
        for member in members.files:
            name, _, batch = member.rpartition("__")
            batches.setdefault(int(batch), {})[name] = members[member]
    return [batches[i] for i in range(len(batches))]


def run_model(path: Path, inputs: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})
    return outputs


def test_all_in_one(server: ServerProcess, tmp_path: Path) -> None:
    golden = GOLDEN / "residual"
    done = run_cli(
        server.target,
        "quantize",
        golden / "model.onnx",
        f"--calibration-data={golden / 'calib.npz'}",
        "-o",
        f"{tmp_path}/out/",
    )
    assert done.returncode == 0, done.stderr
    names = {Path(line).name for line in done.stdout.splitlines()}
    endings = {"modified_model.onnx", "deploy_model.onnx", "fake_quant_model.onnx", "config.json", "record.txt"}
    assert {f"model_{ending}" for ending in endings | {"report.json", "report.html"}} == names
    assert re.search(r"^size: .* -> .* \(\d+ %\)$", done.stderr, re.MULTILINE)
    assert re.search(r"^largest errors: ", done.stderr, re.MULTILINE)
    # The same in steps gives the same files, and the report of both ways says so.
    config = json.loads((tmp_path / "out" / "model_config.json").read_text())
    assert config["batch_num"] == 2  # as many as there are
    inputs = calibration_batches(golden / "calib.npz")[0]
    wanted = run_model(golden / "model.onnx", inputs)[0]
    got = run_model(tmp_path / "out" / "model_fake_quant_model.onnx", inputs)[0]
    assert np.corrcoef(wanted.ravel(), got.ravel())[0, 1] > 0.99
    with modelpress.Client(server.target) as client:
        saved = client.quantize_files(
            golden / "model.onnx", calibration_batches(golden / "calib.npz"), f"{tmp_path}/again/model"
        )
    assert saved.deploy_model is not None
    for path in (saved.deploy_model, saved.record_file, saved.modified_onnx_file):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_validate_only_writes_nothing(server: ServerProcess, tmp_path: Path) -> None:
    golden = GOLDEN / "conv_bn_relu"
    data = f"--calibration-data={golden / 'calib.npz'}"
    assert not cli(server, "quantize", golden / "model.onnx", data, "-o", f"{tmp_path}/out/", "--validate_only")
    assert not (tmp_path / "out").exists()


GOOD = np.linspace(-1, 1, 8 * 3 * 16 * 16, dtype=np.float32).reshape(8, 3, 16, 16)


def save_npz(folder: Path, **arrays: Array) -> Path:
    path = folder / "x.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def truncated(folder: Path) -> Path:
    path = save_npz(folder, input__0=GOOD)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def pickled(folder: Path) -> Path:
    path = folder / "x.npz"
    np.savez(path, input__0=np.array([{"a": 1}], dtype=object))
    return path


def not_finite(folder: Path) -> Path:
    samples = GOOD.copy()
    samples[7, 1, 2, 3] = np.nan
    return save_npz(folder, input__0=samples)


def empty_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    return folder / "data"


BAD_DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "wrong name": (lambda folder: save_npz(folder, other__0=GOOD, input2__0=GOOD), "DATA_MISMATCH"),
    "wrong shape": (lambda folder: save_npz(folder, input__0=GOOD[:, :2]), "DATA_MISMATCH"),
    "wrong rank": (lambda folder: save_npz(folder, input__0=GOOD[0]), "DATA_MISMATCH"),
    "wrong type": (lambda folder: save_npz(folder, input__0=GOOD.astype(np.complex64)), "DATA_"),
    "NaN in sample 7": (not_finite, "DATA_NOT_FINITE"),
    "too few batches": (lambda folder: save_npz(folder, input__0=GOOD), "DATA_TOO_SHORT"),
    "truncated": (truncated, "DATA_UNREADABLE"),
    "a pickle": (pickled, "DATA_UNREADABLE"),
    "no data": (save_npz, "DATA_"),
    "empty folder": (empty_folder, "DATA_TOO_SHORT"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_refused_with_its_reason(kind: str, server: ServerProcess, tmp_path: Path) -> None:
    make, reason = BAD_DATA[kind]
    golden = GOLDEN / "residual"  # two batches
    config = tmp_path / "c.json"
    content = json.loads((golden / "config.json").read_text())
    content["batch_num"] = 2 if kind == "too few batches" else 1
    config.write_text(json.dumps(content))
    shape = calibration_batches(golden / "calib.npz")[0]["input"].shape
    assert len(shape) == 4
    done = run_cli(
        server.target,
        "quantize",
        golden / "model.onnx",
        f"--config_file={config}",
        f"--calibration-data={make(tmp_path)}",
        f"-o{tmp_path}/out/",
        "--output=json",
    )
    assert done.returncode == 65, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["reason"].startswith(reason), error
    if kind == "NaN in sample 7":
        assert "7" in error["message"]
    assert not (tmp_path / "out").exists()
