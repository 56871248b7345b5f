"""The calls of post-training quantization, on files of a workspace and on local files."""

import io
import zipfile
from pathlib import Path
from typing import Any

import modelpress
import numpy as np
import pytest
from modelpress import Client
from modelpress.local_call import LocalCall
from protocol_server import ProtocolServer


@pytest.fixture
def client(server: ProtocolServer) -> Client:
    return Client(server.target)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {"model": b"", "config": b"{}", "record": b"record", "data.npz": b"data", "manifest": b"{}", "cfg": b""}
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / "in" / name
        paths[name].parent.mkdir(exist_ok=True)
        paths[name].write_bytes(content)
    return paths


def sent(server: ProtocolServer, prefix: str) -> dict[str, bytes]:
    """Files of the last call's workspace by their paths."""
    base = f"{server.requests[-1].workspace}/files/"
    return {name.removeprefix(base): data for name, data in server.files.items() if name.startswith(base + prefix)}


def test_requests_on_files_of_a_workspace(client: Client, server: ProtocolServer) -> None:
    workspace = client.create_workspace("w").name
    operation = client.create_quant_config(
        workspace,
        "c.json",
        "m.onnx",
        skip_layers=["a"],
        batch_num=3,
        activation_offset=False,
        kv_cache=True,
        kv_cache_layers=["k"],
        module_manifest="m.json",
        config_definition="c.cfg",
        validate_only=True,
    )
    assert operation.result().config_file.name == f"{workspace}/files/c.json"
    request = server.requests[-1]
    assert (request.config_file, request.model, request.batch_num) == ("c.json", "m.onnx", 3)
    assert request.HasField("activation_offset")
    assert not request.activation_offset
    assert request.kv_cache
    assert list(request.kv_cache_layers) == ["k"]
    assert request.options.validate_only
    assert request.options.request_id

    client.create_quant_config(workspace, "c.json", "m.onnx")
    assert not server.requests[-1].HasField("activation_offset")

    client.quantize_preprocess(workspace, "c.json", "r.txt", "m.onnx", "data", batch_size=4).result()
    assert server.requests[-1].calibration_data.path == "data"
    assert server.requests[-1].calibration_data.batch_size == 4

    operation_2 = client.quantize_model(
        workspace,
        "m.onnx",
        config_file="c.json",
        modified_onnx_file="mod.onnx",
        record_file="r.txt",
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}, "y": [1, 2]},
        sample_data="s.npz",
        execution_timeout=1.5,
    )
    assert operation_2.result().record_file.name == f"{workspace}/files/r.txt"
    request = server.requests[-1]
    assert dict(request.dynamic_axes["x"].labels) == {0: "n"}
    assert dict(request.dynamic_axes["y"].labels) == {1: "", 2: ""}
    assert request.sample_data.path == "s.npz"
    assert not request.HasField("calibration_data")
    assert request.options.execution_timeout.ToTimedelta().total_seconds() == 1.5

    client.calibrate(workspace, "r.txt", "c.json", "data", modified_onnx_file="mod.onnx", model="m.onnx").result()
    assert server.requests[-1].modified_onnx_file == "mod.onnx"
    found = client.get_operation(operation_2.name)
    assert found.result().modified_onnx_file.name.endswith("/mod.onnx")


