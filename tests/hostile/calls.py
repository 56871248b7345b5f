"""The calls that hostile files are given to, on a folder of a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import modelpress

    Call = Callable[[modelpress.Client, str, str], Any]


def save(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """save_model: model and record."""
    return client.save_model(workspace, f"{folder}/m.onnx", f"{folder}/r.txt", f"{folder}/out/m")


def prune(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """create_prune_retrain_model: shape inference, channel groups, a model cut."""
    return client.create_prune_retrain_model(
        workspace, f"{folder}/m.onnx", f"{folder}/p.cfg", f"{folder}/out/r.txt", f"{folder}/out/m"
    )


def restore(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """restore_prune_retrain_model: a record with channels cut, and weights."""
    return client.restore_prune_retrain_model(
        workspace,
        f"{folder}/m.onnx",
        f"{folder}/pr.txt",
        f"{folder}/p.cfg",
        f"{folder}/out/m",
        weights=f"{folder}/w.safetensors",
    )


def search(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """auto_channel_prune_search: a configuration and sensitivities."""
    return client.auto_channel_prune_search(
        workspace, f"{folder}/m.onnx", f"{folder}/s.cfg", f"{folder}/sens.safetensors", f"{folder}/out/o.cfg"
    )


def define(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """create_quant_config from a simple configuration."""
    return client.create_quant_config(
        workspace, f"{folder}/out/c.json", f"{folder}/m.onnx", config_definition=f"{folder}/q.cfg"
    )


def define_retrain(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """create_quant_retrain_config from a simple configuration."""
    return client.create_quant_retrain_config(
        workspace, f"{folder}/out/c.json", f"{folder}/m.onnx", config_definition=f"{folder}/q.cfg"
    )


def configure(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """quantize_model with a JSON configuration, without data."""
    return client.quantize_model(
        workspace,
        f"{folder}/m.onnx",
        config_file=f"{folder}/c.json",
        modified_onnx_file=f"{folder}/out/m.onnx",
        record_file=f"{folder}/out/r.txt",
    )


def manifest(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """create_quant_config with a module manifest."""
    return client.create_quant_config(
        workspace, f"{folder}/out/c.json", f"{folder}/m.onnx", module_manifest=f"{folder}/manifest.json"
    )


def calibrate_npz(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """quantize_model with data in an archive: ONNX Runtime runs the model."""
    return client.quantize_model(
        workspace, f"{folder}/m.onnx", calibration_data=f"{folder}/d.npz", save_path=f"{folder}/out/m"
    )


def calibrate_briefly(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """The same with a deadline, for what has no end of its own."""
    return client.quantize_model(
        workspace,
        f"{folder}/m.onnx",
        calibration_data=f"{folder}/d.npz",
        save_path=f"{folder}/out/m",
        execution_timeout=5,
    )


def calibrate_npy(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """The same with data in an .npy file."""
    return client.quantize_model(
        workspace, f"{folder}/m.onnx", calibration_data=f"{folder}/d.npy", save_path=f"{folder}/out/m"
    )


def calibrate_pb(client: modelpress.Client, workspace: str, folder: str) -> Any:
    """The same with data in a TensorProto."""
    return client.quantize_model(
        workspace, f"{folder}/m.onnx", calibration_data=f"{folder}/d.pb", save_path=f"{folder}/out/m"
    )


CALLS: dict[str, Call] = {
    call.__name__: call
    for call in (
        save,
        prune,
        restore,
        search,
        define,
        define_retrain,
        configure,
        manifest,
        calibrate_npz,
        calibrate_briefly,
        calibrate_npy,
        calibrate_pb,
    )
}
