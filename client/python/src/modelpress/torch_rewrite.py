"""Does to a torch module what a rewrite plan says (api/modelpress/v1/rewrite_plan.proto)."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch

from modelpress.torch_export import as_tuple, call_arguments, to_device_of
from modelpress.torch_record import RecordFile
from modelpress.torch_wrappers import wrap
from modelpress.v1 import rewrite_plan_pb2

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)

_ATTRIBUTE = "_modelpress_retraining"


@dataclass
class Retraining:
    """What a rewritten module keeps besides its state: copies and pickles of the module have it too.

    Attributes:
        plan: what was done to it.
        record: its record file.
    """

    plan: rewrite_plan_pb2.RewritePlan
    record: RecordFile


class BrokenTrainingError(RuntimeError):
    """Only training uses a module that gets fewer channels than it takes once channels are cut.

    Attributes:
        layers: those in front of it that lose channels.
    """

    def __init__(self, module: str, error: Exception, layers: list[str]) -> None:
        super().__init__(
            f"without the channels to be cut the module does not run in training mode: {module or 'its forward'} fails "
            f"({error}). What only training uses is not pruned with the rest: leave the layers in front of it, "
            f"{', '.join(layers) or 'which are not known'}, out of the pruning (regular_prune_skip_layers), or turn it "
            "off"
        )
        self.layers = layers


def apply_plan(
    model: ModuleT,
    plan: rewrite_plan_pb2.RewritePlan,
    record: RecordFile,
    *,
    reference_defects: bool = False,
    input_data: tuple[Any, ...] | torch.Tensor | None = None,
) -> ModuleT:
    """A copy of the module with the plan's channels cut and its layers wrapped.

    Args:
        model: the module that the plan was made for.
        plan: the service's answer.
        record: the record file that the wrapped layers write to.
        reference_defects: see torch_wrappers.wrap.
        input_data: to check a forward in training mode with after channels were cut; None: no check.

    Raises:
        BrokenTrainingError: see there.
        RuntimeError: the module cannot be copied, or the plan does not fit it.
    """
    rewritten = copy_model(model)
    apply_cuts(rewritten, plan.cuts)
    if plan.cuts and input_data is not None:
        _check_training(model, rewritten, plan.cuts, input_data)
    if plan.layers:
        wrap(rewritten, plan, record, reference_defects=reference_defects)
    setattr(rewritten, _ATTRIBUTE, Retraining(plan, record))
    return rewritten


def retraining_of(model: torch.nn.Module) -> Retraining | None:
    """What apply_plan left in a module, or None."""
    retraining = getattr(model, _ATTRIBUTE, None)
    return retraining if isinstance(retraining, Retraining) else None


def apply_cuts(model: torch.nn.Module, cuts: Iterable[Any]) -> None:
    """Removes channels in place (docs/spec/prune.md section 7).

    Parameters stay the objects they are, so that whoever shares one sees the cut, which is made once. Their device,
    type, memory format and requires_grad stay too; a gradient of the former shape goes.

    Args:
        model: the module.
        cuts: modelpress.v1.ModuleCut messages, applied in their order.

    Raises:
        RuntimeError: a cut does not fit the module; nothing has been changed.
    """
    cuts = list(cuts)
    steps = _check(model, cuts)
    with torch.no_grad():
        for tensor, cut in steps:
            tensor.data = _without_channels(tensor.data, cut)
            tensor.grad = None
    for cut in cuts:
        module = model.get_submodule(cut.module)
        for name, value in cut.attributes.items():
            setattr(module, name, value)


@dataclass
class _Tensor:
    """A parameter or buffer to cut.

    Attributes:
        shape: as the cuts so far leave it.
        cuts: those of each module that has it, by (id of the module, name); the first module's are made, and each of
            the others must have the same ones.
    """

    tensor: torch.Tensor
    place: str
    shape: list[int]
    cuts: dict[tuple[int, str], list[Any]] = field(default_factory=dict)


def _check(model: torch.nn.Module, cuts: list[Any]) -> list[tuple[torch.Tensor, Any]]:
    """The tensors to cut, each cut once, in order."""
    steps: list[tuple[torch.Tensor, Any]] = []
    tensors: dict[int, _Tensor] = {}
    for cut in cuts:
        module = _find(model, cut)
        registered = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
        for tensor_cut in cut.tensors:
            place = f"{cut.module}.{tensor_cut.name}"
            tensor = registered.get(tensor_cut.name)
            if tensor is None and getattr(module, tensor_cut.name, None) is None:
                continue
            if tensor is None:
                raise _misfit(f"{place} is no parameter; remove the parametrization")
            known = tensors.setdefault(id(tensor), _Tensor(tensor, place, list(tensor.shape)))
            done = known.cuts.setdefault((id(module), tensor_cut.name), [])
            first = next(iter(known.cuts.values()))
            if done is first:
                _check_cut(place, known.shape, tensor_cut)
                steps.append((tensor, tensor_cut))
            elif len(done) == len(first) or not _same(first[len(done)], tensor_cut):
                raise _misfit(f"{place} and {known.place} are one parameter, but are cut differently")
            done.append(tensor_cut)
    _check_sharing(model, tensors)
    return steps


def _check_sharing(model: torch.nn.Module, tensors: dict[int, _Tensor]) -> None:
    """Checks that all modules that have a tensor get the same cuts of it."""
    for path, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            known = tensors.get(id(tensor))
            if known is None:
                continue
            first = next(iter(known.cuts.values()))
            if len(known.cuts.get((id(module), name), [])) != len(first):
                raise _misfit(f"{path}.{name} and {known.place} are one parameter, but are cut differently")


def _find(model: torch.nn.Module, cut: Any) -> torch.nn.Module:
    try:
        module = model.get_submodule(cut.module)
    except AttributeError as error:
        raise _misfit(f"the model has no module {cut.module!r}") from error
    if not _is_a(module, cut.type):
        raise _misfit(f"{cut.module} is a {type(module).__name__} instead of a {cut.type}")
    for name in cut.attributes:
        if not hasattr(module, name):
            raise _misfit(f"{cut.module} has no attribute {name}")
    return module


def _is_a(module: torch.nn.Module, name: str) -> bool:
    """Whether a module is of the plan's class; graphs do not tell every class, nor one batch norm from another."""
    if not name or (name.startswith("BatchNorm") and isinstance(module, torch.nn.modules.batchnorm._BatchNorm)):
        return True
    return name in {kind.__name__ for kind in type(module).__mro__}


