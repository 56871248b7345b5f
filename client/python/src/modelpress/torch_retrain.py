"""Pruning and quantization-aware training of torch modules: the session's methods.

The service decides everything from an export of the module (modelpress.torch_marks) and answers with a rewrite plan, by
which a copy of the module is changed (modelpress.torch_rewrite). That copy keeps its plan and its record, so that the
function that saves it finds them again.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from google.protobuf import json_format, text_format
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from modelpress.aio import RetrainModel, SavedConfig, SavedModels
from modelpress.amct import record_pb2
from modelpress.client import Client
from modelpress.errors import Error
from modelpress.local_files import write_file
from modelpress.parameters import DynamicAxes, LocalOptions
from modelpress.progress import progress_bar
from modelpress.torch_arguments import (
    check_dynamic_axes,
    check_input,
    check_names,
    check_path,
    check_save_path,
    check_type,
)
from modelpress.torch_export import as_tuple, export, to_device_of, write_manifest
from modelpress.torch_marks import export_with_marks
from modelpress.torch_record import RecordFile
from modelpress.torch_rewrite import BrokenTrainingError, apply_plan, copy_model, retraining_of
from modelpress.torch_session import SessionBase
from modelpress.torch_wrappers import RetrainQuant, RNNRetrainQuant, is_wrapped, strip
from modelpress.v1 import rewrite_plan_pb2

InputData: TypeAlias = tuple[Any, ...] | torch.Tensor

_LOGGER = logging.getLogger("modelpress")

_EMPTY_RECORD = (
    "record_file is empty, no layers to be quantized. Please confirm the process of retrain quantification: whether "
    "the inference process is omitted after the training!"
)
# Modules that the reference or this client puts into a module (docs/spec/qat.md section 1).
_ADDED = {
    "IFMR",
    "HFMG",
    "Recorder",
    "AscendQuant",
    "AscendDeQuant",
    "RetrainQuant",
    "RNNRetrainQuant",
    "MarkedQuantizableModule",
    "QuantIdentity",
    "SelectiveMaskGen",
    "DMQBalancer",
    "Conv2dQAT",
    "LinearQAT",
    "LSTMQAT",
    "GRUQAT",
    "OFMRQuant",
    "ConvTranspose1dQAT",
}
_SENSITIVE_TYPES = {"Conv2d", "Linear"}


@dataclass(frozen=True)
class _Files:
    """A module's export and manifest, in a folder that is gone after the call."""

    folder: Path
    model: Path
    manifest: Path

    @property
    def record(self) -> Path:
        return self.folder / "record.txt"

    @property
    def save_path(self) -> str:
        return f"{self.folder}/out/"