def test_every_step_on_local_files(
    client: Client, server: ProtocolServer, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = client.create_quant_config_files(
        out / "c.json", files["model"], module_manifest=files["manifest"], config_definition=files["cfg"]
    )
    assert made == modelpress.SavedConfig(out / "c.json", ("a warning",))
    assert (out / "c.json").stat().st_mode & 0o777 == 0o640
    assert server.requests[-1].config_definition == "config_definition/cfg"

    balanced = client.quantize_preprocess_files(files["config"], out / "b" / "r.txt", files["model"], files["data.npz"])
    assert balanced.record_file.read_bytes() == b"balance"

    quantized = client.quantize_model_files(
        files["model"],
        config_file=files["config"],
        modified_onnx_file=out / "a" / "m.onnx",
        record_file=out / "b" / "r.txt",
    )
    assert quantized.modified_onnx_file == out / "a" / "m.onnx"
    assert quantized.external_data == (out / "a" / "w.external",)
    assert quantized.record_file.read_bytes() == b"weights + balance"  # the record that was there went along
    assert quantized.deploy_model is None

    done = client.calibrate_files(
        out / "b" / "r.txt", files["config"], files["data.npz"], modified_onnx_file=quantized.modified_onnx_file
    )
    assert done.record_file.read_bytes() == b"activations + weights + balance"
    assert sorted(path.name for path in (out / "b").iterdir()) == ["r.txt"]
    assert not server.workspaces


def test_a_record_that_is_gone_is_not_read_from_a_kept_workspace(
    client: Client, files: dict[str, Path], tmp_path: Path
) -> None:
    for _ in range(2):
        quantized = client.quantize_model_files(
            files["model"],
            config_file=files["config"],
            modified_onnx_file=tmp_path / "m.onnx",
            record_file=tmp_path / "r.txt",
            workspace="kept",
        )
        assert quantized.record_file.read_bytes() == b"weights + nothing"
        quantized.record_file.unlink()


def test_all_in_one(client: Client, files: dict[str, Path], tmp_path: Path) -> None:
    quantized = client.quantize_files(files["model"], files["data.npz"], f"{tmp_path}/out/m", skip_layers=["a"])
    assert quantized.deploy_model == tmp_path / "out" / "m_deploy_model.onnx"
    assert quantized.report_html is not None
    assert quantized.config_file is not None
    for path in (quantized.deploy_model, quantized.report_html, quantized.config_file, quantized.record_file):
        assert path.parent == tmp_path / "out"
        assert path.exists()


@pytest.mark.parametrize(
    ("data", "members"),
    [
        ({"x": np.zeros((4, 2), np.float32)}, {"x": (4, 2)}),
        (
            [{"x/y": np.zeros((4, 2)), "file": np.ones(1)}, {"x/y": np.zeros((3, 2)), "file": np.ones(1)}],
            {"x/y__0": (4, 2), "file__0": (1,), "x/y__1": (3, 2), "file__1": (1,)},
        ),
    ],
)
def test_arrays_as_calibration_data(
    client: Client, server: ProtocolServer, files: dict[str, Path], data: Any, members: dict[str, tuple[int, ...]]
) -> None:
    client.calibrate_files(files["record"], files["config"], data, modified_onnx_file=files["model"])
    (archive,) = sent(server, "calibration_data/").values()
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        assert {name.removesuffix(".npy"): np.load(file.open(name)).shape for name in file.namelist()} == members


def test_a_folder_of_data(client: Client, server: ProtocolServer, files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("2.npy", "sub/1.npy", ".hidden", ".git/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)

    def calibrate() -> str:
        client.calibrate_files(
            files["record"], files["config"], folder, modified_onnx_file=files["model"], workspace="kept"
        )
        path: str = server.requests[-1].calibration_data.path
        return path

    first = calibrate()
    assert sent(server, f"{first}/") == {f"{first}/2.npy": b"2.npy", f"{first}/sub/1.npy": b"sub/1.npy"}
    # What an earlier call left in the workspace is not taken for data of this one.
    (folder / "2.npy").unlink()
    second = calibrate()
    assert sent(server, f"{second}/") == {f"{second}/sub/1.npy": b"sub/1.npy"}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"calibration_data": "missing.npz"}, FileNotFoundError, "missing.npz"),
        ({"calibration_data": 3}, TypeError, "calibration_data must be a path"),
        ({"calibration_data": [1]}, TypeError, "calibration_data must be a path"),
        ({"calibration_data": {"x": np.array([object()])}}, ValueError, "allow_pickle"),
        ({"record_file": "missing.txt"}, FileNotFoundError, "missing.txt"),
        ({"config_file": "missing.json"}, FileNotFoundError, "missing.json"),
        ({"modified_onnx_file": None}, OSError, "model"),
    ],
)
def test_wrong_local_files_are_found_before_anything_is_sent(
    client: Client, server: ProtocolServer, files: dict[str, Path], change: Any, error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {
        "record_file": files["record"],
        "config_file": files["config"],
        "calibration_data": files["data.npz"],
        "modified_onnx_file": files["model"],
    }
    with pytest.raises(error, match=text):
        client.calibrate_files(**arguments | change)
    assert not server.workspaces
    assert not server.deleted


def test_outputs_must_be_files_of_different_names(client: Client, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        client.calibrate_files(files["record"], files["config"], tmp_path / "empty", modified_onnx_file=files["model"])
    with pytest.raises(ValueError, match="not the path of a file"):
        client.create_quant_config_files(tmp_path / "empty", files["model"])
    with pytest.raises(ValueError, match=r"record_file.*not the path of a file"):
        client.quantize_model_files(files["model"], config_file=files["config"], modified_onnx_file=tmp_path / "m")
    with pytest.raises(ValueError, match="two results"):
        client.quantize_model_files(
            files["model"], config_file=files["config"], modified_onnx_file=tmp_path / "m", record_file=tmp_path / "m"
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", ["results/a/b", "record/other", "record/", "../x", "results/..", "results/", "x"])
def test_a_server_cannot_choose_other_paths(tmp_path: Path, name: str) -> None:
    call = LocalCall()
    call.receive_saved(f"{tmp_path}/m")
    call.receive(tmp_path / "r.txt", "record_file", "record")
    assert call.path_of("record/r.txt") == tmp_path / "r.txt"
    assert call.path_of("results/w.external") == tmp_path / "w.external"
    with pytest.raises(ValueError, match="not asked for"):
        call.path_of(name)