def _check_cut(place: str, shape: list[int], cut: Any) -> None:
    """Checks a cut against a shape, and makes the shape what the cut leaves."""
    if not 0 <= cut.axis < len(shape):
        raise _misfit(f"{place} has {len(shape)} axes, but is to be cut along axis {cut.axis}")
    groups = _groups(cut)
    size = shape[cut.axis] * groups
    if size != cut.size:
        raise _misfit(f"{place} has {size} channels along axis {cut.axis} instead of {cut.size}")
    kept = list(cut.kept)
    if not kept or kept[0] < 0 or kept[-1] >= size or any(a >= b for a, b in pairwise(kept)):
        raise _misfit(f"{place}: the channels to keep along axis {cut.axis} are not ascending indices below {size}")
    if groups > 1 and (cut.axis != 1 or shape[0] % groups or len(kept) % groups):
        raise _misfit(f"{place}: {len(kept)} of {size} input channels cannot be {groups} groups")
    shape[cut.axis] = len(kept) // groups


def _without_channels(tensor: torch.Tensor, cut: Any) -> torch.Tensor:
    kept = torch.tensor(list(cut.kept), device=tensor.device)
    groups = _groups(cut)
    if groups > 1:
        rest = tensor.shape[2:]
        columns = tensor.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        columns = columns.index_select(1, kept).unflatten(1, (groups, -1))
        result = columns.transpose(0, 1).reshape(tensor.shape[0], len(kept) // groups, *rest)
    else:
        result = tensor.index_select(cut.axis, kept)
    return result.contiguous(memory_format=_memory_format(tensor))


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.dim())
    if last is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _groups(cut: Any) -> int:
    return max(int(cut.groups), 1)


