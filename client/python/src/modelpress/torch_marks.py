"""Exports a module with a mark in front of each layer that tells the layer's full name (docs/spec/qat.md section 17.1).

A mark is a node QuantIdentity of the domain custom_op_domain. Names of modules cannot be read off an exported graph
otherwise, and marked modules are not folded into each other. The values and initializers of such an export have names
that the reference's files have too (`conv1.sub_module.weight`).
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modelpress.parameters import DynamicAxes
from modelpress.torch_export import export

_LOGGER = logging.getLogger("modelpress")

# Subclasses are marked too.
_MARKED_KINDS = (
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.ReLU,
    torch.nn.ReLU6,
    torch.nn.LeakyReLU,
    torch.nn.Sigmoid,
    torch.nn.Tanh,
    torch.nn.Softmax,
)
# By class name: subclasses of other names are not marked.
_MARKED_TYPES = {"Conv2d", "Linear", "ConvTranspose2d", "BatchNorm1d", "BatchNorm2d", "AvgPool2d"}
_MARKED_WITH_ZERO_PADDING = {"Conv1d", "Conv3d", "ConvTranspose1d"}
_MARKED_RNNS = {"LSTM", "GRU"}
# A SyncBatchNorm without mark would be folded into the convolution before it, and never be seen.
_SYNC_BATCH_NORM = "SyncBatchNorm"


def export_with_marks(
    model: torch.nn.Module,
    path: Path,
    input_data: tuple[Any, ...] | torch.Tensor,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    *,
    reference_defects: bool = False,
) -> None:
    """Exports in eval mode; the module is left as it was.

    Args:
        model: the module, on any device; its own children are marked, it itself is no layer.
        path: the ONNX file to write.
        input_data: what to trace the module with: a tuple, or one tensor.
        input_names: names for the graph's inputs.
        output_names: names for the graph's outputs.
        dynamic_axes: {name: {axis: label}} or {name: [axis, ...]}.
        reference_defects: leave SyncBatchNorm unmarked (qat.md section 15, D-6).

    Raises:
        RuntimeError: `model` itself is a layer, input_data is not possible, or the export failed.
    """
    names = (input_names, output_names, dynamic_axes)
    try:
        with _marks(model, reference_defects=reference_defects, keep_shapes=False):
            export(model, path, input_data, *names)
    except RuntimeError as error:
        _LOGGER.info("the export is tried again with the shapes behind marks: %s", error)
        with _marks(model, reference_defects=reference_defects, keep_shapes=True):
            export(model, path, input_data, *names)


@contextmanager
def _marks(model: torch.nn.Module, *, reference_defects: bool, keep_shapes: bool) -> Iterator[None]:
    """Puts marked modules in the place of their parents' children, and takes them out again."""
    if _is_marked(model, reference_defects=reference_defects):
        raise RuntimeError(
            f"model has no parent module. A {type(model).__name__} alone is a layer: put it into a torch.nn.Sequential"
        )
    children: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
    marked: dict[int, _Marked] = {}  # a module that has several names is marked by its first one
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():  # named_children leaves repeated ones out
            if child is not None and _is_marked(child, reference_defects=reference_defects):
                children.append((parent, name, child))
                full_name = f"{path}.{name}" if path else name
                if id(child) not in marked:
                    marked[id(child)] = _Marked(child, full_name, keep_shapes=keep_shapes)
    try:
        for parent, name, child in children:
            parent._modules[name] = marked[id(child)]
        yield
    finally:
        for parent, name, child in children:
            parent._modules[name] = child


def _is_marked(module: torch.nn.Module, *, reference_defects: bool) -> bool:
    name = type(module).__name__
    if isinstance(module, _MARKED_KINDS) or name in _MARKED_TYPES:
        return True
    if name in _MARKED_WITH_ZERO_PADDING:
        return getattr(module, "padding_mode", "zeros") == "zeros"
    if name in _MARKED_RNNS:
        return (
            isinstance(module, torch.nn.RNNBase)
            and module.num_layers == 1
            and not module.bidirectional
            and module.dropout == 0
            and module.proj_size == 0
        )
    return name == _SYNC_BATCH_NORM and not reference_defects


class _Marked(torch.nn.Module):
    """A module with a mark on its first input; everything else is the module's own."""

    def __init__(self, module: torch.nn.Module, name: str, *, keep_shapes: bool) -> None:
        super().__init__()
        self.sub_module = module
        self._mark = (name, type(module).__name__, keep_shapes)

    def forward(self, in_data: Any = None, *arguments: Any, **keywords: Any) -> Any:
        if in_data is None and keywords:  # the module's first parameter was given by name
            first = next(iter(inspect.signature(self.sub_module.forward).parameters))
            in_data = keywords.pop(first)
        # Inputs of the graph are named after the variable that holds them: here as in the reference.
        if isinstance(in_data, torch.Tensor):
            in_data = _Mark.apply(in_data, *self._mark)
        return self.sub_module(in_data, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("sub_module"), name)


class _Mark(torch.autograd.Function):
    """The node.

    In the reference's graphs the exporter does not know the shapes behind it, and writes every size that is read as
    nodes. Some modules (AdaptiveAvgPool2d of sizes above 1, batch norms without weights) it cannot export without them.
    """

    @staticmethod
    def forward(ctx: Any, in_data: torch.Tensor, name: str, module_type: str, keep_shapes: bool) -> Any:  # noqa: ARG004
        return in_data.clone()

    @staticmethod
    def symbolic(graph: Any, in_data: Any, name: str, module_type: str, keep_shapes: bool) -> Any:
        node = graph.op("custom_op_domain::QuantIdentity", in_data, op_name_s=name, module_type_s=module_type)
        return node.setType(in_data.type()) if keep_shapes else node
