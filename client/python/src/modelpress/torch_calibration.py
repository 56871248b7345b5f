"""The module that quantize_model and quantize_preprocess return: it collects the inputs of its first forwards."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from modelpress.torch_export import call_arguments

Batch = dict[str, Any]  # input of the model -> numpy array


class InputBinder:
    """Turns the arguments of a module's forward into the inputs of the model that it was exported to.

    The exporter makes an input of every tensor and number, also in tuples and lists, in the order of forward's
    parameters, but for what does not get into the graph, such as flags. Everything else is built into the graph.
    """

    def __init__(self, module: torch.nn.Module, input_data: Any, inputs: Sequence[Any]) -> None:
        """`inputs` are those of the exported graph (onnx.ValueInfoProto).

        Raises:
            RuntimeError: tensors and inputs cannot be told to belong together.
        """
        self._signature = inspect.signature(module.forward)
        arguments, keywords = call_arguments(input_data)
        self._leaves = self._flatten(arguments, keywords)
        ways = list(_alignments(self._leaves, inputs))
        if len(ways) != 1:
            values = [path for path, leaf in self._leaves if isinstance(leaf, torch.Tensor | int | float)]
            names = [value.name for value in inputs]
            raise RuntimeError(
                f"input_data gives forward the values {', '.join(values)}, but the exported model has the inputs "
                f"{', '.join(names)}: leave out what forward does not use, and give tensors instead of numbers"
            )
        self._inputs = {index: value.name for index, value in zip(ways[0], inputs, strict=True)}
        self.traced: Batch = self(arguments, keywords)

    def __call__(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Batch:
        """Copies of the values by input.

        Raises:
            RuntimeError: the arguments differ from input_data in something that is built into the model.
        """
        leaves = self._flatten(arguments, keywords)
        expected = [path for path, _ in self._leaves]
        found = [path for path, _ in leaves]
        if expected != found:
            raise RuntimeError(
                f"forward was called with the arguments {', '.join(found)}; input_data has {', '.join(expected)}, "
                "and the exported model takes nothing else"
            )
        batch: Batch = {}
        for index, ((path, leaf), (_, traced)) in enumerate(zip(leaves, self._leaves, strict=True)):
            if index in self._inputs and isinstance(leaf, torch.Tensor | int | float):
                batch[self._inputs[index]] = _to_array(path, leaf)
            elif type(leaf) is not type(traced) or leaf != traced:
                raise RuntimeError(
                    f"forward was called with {path}={leaf!r}; in input_data it is {traced!r}, which is built into the "
                    "exported model"
                )
        return batch

    def _flatten(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[tuple[str, Any]]:
        bound = self._signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        return [leaf for name, value in bound.arguments.items() for leaf in _leaves(name, value)]


def _alignments(leaves: Sequence[tuple[str, Any]], inputs: Sequence[Any], begin: int = 0) -> Iterator[list[int]]:
    """The ways to find the inputs, in order, among the leaves, of which only those that are no tensors may be left."""
    if begin == len(leaves):
        if not inputs:
            yield []
        return
    leaf = leaves[begin][1]
    if inputs and _fits(leaf, inputs[0].type.tensor_type):
        for rest in _alignments(leaves, inputs[1:], begin + 1):
            yield [begin, *rest]
    if not isinstance(leaf, torch.Tensor):
        yield from _alignments(leaves, inputs, begin + 1)


def _fits(leaf: Any, tensor_type: Any) -> bool:
    """Whether a value has the element type and the number of axes of an input."""
    from onnx import TensorProto

    rank = len(tensor_type.shape.dim)
    if isinstance(leaf, torch.Tensor):
        return bool(leaf.dim() == rank)
    numbers = {bool: TensorProto.BOOL, int: TensorProto.INT64, float: TensorProto.DOUBLE}
    return rank == 0 and bool(numbers.get(type(leaf)) == tensor_type.elem_type)


class CalibrationModule(torch.nn.Module):
    """Computes what `module` computes, and gives the inputs of its first forwards away once they are complete.

    Attributes:
        module: the caller's module.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        binder: InputBinder,
        batch_num: int,
        finish: Callable[[list[Batch]], None],
    ) -> None:
        """`finish` gets the inputs of the first `batch_num` forwards; after a failure the next forward tries again."""
        super().__init__()
        self.module = module
        self._binder = binder
        self._batch_num = batch_num
        self._finish: Callable[[list[Batch]], None] | None = finish
        self._batches: list[Batch] = []
        self.train(module.training)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """As the module's own."""
        collecting = self._finish is not None and len(self._batches) < self._batch_num
        batch = self._binder(arguments, keywords) if collecting else None  # forward may change its arguments
        output = self.module(*arguments, **keywords)
        if batch is not None:
            self._batches.append(batch)
        if self._finish is not None and len(self._batches) == self._batch_num:
            self._finish(self._batches)
            self._finish = None
            self._batches = []
        return output


def varying_axes(inputs: Sequence[Any], batches: Sequence[Batch]) -> dict[str, list[int]]:
    """The axes of inputs (onnx.ValueInfoProto) that are fixed in the model and have another size in a batch.

    Axes of inputs whose number of axes differs are left out: no model takes those.
    """
    varying: dict[str, list[int]] = {}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        shapes = [batch[value.name].shape for batch in batches]
        axes = [
            axis
            for axis, dim in enumerate(dims)
            if dim.HasField("dim_value") and any(len(s) == len(dims) and s[axis] != dim.dim_value for s in shapes)
        ]
        if axes:
            varying[value.name] = axes
    return varying


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _leaves(f"{path}[{i}]", item)
    elif isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values()):
        raise RuntimeError(f"{path} holds tensors in a dict; an exported model takes tensors, tuples and lists of them")
    else:
        yield path, value


def _to_array(path: str, value: torch.Tensor | float) -> Any:
    if not isinstance(value, torch.Tensor):
        dtype = torch.float64 if isinstance(value, float) else None  # torch's own default is float32
        value = torch.tensor(value, dtype=dtype)
    try:
        return value.detach().to("cpu", copy=True).numpy()
    except TypeError as error:  # bfloat16, for one
        raise RuntimeError(f"{path} has the type {value.dtype}, which calibration data cannot have") from error