def _same(a: Any, b: Any) -> bool:
    return a.axis == b.axis and a.size == b.size and _groups(a) == _groups(b) and list(a.kept) == list(b.kept)


def _misfit(message: str) -> RuntimeError:
    return RuntimeError(f"the rewrite plan does not fit the model: {message}")


def copy_model(model: ModuleT) -> ModuleT:
    """A deep copy.

    Raises:
        RuntimeError: the module holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise RuntimeError(
            f"the model cannot be copied ({error}); remove what copy.deepcopy does not copy from its modules: "
            "results of a forward, process groups, locks, open files"
        ) from error


def _check_training(
    before: torch.nn.Module,
    after: torch.nn.Module,
    cuts: Iterable[Any],
    input_data: tuple[Any, ...] | torch.Tensor,
) -> None:
    """Raises BrokenTrainingError where cut channels break what the exported graph does not have (prune.md section 8).

    A module that does not run before the cuts either (a batch norm with one value per channel) tells nothing.
    """
    trial = _Trial(after, input_data)
    if trial.error is None:
        return
    full = _Trial(before, input_data, stop_at=trial.entered)
    if full.error is not None:
        return
    # Depthwise convolutions lose the channels that their input loses.
    cut = {cut.module for cut in cuts if "groups" not in cut.attributes and any(not t.axis for t in cut.tensors)}
    layers = [name for name in full.layers_before() if name in cut]
    raise BrokenTrainingError(trial.entered, trial.error, layers) from trial.error


class _Trial:
    """A forward of a module's copy in training mode.

    Attributes:
        error: what it raised.
        entered: the module in which it raised that; "" for the module itself.
    """

    def __init__(
        self, model: torch.nn.Module, input_data: tuple[Any, ...] | torch.Tensor, stop_at: str | None = None
    ) -> None:
        """`stop_at`: the module whose input `layers_before` is to be asked about."""
        self._model = copy_model(model).train().requires_grad_(stop_at is not None)
        self._inputs: list[torch.Tensor] = []
        self.error: Exception | None = None
        path: list[str] = []
        for name, module in self._model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: path.append(name))
            module.register_forward_hook(lambda *_: (path.pop(), None)[1])
        if stop_at is not None:
            self._model.get_submodule(stop_at).register_forward_pre_hook(self._keep_inputs)
        arguments, keywords = call_arguments(to_device_of(self._model, as_tuple(input_data)))
        devices = {parameter.device for parameter in self._model.parameters() if parameter.is_cuda}
        with torch.random.fork_rng(devices), torch.set_grad_enabled(stop_at is not None):
            try:
                self._model(*arguments, **keywords)
            except Exception as error:  # whatever the caller's code raises
                self.error = error
        self.entered = path[-1] if path else ""

    def _keep_inputs(self, _: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self._inputs += [value for value in arguments if isinstance(value, torch.Tensor)]

    def layers_before(self) -> list[str]:
        """The convolutions and linear layers whose output channels the inputs have, as autograd knows them."""
        weights = {
            id(module.weight): name
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and not _is_depthwise(module)
        }
        found: list[str] = []
        functions = [value.grad_fn for value in self._inputs]
        seen: set[Any] = {None}
        while functions:
            function = functions.pop()
            if function in seen:
                continue
            seen.add(function)
            following = [entry for entry, _ in function.next_functions]
            names = [
                weights[id(entry.variable)] for entry in following if id(getattr(entry, "variable", None)) in weights
            ]
            found += names
            if not names:
                functions += following
        return sorted(set(found))


def _is_depthwise(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv2d) and bool(1 < module.groups == module.in_channels)
