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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import torch

from modelpress.aio import SavedConfig, SavedModels
from modelpress.connection import ConnectionOptions
from modelpress.local_files import require_file, write_file
from modelpress.parameters import ConfigArguments, DynamicAxes, LocalPath, QuantizeModelFilesCall
from modelpress.progress import progress_bar
from modelpress.torch_arguments import check_dynamic_axes, check_names, check_path, check_save_path, check_type
from modelpress.torch_calibration import Batch, CalibrationModule, InputBinder, varying_axes
from modelpress.torch_export import export, export_for_quantization, write_manifest
from modelpress.torch_marks import export_with_marks
from modelpress.torch_operators import (
    Conv1dQAT,
    Conv2dQAT,
    Conv3dQAT,
    ConvTranspose1dQAT,
    ConvTranspose2dQAT,
    LinearQAT,
)
from modelpress.torch_retrain import RetrainSession

__all__ = [
    "CalibrationModule",
    "Conv1dQAT",
    "Conv2dQAT",
    "Conv3dQAT",
    "ConvTranspose1dQAT",
    "ConvTranspose2dQAT",
    "LinearQAT",
    "Session",
    "auto_channel_prune_search",
    "connect",
    "create_compressed_retrain_model",
    "create_prune_retrain_model",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "export",
    "export_for_quantization",
    "export_with_marks",
    "quantize_model",
    "quantize_preprocess",
    "restore_compressed_retrain_model",
    "restore_prune_retrain_model",
    "restore_quant_retrain_model",
    "save_compressed_retrain_model",
    "save_model",
    "save_prune_retrain_model",
    "save_quant_retrain_model",
    "write_manifest",
]


