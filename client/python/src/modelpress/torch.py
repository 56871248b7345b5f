"""The documented functions of AMCT (amct_pytorch) on local paths and torch modules, computed by the service.

    import modelpress.torch as amct

    amct.connect("compression.example:50051")
    amct.save_model("modified.onnx", "record.txt", "results/model")

Signatures, spellings and the files written are the documented ones (docs/python.md). The functions use the session of
the last `connect`, or else one made of the variables MODELPRESS_TARGET and MODELPRESS_REFERENCE_DEFECTS. That default
is this module's only state; code that wants several connections keeps the `Session` that `connect` returns and calls
its methods.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modelpress.aio import SavedConfig, SavedModels
from modelpress.client import Client
from modelpress.local_files import Outputs, SavePath, make_folder, require_file
from modelpress.parameters import ConfigArguments, DynamicAxes, LocalPath, QuantizeModelFilesCall
from modelpress.progress import progress_bar
from modelpress.torch_calibration import Batch, CalibrationModule, InputBinder, varying_axes
from modelpress.torch_export import export, export_for_quantization, write_manifest

__all__ = [
    "CalibrationModule",
    "Session",
    "connect",
    "create_quant_config",
    "export",
    "export_for_quantization",
    "quantize_model",
    "quantize_preprocess",
    "save_model",
    "save_prune_retrain_model",
    "write_manifest",
]

_MAX_NAME_LENGTH = 254


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

    def create_quant_config(
        self,
        config_file: str,
        model: torch.nn.Module,
        input_data: tuple[Any, ...] | torch.Tensor,
        skip_layers: list[str] | None = None,
        batch_num: int = 1,
        activation_offset: bool = True,
        config_defination: str | None = None,
    ) -> SavedConfig:
        """See the function `create_quant_config`."""
        function = "create_quant_config"
        _check_path(function, "config_file", config_file)
        _check_type(function, "model", model, torch.nn.Module)
        _check_names(function, "skip_layers", skip_layers)
        _check_type(function, "batch_num", batch_num, int)
        _check_type(function, "activation_offset", activation_offset, bool)
        if batch_num < 1:
            raise ValueError(f"batch_num must be greater than 0, not {batch_num}")
        arguments: ConfigArguments[LocalPath] = {
            "skip_layers": skip_layers or [],
            "batch_num": batch_num,
            "activation_offset": activation_offset,
        }
        if config_defination is not None:
            _check_path(function, "config_defination", config_defination)
            arguments["config_definition"] = require_file(Path(config_defination), "config_defination")
        with _Export(model, input_data) as exported, self._client() as client, progress_bar(function) as show:
            return client.create_quant_config_files(
                config_file,
                exported.model,
                module_manifest=exported.manifest,
                workspace=self._workspace,
                reference_defects=self._reference_defects,
                progress=show,
                **arguments,
            )

    def quantize_preprocess(
        self,
        config_file: str,
        record_file: str,
        model: torch.nn.Module,
        input_data: tuple[Any, ...] | torch.Tensor,
    ) -> CalibrationModule:
        """See the function `quantize_preprocess`."""
        function = "quantize_preprocess"
        _check_path(function, "config_file", config_file)
        _check_path(function, "record_file", record_file)
        _check_type(function, "model", model, torch.nn.Module)
        require_file(Path(config_file), "config_file")
        exported = _Export(model, input_data)
        binder = exported.binder
        _write(Path(record_file), b"")

        def finish(batches: list[Batch]) -> None:
            with exported.fitting(batches) as fitting, self._client() as client, progress_bar(function) as show:
                client.quantize_preprocess_files(
                    config_file,
                    record_file,
                    fitting.model,
                    batches,
                    module_manifest=fitting.manifest,
                    workspace=self._workspace,
                    reference_defects=self._reference_defects,
                    progress=show,
                )
            exported.close()

        return CalibrationModule(model, binder, 1, finish)

    def quantize_model(
        self,
        config_file: str,
        modfied_onnx_file: str,
        record_file: str,
        model: torch.nn.Module,
        input_data: tuple[Any, ...] | torch.Tensor,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
    ) -> CalibrationModule:
        """See the function `quantize_model`."""
        function = "quantize_model"
        _check_path(function, "config_file", config_file)
        _check_path(function, "modfied_onnx_file", modfied_onnx_file)
        _check_path(function, "record_file", record_file)
        _check_type(function, "model", model, torch.nn.Module)
        _check_names(function, "input_names", input_names)
        _check_names(function, "output_names", output_names)
        _check_dynamic_axes(function, dynamic_axes)
        require_file(Path(config_file), "config_file")
        exported = _Export(model, input_data, input_names, output_names, dynamic_axes)
        binder = exported.binder
        record = Path(record_file)
        before = record.read_bytes() if record.exists() else b""
        self._quantize(function, exported, config_file, Path(modfied_onnx_file), record)

        def finish(batches: list[Batch]) -> None:
            with exported.fitting(batches) as fitting:
                if fitting is exported:
                    self._calibrate(exported, config_file, Path(modfied_onnx_file), record, batches)
                else:
                    # The modified model takes inputs of other sizes only. The same one with more general inputs has
                    # the same factors.
                    again = fitting.folder / "record.txt"
                    again.write_bytes(before)
                    modified = fitting.folder / "modified.onnx"
                    self._quantize("calibrate", fitting, config_file, modified, again, batches)
                    _write(record, again.read_bytes())
            exported.close()

        batch_num = json.loads(Path(config_file).read_bytes())["batch_num"]
        return CalibrationModule(model, binder, batch_num, finish)

    def _quantize(
        self,
        function: str,
        exported: "_Export",
        config_file: str,
        modified: Path,
        record: Path,
        batches: list[Batch] | None = None,
    ) -> None:
        parameters: QuantizeModelFilesCall = {
            "config_file": config_file,
            "modified_onnx_file": modified,
            "record_file": record,
            "module_manifest": exported.manifest,
            "workspace": self._workspace,
            "reference_defects": self._reference_defects,
        }
        if _learns_rounding(Path(config_file)):
            parameters["sample_data"] = [exported.binder.traced]
        if batches is not None:
            parameters["calibration_data"] = batches
        with self._client() as client, progress_bar(function) as show:
            parameters["progress"] = show
            client.quantize_model_files(exported.model, **parameters)

    def _calibrate(
        self, exported: "_Export", config_file: str, modified: Path, record: Path, batches: list[Batch]
    ) -> None:
        with self._client() as client, progress_bar("calibrate") as show:
            client.calibrate_files(
                record,
                config_file,
                batches,
                modified_onnx_file=modified,
                model=exported.model,
                module_manifest=exported.manifest,
                workspace=self._workspace,
                reference_defects=self._reference_defects,
                progress=show,
            )

    def save_model(self, modfied_onnx_file: str, record_file: str, save_path: str) -> SavedModels:
        """See the function `save_model`."""
        _check_path("save_model", "modfied_onnx_file", modfied_onnx_file)
        _check_path("save_model", "record_file", record_file)
        _check_type("save_model", "save_path", save_path, str)
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


class _Export:
    """A module's export for quantization and its manifest, in a temporary folder that goes with the object."""

    def __init__(
        self,
        module: torch.nn.Module,
        input_data: Any,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="modelpress-")
        self._module = module
        self._input_data = input_data
        self._output_names = output_names
        self._dynamic_axes = dynamic_axes
        self.folder = Path(self._folder.name)
        self.model = self.folder / "model.onnx"
        self.manifest = self.folder / "modules.json"
        write_manifest(module, self.manifest)
        self.inputs = export_for_quantization(module, self.model, input_data, input_names, output_names, dynamic_axes)

    @property
    def binder(self) -> InputBinder:
        """How arguments of the module's forward become inputs of the model."""
        return InputBinder(self._module, self._input_data, self.inputs)

    @contextmanager
    def fitting(self, batches: list[Batch]) -> Iterator["_Export"]:
        """This export, or one whose inputs also take the sizes of `batches`.

        torch modules take any batch size, a model without dynamic axes only the one that it was exported with.
        """
        more = varying_axes(self.inputs, batches)
        if not more:
            yield self
            return
        axes: dict[str, dict[int, str]] = {}
        for name, given in (self._dynamic_axes or {}).items():
            axes[name] = dict(given) if isinstance(given, dict) else {axis: f"{name}_{axis}" for axis in given}
        for name, more_axes in more.items():
            axes.setdefault(name, {}).update({axis: f"{name}_{axis}" for axis in more_axes})
        names = [value.name for value in self.inputs]  # axes are given by name
        with _Export(self._module, self._input_data, names, self._output_names, axes) as other:
            yield other

    def close(self) -> None:
        """Removes the files."""
        self._folder.cleanup()

    def __enter__(self) -> "_Export":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


