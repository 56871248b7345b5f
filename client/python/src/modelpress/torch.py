"""The documented functions of AMCT (amct_pytorch) on local paths and torch modules, computed by the service.

    import modelpress.torch as amct

    amct.connect("compression.example:50051")
    amct.save_model("modified.onnx", "record.txt", "results/model")

Signatures, spellings and the files written are the documented ones (docs/python.md). The functions use the session of
the last `connect`, or else one made of the variables MODELPRESS_TARGET and MODELPRESS_REFERENCE_DEFECTS. That default
is this module's only state; code that wants several connections keeps the `Session` that `connect` returns and calls
its methods.
"""

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modelpress.aio import SavedModels
from modelpress.client import Client
from modelpress.local_files import SavePath
from modelpress.progress import progress_bar

__all__ = ["Session", "connect", "save_model", "save_prune_retrain_model"]

_MAX_NAME_LENGTH = 254
DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]


class Session:
    """Where and how the functions are computed; each call opens and closes its own connection."""

    def __init__(
        self,
        target: str | None = None,
        *,
        reference_defects: bool | None = None,
        workspace: str | None = None,
        credentials: Any = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            target: host:port; None: variable MODELPRESS_TARGET, else localhost:50051.
            reference_defects: bring back the bytes of the reference where it is wrong; None: only if the variable
                MODELPRESS_REFERENCE_DEFECTS is 1.
            workspace: a workspace to use and keep; None: a temporary one per call.
            credentials: grpc.ChannelCredentials; None: plaintext to this machine, else TLS.
        """
        self._target = target
        self._workspace = workspace
        self._credentials = credentials
        if reference_defects is None:
            reference_defects = os.environ.get("MODELPRESS_REFERENCE_DEFECTS") == "1"
        self._reference_defects = reference_defects

    def save_model(self, modfied_onnx_file: str, record_file: str, save_path: str) -> SavedModels:
        """See the function `save_model`."""
        _check_type("save_model", "modfied_onnx_file", modfied_onnx_file, str)
        _check_type("save_model", "record_file", record_file, str)
        _check_type("save_model", "save_path", save_path, str)
        _check_file_name("modfied_onnx_file", modfied_onnx_file)
        _check_file_name("record_file", record_file)
        with self._client() as client, progress_bar("save_model") as show:
            return client.save_model_files(
                modfied_onnx_file,
                record_file,
                save_path,
                workspace=self._workspace,
                reference_defects=self._reference_defects,
                progress=show,
            )

    def save_prune_retrain_model(
        self,
        model: torch.nn.Module,
        save_path: str,
        input_data: tuple[Any, ...] | torch.Tensor,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
    ) -> SavedModels:
        """See the function `save_prune_retrain_model`."""
        function = "save_prune_retrain_model"
        _check_type(function, "model", model, torch.nn.Module)
        _check_type(function, "save_path", save_path, str)
        _check_names(function, "input_names", input_names)
        _check_names(function, "output_names", output_names)
        _check_dynamic_axes(function, dynamic_axes)
        SavePath.parse(save_path)
        with tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
            exported = Path(folder) / "model.onnx"
            export(model, exported, input_data, input_names, output_names, dynamic_axes)
            with self._client() as client, progress_bar(function) as show:
                return client.save_prune_retrain_model_files(
                    exported, save_path, workspace=self._workspace, progress=show
                )

    def _client(self) -> Client:
        return Client(self._target, credentials=self._credentials)


_default_session: Session | None = None


def connect(
    target: str | None = None,
    *,
    reference_defects: bool | None = None,
    workspace: str | None = None,
    credentials: Any = None,
) -> Session:
    """Makes a session and the default of this module's functions; arguments as in Session."""
    global _default_session  # noqa: PLW0603  the one documented default
    _default_session = Session(
        target, reference_defects=reference_defects, workspace=workspace, credentials=credentials
    )
    return _default_session


def save_model(modfied_onnx_file: str, record_file: str, save_path: str) -> None:
    """Writes the model for the device and the one for accuracy simulation.

    Args:
        modfied_onnx_file: the modified model that quantize_model wrote; external data files lie beside it.
        record_file: the record file.
        save_path: folder and prefix: "results/model" gives results/model_deploy_model.onnx,
            results/model_fake_quant_model.onnx and results/model_report.json.

    Raises:
        TypeError: an argument is no string.
        ValueError: a path is not a legal file name, or the prefix is too long.
        modelpress.Error: the service's answer; a RuntimeError, and also a ValueError where the files are wrong.
    """
    (_default_session or Session()).save_model(modfied_onnx_file, record_file, save_path)


def save_prune_retrain_model(
    model: torch.nn.Module,
    save_path: str,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> None:
    """Exports a pruned or 2:4 sparse module to ONNX and saves it under both names.

    Args:
        model: the trained module; its parameters and training flags are left as they are.
        save_path: folder and prefix as in save_model.
        input_data: what to trace the module with: a tuple, or one tensor.
        input_names: names for the graph's inputs.
        output_names: names for the graph's outputs.
        dynamic_axes: {name: {axis: label}} or {name: [axis, ...]}.

    Raises:
        TypeError: an argument has another type than documented.
        RuntimeError: input_data, the names or dynamic_axes hold something that is not allowed, or the export failed.
        ValueError: the prefix is too long.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    session.save_prune_retrain_model(model, save_path, input_data, input_names, output_names, dynamic_axes)


def export(
    model: torch.nn.Module,
    path: Path,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> None:
    """Exports as the reference does (docs/spec/save.md section 12): TorchScript exporter, eval mode, BN folded.

    Beyond 2 GB the exporter puts the tensors into files beside `path`.
    """
    if isinstance(input_data, torch.Tensor):
        input_data = (input_data,)
    if not isinstance(input_data, tuple):
        raise RuntimeError("input data type must be tuple or torch.Tensor!")
    arguments = _to_device(input_data, _device_of(model))
    # Newer versions of torch choose another exporter by default; older ones do not know the parameter.
    exporter = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with _eval_mode(model), torch.no_grad():
        torch.onnx.export(
            model,
            arguments,
            str(path),
            export_params=True,
            do_constant_folding=True,
            keep_initializers_as_inputs=True,
            opset_version=16 if torch.__version__.split("+")[0] == "2.1.0" else 11,
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic_axes,
            **exporter,
        )


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Any:
    """Eval mode for every submodule, and then each one's own flag again (the exporter would set all to the root's)."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _device_of(model: torch.nn.Module) -> torch.device | None:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def _to_device(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    if type(value) in {tuple, list}:
        return type(value)(_to_device(item, device) for item in value)
    return value


def _check_type(function: str, argument: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"Func {function} argument {argument} must be {kind.__name__}, not {type(value).__name__}")


def _check_file_name(argument: str, path: str) -> None:
    if not path:
        raise ValueError(f"{argument} is empty")
    if path.endswith("/"):
        raise ValueError(f"{argument} names a folder: {path!r}")
    name = path.rpartition("/")[2]
    if len(name) > _MAX_NAME_LENGTH:
        raise ValueError(f"{argument}: the file name has {len(name)} characters, {_MAX_NAME_LENGTH} are allowed")


def _check_names(function: str, argument: str, names: object) -> None:
    if names is None:
        return
    _check_type(function, argument, names, list)
    if not all(isinstance(name, str) for name in names):  # type: ignore[attr-defined]
        raise RuntimeError(f"{argument} type must be list(string)")


def _check_dynamic_axes(function: str, dynamic_axes: object) -> None:
    """docs/spec/save.md section 12: map of string to (map of int >= 0 to string, or list of int >= 0)."""
    if dynamic_axes is None:
        return
    _check_type(function, "dynamic_axes", dynamic_axes, dict)
    for name, value in dynamic_axes.items():  # type: ignore[attr-defined]
        axes = list(value) if isinstance(value, dict | list) else None
        labels = list(value.values()) if isinstance(value, dict) else []
        if (
            not isinstance(name, str)
            or axes is None
            or not all(isinstance(axis, int) for axis in axes)
            or not all(isinstance(label, str) for label in labels)
        ):
            raise RuntimeError(
                "dynamic_axes type is invalid, type must be dict<string, dict<python:int, string>> or "
                f"dict<string, list(int)>; it is not so at {name!r}"
            )
        if any(axis < 0 for axis in axes):
            raise RuntimeError(
                "dynamic_axes value is invalid, The int value of axis indicators cannot be a negative number; "
                f"it is at {name!r}"
            )