class RetrainSession(SessionBase):
    """The functions for pruning and quantization-aware training."""

    def create_prune_retrain_model(
        self, model: torch.nn.Module, input_data: InputData, config_defination: str, record_file: str
    ) -> torch.nn.Module:
        """See the function `create_prune_retrain_model`."""
        function, run = "create_prune_retrain_model", Client.create_prune_retrain_model_files
        return self._create_by_definition(function, run, model, input_data, config_defination, record_file).train()

    def restore_prune_retrain_model(
        self,
        model: torch.nn.Module,
        input_data: InputData,
        record_file: str,
        config_defination: str,
        pth_file: str,
        state_dict_name: str | None = None,
    ) -> torch.nn.Module:
        """See the function `restore_prune_retrain_model`."""
        function, run = "restore_prune_retrain_model", Client.restore_prune_retrain_model_files
        files = (record_file, config_defination, pth_file, state_dict_name)
        return self._restore_by_definition(function, run, model, input_data, *files).train()

    def save_prune_retrain_model(
        self,
        model: torch.nn.Module,
        save_path: str,
        input_data: InputData,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
    ) -> SavedModels:
        """See the function `save_prune_retrain_model`."""
        function = "save_prune_retrain_model"
        check_type(function, "model", model, torch.nn.Module)
        check_save_path(function, save_path)
        _check_names(function, input_names, output_names, dynamic_axes)
        model = _unwrapped(model)
        retraining = retraining_of(model)
        names = (input_names, output_names, dynamic_axes)
        exported = self._exported(_stripped(model), input_data, *names, marked=False)
        with exported as files, self._connected(function) as (client, options):
            given: dict[str, Any] = {}
            if retraining is not None and retraining.record.record.ListFields():
                files.record.write_text(text_format.MessageToString(retraining.record.record), "utf-8")
                given["record_file"] = files.record
            return client.save_prune_retrain_model_files(files.model, save_path, **given, **options)

    def auto_channel_prune_search(
        self,
        model: torch.nn.Module,
        config: str,
        input_data: list[torch.Tensor],
        output_cfg: str,
        sensitivity: str,
        search_alg: str,
    ) -> SavedConfig:
        """See the function `auto_channel_prune_search`."""
        function = "auto_channel_prune_search"
        check_type(function, "model", model, torch.nn.Module)
        path = check_input(function, "config", config)
        check_type(function, "input_data", input_data, list)
        check_path(function, "output_cfg", output_cfg)
        if len(input_data) != 2 or not all(isinstance(value, torch.Tensor) for value in input_data):
            raise ValueError("input_data must be [data, label], two tensors")
        for argument, value, known in (
            ("sensitivity", sensitivity, "TaylorLossSensitivity"),
            ("search_alg", search_alg, "GreedySearch"),
        ):
            if value != known:
                raise ValueError(f"{argument} must be {known!r}, not {value!r}: other ones cannot be computed here")
        model = _unwrapped(model)
        _refuse_wrapped(model)
        data, label = (value[:1] for value in input_data)
        sensitivities = _taylor_sensitivities(model, data, label)
        with self._exported(model, data) as files, self._connected(function) as (client, options):
            from safetensors.torch import save_file

            save_file(sensitivities, files.folder / "sensitivities.safetensors")
            return client.auto_channel_prune_search_files(
                files.model,
                path,
                files.folder / "sensitivities.safetensors",
                output_cfg,
                module_manifest=files.manifest,
                **options,
            )

    def create_quant_retrain_config(
        self,
        config_file: str,
        model: torch.nn.Module,
        input_data: InputData,
        config_defination: str | None = None,
    ) -> SavedConfig:
        """See the function `create_quant_retrain_config`."""
        function = "create_quant_retrain_config"
        check_path(function, "config_file", config_file)
        check_type(function, "model", model, torch.nn.Module)
        check_type(function, "config_defination", config_defination, str, type(None))
        definition = None
        if config_defination is not None:
            definition = check_input(function, "config_defination", config_defination)
        model = _unwrapped(model)
        _refuse_wrapped(model)
        with self._exported(model, input_data) as files, self._connected(function) as (client, options):
            given: dict[str, Any] = {} if definition is None else {"config_definition": definition}
            return client.create_quant_retrain_config_files(
                config_file, files.model, module_manifest=files.manifest, **given, **options
            )

    def create_quant_retrain_model(
        self, config_file: str, model: torch.nn.Module, record_file: str, input_data: InputData
    ) -> torch.nn.Module:
        """See the function `create_quant_retrain_model`."""
        function = "create_quant_retrain_model"
        config = check_input(function, "config_file", config_file)
        check_type(function, "model", model, torch.nn.Module)
        check_path(function, "record_file", record_file)

        def call(client: Client, files: _Files, options: Mapping[str, Any]) -> RetrainModel:
            return client.create_quant_retrain_model_files(
                config, files.model, files.record, files.save_path, **options
            )

        return self._create(function, model, input_data, Path(record_file), call)

    def restore_quant_retrain_model(
        self,
        config_file: str,
        model: torch.nn.Module,
        record_file: str,
        input_data: InputData,
        pth_file: str,
        state_dict_name: str | None = None,
    ) -> torch.nn.Module:
        """See the function `restore_quant_retrain_model`."""
        function = "restore_quant_retrain_model"
        config = check_input(function, "config_file", config_file)
        check_type(function, "model", model, torch.nn.Module)
        check_path(function, "record_file", record_file)
        weights = _load_checkpoint(function, pth_file, state_dict_name)

        def call(client: Client, files: _Files, options: Mapping[str, Any]) -> RetrainModel:
            return client.restore_quant_retrain_model_files(
                config, files.model, files.record, files.save_path, **options
            )

        return self._create(function, model, input_data, Path(record_file), call, weights)

    def save_quant_retrain_model(
        self,
        config_file: str,
        model: torch.nn.Module,
        record_file: str,
        save_path: str,
        input_data: InputData,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
    ) -> SavedModels:
        """See the function `save_quant_retrain_model`."""
        function = "save_quant_retrain_model"
        check_path(function, "config_file", config_file)
        check_type(function, "model", model, torch.nn.Module)
        check_path(function, "record_file", record_file)
        check_save_path(function, save_path)
        _check_names(function, input_names, output_names, dynamic_axes)
        as_tuple(input_data)
        config = check_input(function, "config_file", config_file)
        record = check_input(function, "record_file", record_file)
        model = _unwrapped(model)
        if not _is_quantized(model):
            raise RuntimeError("The model cannot be quantized because it is not a model after quantitative retraining.")
        if not record.stat().st_size:
            raise RuntimeError(_EMPTY_RECORD)
        retraining = retraining_of(model)
        names = (input_names, output_names, dynamic_axes)
        stripped = _stripped(model)
        with self._exported(stripped, input_data, *names) as files, self._connected(function) as (client, options):
            given: dict[str, Any] = {}
            if retraining is not None:
                given["rewrite_plan"] = files.folder / "plan.json"
                plan = json_format.MessageToJson(retraining.plan, preserving_proto_field_name=True)
                given["rewrite_plan"].write_text(plan, "utf-8")
            return client.save_quant_retrain_model_files(
                config, files.model, record, save_path, module_manifest=files.manifest, **given, **options
            )

    def create_compressed_retrain_model(
        self, model: torch.nn.Module, input_data: InputData, config_defination: str, record_file: str
    ) -> torch.nn.Module:
        """See the function `create_compressed_retrain_model`."""
        function, run = "create_compressed_retrain_model", Client.create_compressed_retrain_model_files
        created = self._create_by_definition(function, run, model, input_data, config_defination, record_file)
        return _in_training_if_pruned(created)

    def restore_compressed_retrain_model(
        self,
        model: torch.nn.Module,
        input_data: InputData,
        record_file: str,
        config_defination: str,
        pth_file: str,
        state_dict_name: str | None = None,
    ) -> torch.nn.Module:
        """See the function `restore_compressed_retrain_model`."""
        function, run = "restore_compressed_retrain_model", Client.restore_compressed_retrain_model_files
        files = (record_file, config_defination, pth_file, state_dict_name)
        return _in_training_if_pruned(self._restore_by_definition(function, run, model, input_data, *files))

    def save_compressed_retrain_model(
        self,
        model: torch.nn.Module,
        record_file: str,
        save_path: str,
        input_data: InputData,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
    ) -> SavedModels:
        """See the function `save_compressed_retrain_model`."""
        function = "save_compressed_retrain_model"
        check_dynamic_axes(function, dynamic_axes)
        check_type(function, "model", model, torch.nn.Module)
        check_path(function, "record_file", record_file)
        check_save_path(function, save_path)
        _check_names(function, input_names, output_names, dynamic_axes)
        as_tuple(input_data)
        record = check_input(function, "record_file", record_file)
        model = _unwrapped(model)
        try:
            content = _parse_record(record.read_bytes())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ValueError(f"record_file: {record} is no record file: {error}") from error
        if not content.record and (_is_quantized(model) or not content.prune_record):
            raise RuntimeError(_EMPTY_RECORD)
        names = (input_names, output_names, dynamic_axes)
        marked = bool(content.record)  # what is not quantized is stored as it is exported
        exported = self._exported(_stripped(model), input_data, *names, marked=marked)
        with exported as files, self._connected(function) as (client, options):
            return client.save_compressed_retrain_model_files(
                files.model, record, save_path, module_manifest=files.manifest, **options
            )

    def _create_by_definition(
        self,
        function: str,
        run: Callable[..., RetrainModel],
        model: torch.nn.Module,
        input_data: InputData,
        config_defination: str,
        record_file: str,
    ) -> torch.nn.Module:
        """create_ of pruned and compressed models; `run` is the client's method."""
        check_type(function, "model", model, torch.nn.Module)
        config = check_input(function, "config_defination", config_defination)
        check_path(function, "record_file", record_file)

        def create(definition: Path) -> torch.nn.Module:
            def call(client: Client, files: _Files, options: Mapping[str, Any]) -> RetrainModel:
                return run(client, files.model, definition, files.record, files.save_path, plan_only=True, **options)

            return self._create(function, model, input_data, Path(record_file), call)

        left_out: list[str] = []
        failure: BrokenTrainingError | None = None
        with tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
            definition = config
            while True:
                try:
                    return create(definition)
                except BrokenTrainingError as error:
                    if set(error.layers) <= set(left_out):
                        raise
                    failure = error
                except Error as error:
                    if failure is None:
                        raise
                    raise failure from error  # the configuration has no place for layers to leave out
                # The reference gives up such channels too (docs/spec/prune.md section 8).
                _LOGGER.warning("%s: %s keep their channels: %s", function, ", ".join(failure.layers), failure)
                left_out += failure.layers
                definition = Path(folder) / config.name
                skips = "".join(f'\nregular_prune_skip_layers: "{layer}"' for layer in left_out)
                definition.write_bytes(config.read_bytes() + skips.encode())

    def _restore_by_definition(
        self,
        function: str,
        run: Callable[..., RetrainModel],
        model: torch.nn.Module,
        input_data: InputData,
        record_file: str,
        config_defination: str,
        pth_file: str,
        state_dict_name: str | None,
    ) -> torch.nn.Module:
        """restore_ of pruned and compressed models; `run` is the client's method. The record file is read."""
        check_type(function, "model", model, torch.nn.Module)
        record = check_input(function, "record_file", record_file)
        config = check_input(function, "config_defination", config_defination)
        weights = _load_checkpoint(function, pth_file, state_dict_name)

        def call(client: Client, files: _Files, options: Mapping[str, Any]) -> RetrainModel:
            return run(client, files.model, record, config, files.save_path, plan_only=True, **options)

        model = _unwrapped(model)
        _refuse_wrapped(model)
        with self._exported(model, input_data) as files:
            plan = self._plan(function, call, files)
        return self._rewritten(model, plan, record, record.read_bytes(), weights)

    def _create(
        self,
        function: str,
        model: torch.nn.Module,
        input_data: InputData,
        record_file: Path,
        call: Callable[[Client, _Files, Mapping[str, Any]], RetrainModel],
        weights: Mapping[str, Any] | None = None,
    ) -> torch.nn.Module:
        """A copy of the module after the plan that `call` gets; the record file is written once all has gone well."""
        model = _unwrapped(model)
        _refuse_wrapped(model)
        with self._exported(model, input_data) as files:
            plan = self._plan(function, call, files)
            content = files.record.read_bytes()
        rewritten = self._rewritten(model, plan, record_file, content, weights, input_data)
        write_file(record_file, content)
        return rewritten

    def _plan(
        self, function: str, call: Callable[[Client, _Files, Mapping[str, Any]], RetrainModel], files: _Files
    ) -> rewrite_plan_pb2.RewritePlan:
        with self._connected(function) as (client, options):
            answer = call(client, files, {"module_manifest": files.manifest, **options})
        for warning in answer.warnings:
            _LOGGER.warning("%s: %s", function, warning)
        plan = rewrite_plan_pb2.RewritePlan()
        # A newer service may say more than this client knows of.
        json_format.Parse(answer.rewrite_plan.read_bytes(), plan, ignore_unknown_fields=True)
        return plan

    def _rewritten(
        self,
        model: torch.nn.Module,
        plan: rewrite_plan_pb2.RewritePlan,
        record_file: Path,
        content: bytes,
        weights: Mapping[str, Any] | None,
        input_data: InputData | None = None,
    ) -> torch.nn.Module:
        record = RecordFile(record_file.absolute(), _parse_record(content))
        defects = self._reference_defects
        rewritten = apply_plan(model, plan, record, reference_defects=defects, input_data=input_data)
        if weights is not None:
            rewritten.load_state_dict(weights)
        return rewritten

    @contextmanager
    def _exported(
        self,
        model: torch.nn.Module,
        input_data: InputData,
        input_names: list[str] | None = None,
        output_names: list[str] | None = None,
        dynamic_axes: DynamicAxes | None = None,
        *,
        marked: bool = True,
    ) -> Iterator[_Files]:
        with tempfile.TemporaryDirectory(prefix="modelpress-") as name:
            folder = Path(name)
            files = _Files(folder, folder / "model.onnx", folder / "modules.json")
            names = (input_names, output_names, dynamic_axes)
            if marked:
                defects = self._reference_defects
                export_with_marks(model, files.model, input_data, *names, reference_defects=defects)
            else:
                export(model, files.model, input_data, *names)
            write_manifest(model, files.manifest)
            yield files

    @contextmanager
    def _connected(self, function: str) -> Iterator[tuple[Client, LocalOptions]]:
        with self._client() as client, progress_bar(function) as show:
            defects = self._reference_defects
            yield client, {"workspace": self._workspace, "reference_defects": defects, "progress": show}