def create_quant_config(
    config_file: str,
    model: torch.nn.Module,
    input_data: tuple[Any, ...] | torch.Tensor,
    skip_layers: list[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
) -> None:
    """Writes the configuration of post-training quantization: every layer that can be quantized is in it.

    Args:
        config_file: the JSON to write.
        model: the trained module.
        input_data: what to trace the module with: a tuple, or one tensor.
        skip_layers: layers to leave alone.
        batch_num: batches to calibrate with.
        activation_offset: whether activations are quantized asymmetrically.
        config_defination: a simple configuration (.cfg), which replaces the three others.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: a value or layer is not possible.
        OSError: config_defination is not there.
        RuntimeError: input_data is not possible, or the export failed.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    session.create_quant_config(
        config_file, model, input_data, skip_layers, batch_num, activation_offset, config_defination
    )


def quantize_preprocess(
    config_file: str, record_file: str, model: torch.nn.Module, input_data: tuple[Any, ...] | torch.Tensor
) -> CalibrationModule:
    """Prepares the DMQ balancer.

    Args:
        config_file: the JSON configuration; layers with dmq_balancer_param are balanced.
        record_file: emptied now; written by the first forward of the module that is returned.
        model: the trained module.
        input_data: what to trace the module with: a tuple, or one tensor.

    Returns:
        A module that computes as `model` does; its first forward's inputs give the balance factors.

    Raises:
        As quantize_model.
    """
    return (_default_session or Session()).quantize_preprocess(config_file, record_file, model, input_data)


def quantize_model(
    config_file: str,
    modfied_onnx_file: str,
    record_file: str,
    model: torch.nn.Module,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> CalibrationModule:
    """Writes the modified model and the record file with the factors of the weights.

    Args:
        config_file: the JSON configuration.
        modfied_onnx_file: the modified model to write.
        record_file: the record file to write; read before where layers are balanced (quantize_preprocess).
        model: the trained module; it is not changed.
        input_data: what to trace the module with: a tuple, or one tensor.
        input_names: names for the graph's inputs.
        output_names: names for the graph's outputs.
        dynamic_axes: {name: {axis: label}} or {name: [axis, ...]}.

    Returns:
        A module that computes as `model` does. It keeps the inputs of its first batch_num forwards (of the
        configuration); the last of them completes the record file.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: the configuration or the record file is wrong (modelpress.InvalidArgument).
        OSError: config_file is not there.
        RuntimeError: input_data, the names or dynamic_axes hold something that is not allowed, or the export failed.
        modelpress.Error: the service's answer.
    """
    return (_default_session or Session()).quantize_model(
        config_file, modfied_onnx_file, record_file, model, input_data, input_names, output_names, dynamic_axes
    )


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


def _check_type(function: str, argument: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"Func {function} argument {argument} must be {kind.__name__}, not {type(value).__name__}")


def _check_path(function: str, argument: str, path: object) -> None:
    _check_type(function, argument, path, str)
    _check_file_name(argument, path)  # type: ignore[arg-type]


def _learns_rounding(config_file: Path) -> bool:
    """Whether a layer is configured for AdaRound; what is wrong with the file is for the service to say."""
    try:
        config = json.loads(config_file.read_bytes())
    except ValueError:
        return False
    layers = config.values() if isinstance(config, dict) else []
    weights = [layer.get("weight_quant_params") for layer in layers if isinstance(layer, dict)]
    return any(isinstance(weight, dict) and weight.get("wts_algo") == "ada_quantize" for weight in weights)


def _write(path: Path, content: bytes) -> None:
    target = Path(os.path.realpath(path))
    make_folder(target.parent)
    with Outputs() as outputs:
        outputs.open(target).write(content)
        outputs.commit()


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
