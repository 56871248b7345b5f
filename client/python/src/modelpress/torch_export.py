"""torch modules as files that the service reads: the ONNX model, and the module's own structure."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from google.protobuf import json_format

from modelpress.parameters import DynamicAxes
from modelpress.v1 import module_manifest_pb2


def export(
    model: torch.nn.Module,
    path: Path,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    **exporter_options: Any,
) -> None:
    """Exports as the reference does (docs/spec/save.md section 12): TorchScript exporter, eval mode, BN folded.

    Beyond 2 GB the exporter puts the tensors into files beside `path`.
    """
    arguments = to_device_of(model, as_tuple(input_data))
    # Newer versions of torch choose another exporter by default; older ones do not know the parameter.
    exporter = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with _eval_mode(model), torch.no_grad():
        torch.onnx.export(
            model,
            arguments,
            str(path),
            export_params=True,
            keep_initializers_as_inputs=True,
            opset_version=16 if torch.__version__.split("+")[0] == "2.1.0" else 11,
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic_axes,
            **{"do_constant_folding": True} | exporter | exporter_options,
        )


def export_for_quantization(
    model: torch.nn.Module,
    path: Path,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> list[Any]:
    """Exports what quantize_model reads, in the module's own names (docs/spec/qat.md section 17.2).

    Batch norms stay, and without folding every parameter keeps its name. Only the weights of RNN layers need the
    folding: the exporter computes them out of the parameters. Initializers are no inputs of the graph; the exporter
    merges equal ones where it is not told to make them inputs.

    Returns:
        The graph's inputs (onnx.ValueInfoProto).
    """
    import onnx

    export(
        model,
        path,
        input_data,
        input_names,
        output_names,
        dynamic_axes,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=any(isinstance(module, torch.nn.RNNBase) for module in model.modules()),
    )
    proto = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    path.write_bytes(proto.SerializeToString())
    return inputs


def write_manifest(model: torch.nn.Module, path: Path) -> None:
    """Writes the module manifest (api/modelpress/v1/module_manifest.proto) as JSON."""
    manifest = module_manifest_pb2.ModuleManifest()
    owners: dict[int, str] = {}  # id of a parameter -> full name of its first appearance
    for name, module in model.named_modules():
        described = None
        if name:  # the root is no layer
            described = manifest.modules.add(name=name, type=type(module).__name__)
            _describe(module, described)
        for key, parameter in module.named_parameters(recurse=False):
            owner = owners.setdefault(id(parameter), f"{name}.{key}" if name else key)
            if described is not None:
                described.parameters.add(name=key, shape=list(parameter.shape), identity=owner)
    path.write_text(json_format.MessageToJson(manifest, preserving_proto_field_name=True), encoding="utf-8")


def _describe(module: torch.nn.Module, described: Any) -> None:
    """Fills in what the conditions of docs/spec/ptq.md section 3.1 ask for."""
    if isinstance(module, torch.nn.modules.conv._ConvNd):  # has no public name
        described.groups = module.groups
        described.out_channels = module.out_channels
        described.padding_mode = module.padding_mode
        described.dilation.extend(module.dilation)
    elif isinstance(module, torch.nn.Linear):
        described.out_channels = module.out_features
    elif isinstance(module, torch.nn.RNNBase):
        described.hidden_size = module.hidden_size
        described.num_layers = module.num_layers
        described.bidirectional = module.bidirectional
        described.dropout = module.dropout
        described.proj_size = module.proj_size
        described.batch_first = module.batch_first


def as_tuple(input_data: Any) -> tuple[Any, ...]:
    """input_data as documented: a tuple of tensors, or one tensor."""
    if isinstance(input_data, torch.Tensor):
        return (input_data,)
    if not isinstance(input_data, tuple):
        raise RuntimeError("input data type must be tuple or torch.Tensor!")
    return input_data


def call_arguments(input_data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the call that the exporter traces: a dict at the end holds the latter."""
    arguments = as_tuple(input_data)
    if arguments and isinstance(arguments[-1], dict):
        return arguments[:-1], arguments[-1]
    return arguments, {}


def to_device_of(model: torch.nn.Module, value: Any) -> Any:
    """The value with its tensors on the device that the module's are on."""
    return _to_device(value, _device_of(model))


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
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