def _check_names(function: str, input_names: object, output_names: object, dynamic_axes: object) -> None:
    check_names(function, "input_names", input_names)
    check_names(function, "output_names", output_names)
    check_dynamic_axes(function, dynamic_axes)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside of what distributes or compiles it."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":  # of torch.compile
            model = model._orig_mod
        else:
            return model


def _refuse_wrapped(model: torch.nn.Module) -> None:
    layers = {name: type(module).__name__ for name, module in model.named_modules() if type(module).__name__ in _ADDED}
    if layers or is_wrapped(model):
        raise RuntimeError(
            "The model cannot be quantized for following quant layers are in the model "
            f"{layers or '(masks)'}: give the float module"
        )


def _stripped(model: torch.nn.Module) -> torch.nn.Module:
    return strip(model) if is_wrapped(model) else model


def _is_quantized(model: torch.nn.Module) -> bool:
    return any(isinstance(module, RetrainQuant | RNNRetrainQuant) for module in model.modules())


def _in_training_if_pruned(model: torch.nn.Module) -> torch.nn.Module:
    """Of the compressed functions, pruning alone sets the mode."""
    retraining = retraining_of(model)
    assert retraining is not None
    pruned = retraining.plan.cuts or any(layer.HasField("selective") for layer in retraining.plan.layers)
    return model.train() if pruned else model