class Session(RetrainSession):
    """Where and how the functions are computed; each call opens and closes its own connection."""

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
        check_path(function, "config_file", config_file)
        check_type(function, "model", model, torch.nn.Module)
        check_names(function, "skip_layers", skip_layers)
        check_type(function, "batch_num", batch_num, int)
        check_type(function, "activation_offset", activation_offset, bool)
        if batch_num < 1:
            raise ValueError(f"batch_num must be greater than 0, not {batch_num}")
        arguments: ConfigArguments[LocalPath] = {
            "skip_layers": skip_layers or [],
            "batch_num": batch_num,
            "activation_offset": activation_offset,
        }
        if config_defination is not None:
            check_path(function, "config_defination", config_defination)
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
        check_path(function, "config_file", config_file)
        check_path(function, "record_file", record_file)
        check_type(function, "model", model, torch.nn.Module)
        require_file(Path(config_file), "config_file")
        exported = _Export(model, input_data)
        binder = exported.binder
        write_file(Path(record_file), b"")

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
        check_path(function, "config_file", config_file)
        check_path(function, "modfied_onnx_file", modfied_onnx_file)
        check_path(function, "record_file", record_file)
        check_type(function, "model", model, torch.nn.Module)
        check_names(function, "input_names", input_names)
        check_names(function, "output_names", output_names)
        check_dynamic_axes(function, dynamic_axes)
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
                    write_file(record, again.read_bytes())
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
        check_path("save_model", "modfied_onnx_file", modfied_onnx_file)
        check_path("save_model", "record_file", record_file)
        check_save_path("save_model", save_path)
        with self._client() as client, progress_bar("save_model") as show:
            return client.save_model_files(
                modfied_onnx_file,
                record_file,
                save_path,
                workspace=self._workspace,
                reference_defects=self._reference_defects,
                progress=show,
            )


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
    **connection: Unpack[ConnectionOptions],
) -> Session:
    """Makes a session and the default of this module's functions; arguments as in Session."""
    global _default_session  # noqa: PLW0603  the one documented default
    _default_session = Session(
        target, reference_defects=reference_defects, workspace=workspace, credentials=credentials, **connection
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


def create_prune_retrain_model(
    model: torch.nn.Module, input_data: tuple[Any, ...] | torch.Tensor, config_defination: str, record_file: str
) -> torch.nn.Module:
    """Prunes channels, or makes weights 2:4 sparse, by a simple configuration.

    Args:
        model: the trained module, with its weights; it is not changed.
        input_data: what to trace the module with: a tuple, or one tensor.
        config_defination: the simple configuration (.cfg).
        record_file: the record file to write: which channels were cut.

    Returns:
        A copy of the module to train on, in training mode: the names of its parameters are the same, their sizes are
        what is left. Layers to be made 2:4 sparse have a mask.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: the configuration is wrong (modelpress.InvalidArgument).
        OSError: config_defination is not there.
        RuntimeError: input_data is not possible, the module cannot be copied or exported, or it is a retrained one.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    return session.create_prune_retrain_model(model, input_data, config_defination, record_file)


def restore_prune_retrain_model(
    model: torch.nn.Module,
    input_data: tuple[Any, ...] | torch.Tensor,
    record_file: str,
    config_defination: str,
    pth_file: str,
    state_dict_name: str | None = None,
) -> torch.nn.Module:
    """Makes the module of an interrupted training again.

    Args:
        model: the module as create_prune_retrain_model got it; its weights do not matter. It is not changed.
        input_data: what to trace the module with: a tuple, or one tensor.
        record_file: the record file that create_prune_retrain_model wrote: it tells which channels were cut.
        config_defination: the simple configuration (.cfg).
        pth_file: a checkpoint of the pruned module: what torch.save wrote of its state_dict().
        state_dict_name: the key of the state_dict in the checkpoint, if it is one value among others there.

    Returns:
        The pruned module with the checkpoint's weights, in training mode.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: the configuration or the record file is wrong (modelpress.InvalidArgument).
        OSError: a file is not there.
        pickle.UnpicklingError: the checkpoint holds objects instead of weights.
        KeyError: the checkpoint has nothing of the name state_dict_name.
        RuntimeError: the checkpoint's names or sizes are others than the module's, and as create_prune_retrain_model.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    return session.restore_prune_retrain_model(
        model, input_data, record_file, config_defination, pth_file, state_dict_name
    )


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
        model: the trained module; it is not changed.
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


def auto_channel_prune_search(
    model: torch.nn.Module,
    config: str,
    input_data: list[torch.Tensor],
    output_cfg: str,
    sensitivity: str,
    search_alg: str,
) -> None:
    """Finds a prune ratio for every layer, and writes a simple configuration for create_prune_retrain_model.

    Args:
        model: the trained module; it is not changed.
        config: the search's configuration.
        input_data: [data, label]: a batch for the module and what it should answer; the first sample is used.
        output_cfg: the simple configuration to write.
        sensitivity: "TaylorLossSensitivity".
        search_alg: "GreedySearch".

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: input_data has not two tensors, sensitivity or search_alg is another one, or the configuration is
            wrong (modelpress.InvalidArgument).
        OSError: config is not there.
        RuntimeError: the module cannot be copied, run or exported.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    session.auto_channel_prune_search(model, config, input_data, output_cfg, sensitivity, search_alg)


def create_quant_retrain_config(
    config_file: str,
    model: torch.nn.Module,
    input_data: tuple[Any, ...] | torch.Tensor,
    config_defination: str | None = None,
) -> None:
    """Writes the configuration of quantization-aware training: every layer that can be quantized is in it.

    Args:
        config_file: the JSON to write.
        model: the trained module.
        input_data: what to trace the module with: a tuple, or one tensor.
        config_defination: a simple configuration (.cfg) to make it by; None: the default for every layer.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: the simple configuration is wrong, or no layer can be quantized (modelpress.InvalidArgument).
        OSError: config_defination is not there.
        RuntimeError: input_data is not possible, the export failed, or the module is a retrained one.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    session.create_quant_retrain_config(config_file, model, input_data, config_defination)


def create_quant_retrain_model(
    config_file: str, model: torch.nn.Module, record_file: str, input_data: tuple[Any, ...] | torch.Tensor
) -> torch.nn.Module:
    """Puts quantizers into a module, to be trained with it.

    Args:
        config_file: the JSON configuration.
        model: the trained module; it is not changed.
        record_file: emptied now; written by each complete inference in eval mode after training.
        input_data: what to trace the module with: a tuple, or one tensor.

    Returns:
        A copy of the module with quantizers in its layers. After training, one inference in eval mode completes the
        record file for save_quant_retrain_model.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: the configuration is wrong (modelpress.InvalidArgument).
        OSError: config_file is not there.
        RuntimeError: input_data is not possible, the module cannot be copied or exported, or it is a retrained one.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    return session.create_quant_retrain_model(config_file, model, record_file, input_data)


def restore_quant_retrain_model(
    config_file: str,
    model: torch.nn.Module,
    record_file: str,
    input_data: tuple[Any, ...] | torch.Tensor,
    pth_file: str,
    state_dict_name: str | None = None,
) -> torch.nn.Module:
    """Makes the module of an interrupted training again.

    Args:
        config_file: the JSON configuration that create_quant_retrain_model got.
        model: the module as create_quant_retrain_model got it; its weights do not matter. It is not changed.
        record_file: emptied now; written by each complete inference in eval mode after training.
        input_data: what to trace the module with: a tuple, or one tensor.
        pth_file: a checkpoint of the module with quantizers: what torch.save wrote of its state_dict().
        state_dict_name: the key of the state_dict in the checkpoint, if it is one value among others there.

    Returns:
        The module with quantizers and the checkpoint's state.

    Raises:
        As create_quant_retrain_model and, of the checkpoint, as restore_prune_retrain_model.
    """
    session = _default_session or Session()
    return session.restore_quant_retrain_model(config_file, model, record_file, input_data, pth_file, state_dict_name)


def save_quant_retrain_model(
    config_file: str,
    model: torch.nn.Module,
    record_file: str,
    save_path: str,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> None:
    """Writes the quantized model for the device and the one for accuracy simulation.

    Args:
        config_file: the JSON configuration that create_quant_retrain_model or restore_quant_retrain_model got.
        model: the trained module with quantizers; it is not changed.
        record_file: the record file, completed by an inference in eval mode.
        save_path: folder and prefix as in save_model.
        input_data: what to trace the module with: a tuple, or one tensor.
        input_names: names for the graph's inputs.
        output_names: names for the graph's outputs.
        dynamic_axes: {name: {axis: label}} or {name: [axis, ...]}.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: a path or the record file is wrong, or config_file is not the one that the module was made with.
        OSError: a file is not there.
        RuntimeError: the module has no quantizers, the record file is empty, input_data, the names or dynamic_axes hold
            something that is not allowed, or the export failed.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    session.save_quant_retrain_model(
        config_file, model, record_file, save_path, input_data, input_names, output_names, dynamic_axes
    )


def create_compressed_retrain_model(
    model: torch.nn.Module, input_data: tuple[Any, ...] | torch.Tensor, config_defination: str, record_file: str
) -> torch.nn.Module:
    """Prunes channels or makes weights 2:4 sparse, and puts quantizers in, by one simple configuration.

    Args:
        model: the trained module, with its weights; it is not changed.
        input_data: what to trace the module with: a tuple, or one tensor.
        config_defination: the simple configuration (.cfg), of pruning, quantization or both.
        record_file: the record file to write. Quantization factors come into it by each complete inference in eval
            mode after training.

    Returns:
        A copy of the module to train on; in training mode if it was pruned.

    Raises:
        As create_prune_retrain_model.
    """
    session = _default_session or Session()
    return session.create_compressed_retrain_model(model, input_data, config_defination, record_file)


def restore_compressed_retrain_model(
    model: torch.nn.Module,
    input_data: tuple[Any, ...] | torch.Tensor,
    record_file: str,
    config_defination: str,
    pth_file: str,
    state_dict_name: str | None = None,
) -> torch.nn.Module:
    """Makes the module of an interrupted training again.

    Args:
        model: the module as create_compressed_retrain_model got it; its weights do not matter. It is not changed.
        input_data: what to trace the module with: a tuple, or one tensor.
        record_file: the record file that create_compressed_retrain_model wrote: it tells which channels were cut.
        config_defination: the simple configuration (.cfg).
        pth_file: a checkpoint of the compressed module: what torch.save wrote of its state_dict().
        state_dict_name: the key of the state_dict in the checkpoint, if it is one value among others there.

    Returns:
        The compressed module with the checkpoint's state; in training mode if it is pruned.

    Raises:
        As restore_prune_retrain_model.
    """
    session = _default_session or Session()
    return session.restore_compressed_retrain_model(
        model, input_data, record_file, config_defination, pth_file, state_dict_name
    )


def save_compressed_retrain_model(
    model: torch.nn.Module,
    record_file: str,
    save_path: str,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> None:
    """Writes the compressed model for the device and the one for accuracy simulation.

    Args:
        model: the trained module; it is not changed.
        record_file: the record file, completed by an inference in eval mode where the module has quantizers.
        save_path: folder and prefix as in save_model.
        input_data: what to trace the module with: a tuple, or one tensor.
        input_names: names for the graph's inputs.
        output_names: names for the graph's outputs.
        dynamic_axes: {name: {axis: label}} or {name: [axis, ...]}.

    Raises:
        TypeError: an argument has another type than documented.
        ValueError: a path or the record file is wrong.
        OSError: record_file is not there.
        RuntimeError: the record file is empty, input_data, the names or dynamic_axes hold something that is not
            allowed, or the export failed.
        modelpress.Error: the service's answer.
    """
    session = _default_session or Session()
    session.save_compressed_retrain_model(
        model, record_file, save_path, input_data, input_names, output_names, dynamic_axes
    )


def _learns_rounding(config_file: Path) -> bool:
    """Whether a layer is configured for AdaRound; what is wrong with the file is for the service to say."""
    try:
        config = json.loads(config_file.read_bytes())
    except ValueError:
        return False
    layers = config.values() if isinstance(config, dict) else []
    weights = [layer.get("weight_quant_params") for layer in layers if isinstance(layer, dict)]
    return any(isinstance(weight, dict) and weight.get("wts_algo") == "ada_quantize" for weight in weights)
