"""The optional parameters of the compression calls, and the requests made of them.

Clients take them as keyword arguments. PathT is a path in the workspace for the methods on files of a workspace, and a
local path for those on local files; DataT is where calibration data is.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Union

from modelpress.progress import ProgressCallback
from modelpress.v1 import compression_pb2

if TYPE_CHECKING:
    import numpy

LocalPath = str | os.PathLike[str]
# Input name -> labels of its dynamic axes by axis, or the axes alone.
DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]
# A local .npz, .npy or .pb file or a folder of them; or arrays: all samples of each input, or a list of batches.
LocalData = Union[LocalPath, "Mapping[str, numpy.ndarray[Any, Any]]", "Sequence[Mapping[str, numpy.ndarray[Any, Any]]]"]

PathT = TypeVar("PathT")
DataT = TypeVar("DataT")


class CallOptions(TypedDict, total=False):
    """What every call takes on files of a workspace.

    Attributes:
        reference_defects: bring back the bytes of the reference where it is wrong.
        validate_only: check everything and write nothing; the report is in `Operation.metadata.report` (JSON) then.
        execution_timeout: seconds for one attempt; None: the server's limit.
        request_id: a UUID; the same request with the same id gets the same operation again.
        no_cache: run it even where the server has the result of the same call already.
    """

    reference_defects: bool
    no_cache: bool
    validate_only: bool
    execution_timeout: float | None
    request_id: str | None


class LocalOptions(TypedDict, total=False):
    """What every call takes on local files.

    Attributes:
        reference_defects: bring back the bytes of the reference where it is wrong.
        workspace: a workspace to use and keep; None: a temporary one.
        progress: called for uploads, the operation's stages and downloads.
        no_cache: run it even where the server has the result of the same call already.
    """

    reference_defects: bool
    no_cache: bool
    workspace: str | None
    progress: ProgressCallback | None


class ConfigArguments(TypedDict, Generic[PathT], total=False):
    """What a configuration of post-training quantization is made of.

    Attributes:
        skip_layers: layers to leave alone.
        batch_num: batches to calibrate with.
        activation_offset: whether activations are quantized asymmetrically; default: True.
        config_definition: a simple configuration (.cfg), which replaces the three others.
    """

    skip_layers: Sequence[str]
    batch_num: int
    activation_offset: bool
    config_definition: PathT


class CreateQuantConfigParameters(ConfigArguments[PathT], Generic[PathT], total=False):
    """Of create_quant_config.

    Attributes:
        module_manifest: the module's own structure (api/modelpress/v1/module_manifest.proto) as JSON.
        kv_cache: configure key-value caches instead.
        kv_cache_layers: the layers that have them.
    """

    module_manifest: PathT
    kv_cache: bool
    kv_cache_layers: Sequence[str]


class QuantizePreprocessParameters(TypedDict, Generic[PathT], total=False):
    """Of quantize_preprocess; see the other parameters of these names."""

    batch_size: int
    module_manifest: PathT


class QuantizeModelParameters(ConfigArguments[PathT], Generic[PathT, DataT], total=False):
    """Of quantize_model.

    Attributes:
        config_file: the JSON configuration; absent (with save_path): made from the model first.
        modified_onnx_file: the modified model to write; absent: "<save_path>_modified_model.onnx".
        record_file: the record file to write, read before if it is there; absent: "<save_path>_record.txt".
        input_names: new names for the graph's inputs, in order.
        output_names: new names for the graph's outputs, in order.
        dynamic_axes: axes of inputs and outputs that have any size.
        module_manifest: the module's own structure (api/modelpress/v1/module_manifest.proto) as JSON.
        calibration_data: also calibrate, with this data.
        batch_size: samples per batch where an array holds many.
        sample_data: one batch for AdaRound; default: the first one of calibration_data.
        save_path: also save, as save_model does; needs calibration_data.
    """

    config_file: PathT
    modified_onnx_file: PathT
    record_file: PathT
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None
    dynamic_axes: DynamicAxes | None
    module_manifest: PathT
    calibration_data: DataT
    batch_size: int
    sample_data: DataT
    save_path: str


class CalibrateParameters(TypedDict, Generic[PathT], total=False):
    """Of calibrate.

    Attributes:
        modified_onnx_file: as quantize_model wrote it; absent for key-value caches.
        model: the model that quantize_model was given, for RNN layers and key-value caches.
        batch_size: samples per batch where an array holds many.
        module_manifest: the module's own structure as JSON.
    """

    modified_onnx_file: PathT
    model: PathT
    batch_size: int
    module_manifest: PathT


class ManifestParameters(TypedDict, Generic[PathT], total=False):
    """Of the calls of retraining.

    Attributes:
        module_manifest: the module's own structure (api/modelpress/v1/module_manifest.proto) as JSON.
    """

    module_manifest: PathT


class AutoChannelPruneSearchParameters(ManifestParameters[PathT], Generic[PathT], total=False):
    """Of auto_channel_prune_search.

    Attributes:
        override_prune_cfg: the file that override_prune_cfg of the configuration names, whatever the path there; of
            local files it is found by that path if it is not given.
    """

    override_prune_cfg: PathT


class CreateRetrainParameters(ManifestParameters[PathT], Generic[PathT], total=False):
    """Of create_prune_retrain_model and create_compressed_retrain_model.

    Attributes:
        plan_only: write no model; the caller rewrites a module by the plan.
        extended: prune through what stops the reference although the channels can be followed (docs/pruning.md).
        rank_by_all_producers: rank the channels of coupled layers by all of them, not by the first.
    """

    plan_only: bool
    extended: bool
    rank_by_all_producers: bool


class CheckpointParameters(ManifestParameters[PathT], Generic[PathT], total=False):
    """Of restore_quant_retrain_model.

    Attributes:
        weights: the checkpoint's weights. In a workspace safetensors; of local files anything but .safetensors is read
            as a checkpoint of torch.save and converted (modelpress.checkpoint).
        state_dict_name: only the entries of this name's dictionary count.
    """

    weights: PathT
    state_dict_name: str


class RestoreRetrainParameters(CheckpointParameters[PathT], Generic[PathT], total=False):
    """Of restore_prune_retrain_model and restore_compressed_retrain_model.

    Attributes:
        plan_only: write no model; the caller rewrites a module by the plan.
    """

    plan_only: bool


class RetrainConfigParameters(ManifestParameters[PathT], Generic[PathT], total=False):
    """Of create_quant_retrain_config.

    Attributes:
        config_definition: a simple configuration (.cfg); default: every layer is quantized.
    """

    config_definition: PathT


class SaveRetrainParameters(ManifestParameters[PathT], Generic[PathT], total=False):
    """Of save_compressed_retrain_model: names for what the export did not name already.

    Attributes:
        input_names: new names for the graph's inputs, in order.
        output_names: the same for its outputs.
        dynamic_axes: axes of any size by input or output.
    """

    input_names: Sequence[str] | None
    output_names: Sequence[str] | None
    dynamic_axes: DynamicAxes | None


class SaveQuantRetrainParameters(SaveRetrainParameters[PathT], Generic[PathT], total=False):
    """Of save_quant_retrain_model.

    Attributes:
        rewrite_plan: the plan of the create or restore call; the configuration is checked to be its own.
    """

    rewrite_plan: PathT


class SavePruneParameters(TypedDict, Generic[PathT], total=False):
    """Of save_prune_retrain_model.

    Attributes:
        record_file: the model is checked to be pruned and 2:4 sparse as this record says.
    """

    record_file: PathT


# The same with what each call takes besides.
class CreateQuantConfigCall(CreateQuantConfigParameters[str], CallOptions, total=False):
    """create_quant_config on files of a workspace."""


class CreateQuantConfigFilesCall(CreateQuantConfigParameters[LocalPath], LocalOptions, total=False):
    """create_quant_config on local files."""


class QuantizePreprocessCall(QuantizePreprocessParameters[str], CallOptions, total=False):
    """quantize_preprocess on files of a workspace."""


class QuantizePreprocessFilesCall(QuantizePreprocessParameters[LocalPath], LocalOptions, total=False):
    """quantize_preprocess on local files."""


class QuantizeModelCall(QuantizeModelParameters[str, str], CallOptions, total=False):
    """quantize_model on files of a workspace."""


class QuantizeModelFilesCall(QuantizeModelParameters[LocalPath, LocalData], LocalOptions, total=False):
    """quantize_model on local files."""


class CalibrateCall(CalibrateParameters[str], CallOptions, total=False):
    """Calibrate on files of a workspace."""


class CalibrateFilesCall(CalibrateParameters[LocalPath], LocalOptions, total=False):
    """Calibrate on local files."""


class QuantizeFilesCall(ConfigArguments[LocalPath], LocalOptions, total=False):
    """All steps in one, on local files; the attributes are those of quantize_model."""

    config_file: LocalPath
    module_manifest: LocalPath
    batch_size: int
    sample_data: LocalData


class AutoChannelPruneSearchCall(AutoChannelPruneSearchParameters[str], CallOptions, total=False):
    """auto_channel_prune_search on files of a workspace."""


class AutoChannelPruneSearchFilesCall(AutoChannelPruneSearchParameters[LocalPath], LocalOptions, total=False):
    """auto_channel_prune_search on local files."""


class CreateRetrainCall(CreateRetrainParameters[str], CallOptions, total=False):
    """create_prune_retrain_model or create_compressed_retrain_model on files of a workspace."""


class CreateRetrainFilesCall(CreateRetrainParameters[LocalPath], LocalOptions, total=False):
    """create_prune_retrain_model or create_compressed_retrain_model on local files."""


class RestoreRetrainCall(RestoreRetrainParameters[str], CallOptions, total=False):
    """restore_prune_retrain_model or restore_compressed_retrain_model on files of a workspace."""


class RestoreRetrainFilesCall(RestoreRetrainParameters[LocalPath], LocalOptions, total=False):
    """restore_prune_retrain_model or restore_compressed_retrain_model on local files."""


class RetrainConfigCall(RetrainConfigParameters[str], CallOptions, total=False):
    """create_quant_retrain_config on files of a workspace."""


class RetrainConfigFilesCall(RetrainConfigParameters[LocalPath], LocalOptions, total=False):
    """create_quant_retrain_config on local files."""


class CreateQuantRetrainCall(ManifestParameters[str], CallOptions, total=False):
    """create_quant_retrain_model on files of a workspace."""


class CreateQuantRetrainFilesCall(ManifestParameters[LocalPath], LocalOptions, total=False):
    """create_quant_retrain_model on local files."""


class RestoreQuantRetrainCall(CheckpointParameters[str], CallOptions, total=False):
    """restore_quant_retrain_model on files of a workspace."""


class RestoreQuantRetrainFilesCall(CheckpointParameters[LocalPath], LocalOptions, total=False):
    """restore_quant_retrain_model on local files."""


class SaveQuantRetrainCall(SaveQuantRetrainParameters[str], CallOptions, total=False):
    """save_quant_retrain_model on files of a workspace."""


class SaveQuantRetrainFilesCall(SaveQuantRetrainParameters[LocalPath], LocalOptions, total=False):
    """save_quant_retrain_model on local files."""


class SaveCompressedRetrainCall(SaveRetrainParameters[str], CallOptions, total=False):
    """save_compressed_retrain_model on files of a workspace."""


class SaveCompressedRetrainFilesCall(SaveRetrainParameters[LocalPath], LocalOptions, total=False):
    """save_compressed_retrain_model on local files."""


class SavePruneCall(SavePruneParameters[str], CallOptions, total=False):
    """save_prune_retrain_model on files of a workspace."""


class SavePruneFilesCall(SavePruneParameters[LocalPath], LocalOptions, total=False):
    """save_prune_retrain_model on local files."""


def make_request(message: Any, workspace: str, parameters: Mapping[str, Any]) -> Any:
    """The request of class `message` with the parameters that are given; None counts as not given."""
    fields = {name: value for name, value in parameters.items() if value is not None}
    options = compression_pb2.CallOptions(
        request_id=fields.pop("request_id", None) or str(uuid.uuid4()),
        validate_only=fields.pop("validate_only", False),
        reference_defects=fields.pop("reference_defects", False),
        no_cache=fields.pop("no_cache", False),
    )
    timeout = fields.pop("execution_timeout", None)
    if timeout is not None:
        options.execution_timeout.FromTimedelta(timedelta(seconds=timeout))
    batch_size = fields.pop("batch_size", 0)
    if "calibration_data" in fields:
        data = compression_pb2.CalibrationData(path=fields["calibration_data"], batch_size=batch_size)
        fields["calibration_data"] = data
    prune = {name: fields.pop(name) for name in ("extended", "rank_by_all_producers") if name in fields}
    if prune:
        fields["prune_options"] = compression_pb2.PruneOptions(**prune)
    if "sample_data" in fields:
        fields["sample_data"] = compression_pb2.CalibrationData(path=fields["sample_data"])
    if "dynamic_axes" in fields:
        fields["dynamic_axes"] = {
            name: compression_pb2.DynamicAxes(labels=axes if isinstance(axes, Mapping) else dict.fromkeys(axes, ""))
            for name, axes in fields["dynamic_axes"].items()
        }
    return message(workspace=workspace, options=options, **fields)