def _parse_record(content: bytes) -> Any:
    return text_format.Parse(content.decode(), record_pb2.ScaleOffsetRecord())


def _load_checkpoint(function: str, pth_file: object, state_dict_name: object) -> Mapping[str, Any]:
    """The state_dict of a checkpoint (docs/spec/prune.md section 9).

    Raises:
        TypeError: an argument is no string.
        OSError: the file is not there.
        pickle.UnpicklingError: it holds a module or other objects.
        KeyError: it has nothing of the name.
        RuntimeError: it holds something else than a state_dict.
    """
    path = check_input(function, "pth_file", pth_file)
    check_type(function, "state_dict_name", state_dict_name, str, type(None))
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state_dict_name:
        if not isinstance(state, Mapping) or not state.get(state_dict_name):
            raise KeyError(f"The pth_file has no key name: {state_dict_name}")
        state = state[state_dict_name]
    if not isinstance(state, dict):
        raise RuntimeError(f"{path} holds a {type(state).__name__} instead of a state_dict")
    if state and all(isinstance(name, str) and name.startswith("module.") for name in state):
        consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _taylor_sensitivities(model: torch.nn.Module, data: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """For each layer the sum of |weight * gradient| by output channel, float32 (docs/spec/prune.md section 13, 3)."""
    model = copy_model(model).eval().requires_grad_(True)
    model.zero_grad()
    data, label = to_device_of(model, (data, label))
    output = model(data)
    if not isinstance(output, torch.Tensor):
        raise RuntimeError(f"forward must return one tensor to compare with the label, not a {type(output).__name__}")
    torch.nn.functional.l1_loss(output, label).backward()
    sensitivities = {}
    for name, module in model.named_modules():
        if type(module).__name__ in _SENSITIVE_TYPES and module.weight.grad is not None:
            products = (module.weight.detach() * module.weight.grad).abs()
            sensitivities[name] = products.flatten(1).sum(1).to("cpu", torch.float32)
    return sensitivities
