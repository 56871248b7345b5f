"""Modules that simulate quantization and 2:4 sparsity during training (docs/spec/qat.md sections 5 to 10)."""

from torch import nn

from modelpress.torch_record import RecordFile
from modelpress.v1 import rewrite_plan_pb2


def wrap(
    model: nn.Module, plan: rewrite_plan_pb2.RewritePlan, record: RecordFile, *, reference_defects: bool = False
) -> None:
    """Replaces the plan's layers by modules that train for them, in place; the plan's cuts are already made.

    Args:
        model: has the layers at the plan's paths. It is not changed where an error is raised.
        plan: answer of create_* and restore_*.
        record: gets the factors at each complete eval inference, and the masks when they change.
        reference_defects: compute what the reference computes where it is wrong (docs/spec/qat.md section 15).

    Raises:
        RuntimeError: the model does not fit the plan.
    """
    raise NotImplementedError


def strip(model: nn.Module) -> nn.Module:
    """A copy of a wrapped model with the trained float layers at their paths, as it is exported.

    Absorbed batch norms are back at their paths, and the weights of 2:4 layers are masked. A model without wrappers is
    only copied.
    """
    raise NotImplementedError


def is_wrapped(model: nn.Module) -> bool:
    """Whether `wrap` has replaced a layer of the model."""
    raise NotImplementedError
