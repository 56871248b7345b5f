"""Quantizers of quantization-aware training and the masks of 2:4 sparsity (docs/spec/qat.md, docs/spec/prune.md).

Everything is computed in float32, operation by operation as specified, whatever the element type of the input is and
also under autocast.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = float(np.finfo(np.float32).eps)  # 2^-23

_log = logging.getLogger(__name__)
_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Quantization(NamedTuple):
    """How real values r become integers: rint(r / scale + offset). 0-dim, or one entry per output channel."""

    scale: Tensor
    offset: Tensor


class ClipRange(NamedTuple):
    """The range of an activation, each 0-dim float32."""

    maximum: Tensor
    minimum: Tensor


def asymmetric_quantization(maximum: Tensor, minimum: Tensor, bits: int) -> Quantization:
    """Covers [minimum, maximum] and 0 (docs/spec/qat.md section 6.1)."""
    lowest = -(2 ** (bits - 1))
    maximum = maximum.clamp(min=0)
    minimum = minimum.clamp(max=0)
    scale = (maximum - minimum) / (2**bits - 1)
    offset = torch.where(maximum != minimum, lowest - minimum / scale, lowest)
    tiny = scale < EPSILON
    return Quantization(torch.where(tiny, 1.0, scale), torch.where(tiny, lowest, offset).round())


def symmetric_quantization(maximum: Tensor, minimum: Tensor, bits: int) -> Quantization:
    """With offset 0; the larger side of the range decides (docs/spec/qat.md section 6.1)."""
    maximum, minimum = maximum.abs(), minimum.abs()
    steps = torch.where(maximum < minimum, 2.0 ** (bits - 1), 2.0 ** (bits - 1) - 1)
    scale = torch.maximum(maximum, minimum) / steps
    return Quantization(torch.where(scale < EPSILON, 1.0, scale), torch.zeros_like(scale))


def fake_quantize(values: Tensor, quantization: Quantization, bits: int) -> Tensor:
    """The float values that quantization leaves; the offset is added before rounding."""
    scale, offset = quantization
    steps = (values / scale + offset).round_().clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return steps.sub_(offset).mul_(scale)


def _require_valid(*scales: Tensor) -> None:
    if not all(bool((scale.isfinite() & (1 / scale).isfinite()).all()) for scale in scales):
        raise RuntimeError("Param scale has invalid value inf, nan or zeros!")


# Activations: learned clip values (ULQ)


class _ActivationFakeQuant(torch.autograd.Function):
    """Fake quantization with gradients for the clip values (docs/spec/qat.md section 6.3)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        maximum: Tensor,  # noqa: ARG004  the parameters get gradients; the values are in `used`
        minimum: Tensor,  # noqa: ARG004
        quantization: Quantization,
        used: ClipRange,
        bits: int,
        asymmetric: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, *used)
        ctx.bits, ctx.asymmetric = bits, asymmetric
        return fake_quantize(x.float(), quantization, bits).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, maximum, minimum = ctx.saved_tensors
        bits = ctx.bits
        scale, offset = (asymmetric_quantization if ctx.asymmetric else symmetric_quantization)(maximum, minimum, bits)
        values, gradient = x.float(), grad.float()
        above = values > scale * ((2 ** (bits - 1) - 1) - offset)
        below = values < scale * (-(2 ** (bits - 1)) - offset)
        clipped = torch.where(below, minimum, torch.where(above, maximum, values)) / scale
        error = (clipped.round() - clipped) / (2**bits - 1)
        grad_x = torch.where(above | below, 0.0, gradient).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_maximum = ((error + above) * gradient).sum()
        grad_minimum = ((below.float() - error) * gradient).sum()
        return grad_x, grad_maximum, grad_minimum, None, None, None, None


def check_activation(x: Tensor) -> None:
    """Refuses what cannot be quantized.

    Raises:
        TypeError: x has no float type that is supported.
        RuntimeError: x has an infinity or NaN.
    """
    if x.dtype not in _FLOAT_TYPES:
        raise TypeError(f"The activation to be quantized must be of type float32 or float16, not {x.dtype}")
    if x.numel() == 0:
        return
    minimum, maximum = (float(value) for value in torch.aminmax(x.detach()))
    if not (np.isfinite(minimum) and np.isfinite(maximum)):
        raise RuntimeError("The activation to be quantized has invalid value inf or nan!")
    if max(abs(minimum), abs(maximum)) <= EPSILON:
        _log.warning("The activation to be quantized is all zero, or nearly so")


def usable_clip_range(current: ClipRange, previous: ClipRange, fixed_min: bool) -> ClipRange:
    """Clip values as the forward uses them: what training has made unusable is replaced by what was used before."""
    maximum, minimum = current
    if fixed_min:
        minimum = torch.zeros_like(minimum)
    equal = maximum - minimum == 0
    negative = ~equal & (maximum < 0)
    positive = ~equal & ~negative & (minimum > 0)
    return ClipRange(
        torch.where(equal | negative, previous.maximum, maximum),
        torch.where(equal | positive, previous.minimum, minimum),
    )


class QuantizedActivation(NamedTuple):
    """What `quantize_activation` computes: the values for the layer, and the state for its buffers and parameters."""

    values: Tensor
    quantization: Quantization
    clip: ClipRange


def quantize_activation(
    x: Tensor,
    clip: ClipRange,
    previous: ClipRange,
    bits: int,
    *,
    fixed_min: bool,
    asymmetric: bool = True,
    average: Callable[[ClipRange], ClipRange] | None = None,
) -> QuantizedActivation:
    """Fake-quantizes an activation with learned clip values (docs/spec/qat.md section 6.2).

    Args:
        x: input of a layer; float32, float16 or bfloat16, which is also the type of the result.
        clip: the parameters; they get gradients and are not changed.
        previous: the clip values that the forward before this one used.
        bits: 4, 8 or 16.
        fixed_min: the minimum is 0.
        asymmetric: with an offset.
        average: makes the clip values that are stored and used in the backward, of those that this process used.

    Raises:
        TypeError, RuntimeError: see `check_activation`; RuntimeError: the clip values give no scale.
    """
    check_activation(x)
    with torch.no_grad():
        used = usable_clip_range(ClipRange(*(value.detach().float() for value in clip)), previous, fixed_min)
        quantization = (asymmetric_quantization if asymmetric else symmetric_quantization)(*used, bits)
        _require_valid(quantization.scale)
        if average is not None:
            used = average(used)
    values = _ActivationFakeQuant.apply(x, *clip, quantization, used, bits, asymmetric)
    return QuantizedActivation(values, quantization, used)


# Activations: the first clip values (IFMR)


def _search_ratios() -> Tensor:
    """torch.arange(0.7, 1.3, 0.01) as the reference's build computes it: vectors of 8 float32 numbers, then doubles."""
    ratios = np.array([0.7 + 0.01 * step for step in range(61)], np.float32)
    starts = np.array([0.7 + 0.01 * (step // 8 * 8) for step in range(48)], np.float32)
    ratios[:48] = starts.astype(np.float64) + np.arange(48) % 8 * 0.01
    return torch.from_numpy(ratios)


class RangeSearch:
    """Finds the clip values of an activation in its first batches (docs/spec/qat.md section 6.4).

    The batches are kept until the search, outside the accelerator, and go through the search piece by piece.
    """

    _PIECE = 1 << 20  # elements

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def add(self, batch: Tensor) -> None:
        """Keeps a copy of a batch, flattened.

        Raises:
            RuntimeError: the batch has no elements.
        """
        if batch.numel() == 0:
            raise RuntimeError("The activation to be quantized has no elements, which give no range")
        self._batches.append(batch.detach().flatten().to("cpu", copy=True))

    def search(self, bits: int, device: torch.device) -> tuple[Quantization, ClipRange]:
        """The symmetric quantization with the least mean square error, and the range that it covers."""
        maximum, minimum = self.extremes()
        _, scales, losses = self.losses(maximum, minimum, bits, device)
        scale = scales[losses.argmin()].to(device)
        clip = ClipRange((2 ** (bits - 1) - 1) * scale, 2 ** (bits - 1) * (-scale))
        return Quantization(scale, torch.zeros_like(scale)), clip

    def extremes(self) -> tuple[Tensor, Tensor]:
        """The largest and the smallest value but for one in a million on either side; 0 lies in between."""
        total = sum(batch.numel() for batch in self._batches)
        rank = total - int(0.999999 * total)

        def at_rank(largest: bool) -> Tensor:
            tops = [batch.topk(min(rank, batch.numel()), largest=largest).values for batch in self._batches]
            return torch.cat(tops).topk(rank, largest=largest).values[-1].float()

        return at_rank(True).clamp(min=0), at_rank(False).clamp(max=0)

    def losses(
        self, maximum: Tensor, minimum: Tensor, bits: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates for the range's end, their scales, and the mean square errors that they lead to (float64)."""
        steps = 2 ** (bits - 1) if maximum.abs() < minimum.abs() else 2 ** (bits - 1) - 1
        candidates = _search_ratios() * torch.maximum(maximum.abs(), minimum.abs())
        scales = candidates / steps
        scales = torch.where(scales < EPSILON, 1.0, scales)
        sums = torch.zeros(len(scales), dtype=torch.float64)
        pairs = list(zip(candidates.to(device), scales.to(device), strict=True))
        for batch in self._batches:
            for piece in batch.split(self._PIECE):
                values = piece.to(device).float()
                errors = [
                    (values.clamp(-candidate, candidate).div_(scale).round_().mul_(scale).sub_(values))
                    .square_()
                    .sum(dtype=torch.float64)
                    for candidate, scale in pairs
                ]
                sums += torch.stack(errors).cpu()
        return candidates, scales, sums / sum(batch.numel() for batch in self._batches)


# Weights


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """Of a transposed convolution's weight [Cin, Cout/groups, ...] the form [Cout, Cin/groups, ...], and back."""
    first, second, *kernel = weight.shape
    swapped = weight.reshape(groups, first // groups, second, *kernel).transpose(1, 2)
    return swapped.reshape(groups * second, first // groups, *kernel)


def check_weight(weight: Tensor) -> None:
    """Refuses what cannot be quantized.

    Raises:
        TypeError: the weight has no float type that is supported.
        RuntimeError: the weight has an infinity or NaN.
    """
    if weight.dtype not in _FLOAT_TYPES:
        raise TypeError(f"The weight to be quantized must be of type float32 or float16, not {weight.dtype}")
    if not bool(weight.detach().isfinite().all()):
        raise RuntimeError("The weight to be quantized has invalid value inf or nan!")


def weight_scales(weight: Tensor, channels: int, bits: int) -> Tensor:
    """ARQ scales, [channels], of a weight with the output channels first (docs/spec/qat.md section 7.1).

    Raises:
        RuntimeError: a scale is infinite or NaN.
    """
    rows = weight.detach().float().reshape(channels, -1)
    scales = symmetric_quantization(rows.amax(1), rows.amin(1), bits).scale
    _require_valid(scales)
    return scales


class _WeightFakeQuant(torch.autograd.Function):
    """Fake quantization whose gradient passes, and with one for the scales (docs/spec/qat.md section 7.2)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.bits = bits
        rows = weight.float().reshape(len(scales), -1)
        quantization = Quantization(scales.float().unsqueeze(1), torch.zeros((), device=scales.device))
        return fake_quantize(rows, quantization, bits).reshape(weight.shape).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        if not ctx.needs_input_grad[1]:
            return grad, None, None
        weight, scales = ctx.saved_tensors
        bound = 2 ** (ctx.bits - 1)
        if weight.dim() == 4 or len(scales) > 1:
            weight = weight.reshape(len(scales) if len(scales) > 1 else weight.shape[0], -1)
        values, gradient = weight.float(), grad.float().reshape(weight.shape)
        scale = scales.float().unsqueeze(1) if len(scales) > 1 else scales.float()
        above = (values > scale * (bound - 1)).float()
        below = (values < -scale * bound).float()
        steps = values / scale
        slope = (steps.round() - steps) * (1 - (above + below)) - bound * below + (bound - 1) * above
        slope = slope * float(1 / np.sqrt(np.float32(values.shape[1] * (bound - 1))))
        products = slope * gradient
        grad_scales = products.sum(1) if len(scales) > 1 else products.sum().reshape(1)
        return grad, grad_scales.to(scales.dtype), None


def quantize_weight(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Fake-quantizes a weight that has the output channels first; the gradient passes unchanged.

    Args:
        weight: [Cout, ...].
        scales: [1] or [n], one for each of n equal parts of the weight; where they require a gradient they get one
            (docs/spec/qat.md section 7.2).
        bits: 4 or 8.
    """
    return _WeightFakeQuant.apply(weight, scales, bits)


# 2:4 sparsity (docs/spec/prune.md section 11)


def _smallest_two(values: Sequence[int]) -> tuple[int, int]:
    """Positions of the two smallest of four values, ties as C++'s nth_element leaves them in libstdc++."""
    order = [0, 1, 2, 3]

    def less(left: int, right: int) -> bool:
        return values[order[left]] < values[order[right]]

    def swap(left: int, right: int) -> None:
        order[left], order[right] = order[right], order[left]

    low, high = (1, 2) if less(1, 2) else (2, 1)
    swap(0, high if less(high, 3) else 3 if less(low, 3) else low)  # the median of three
    first, last = 1, 4
    while True:
        while less(first, 0):
            first += 1
        last -= 1
        while less(0, last):
            last -= 1
        if first >= last:
            break
        swap(first, last)
        first += 1
    begin, end = (first, 4) if first <= 1 else (0, first)
    order[begin:end] = sorted(order[begin:end], key=lambda position: values[position])
    return order[0], order[1]


def _mask_table() -> Tensor:
    """Kept entries, [256, 4], by the numbers of smaller entries in the group, digits of base 4."""
    table = torch.zeros(256, 4)
    for ranks in itertools.product(range(4), repeat=4):
        if all(rank == sum(other < rank for other in ranks) for rank in ranks):
            code = sum(rank * 4**position for position, rank in enumerate(ranks))
            table[code] = 1
            table[code, list(_smallest_two(ranks))] = 0
    return table


_MASKS = _mask_table()


def two_of_four_mask(weight: Tensor, axis: int) -> Tensor:
    """1 for the two largest of each four weights along the axis, else 0; float32, of the weight's shape."""
    length = weight.shape[axis]
    if length <= 2:
        return torch.ones(weight.shape, device=weight.device)
    values = weight.detach().float().abs().nan_to_num(nan=torch.inf, posinf=torch.inf).movedim(axis, -1)
    values = torch.nn.functional.pad(values, (0, -length % 4))
    groups = values.reshape(-1, 4)
    ranks = (groups.unsqueeze(1) < groups.unsqueeze(2)).sum(2)
    codes = (ranks * torch.tensor([1, 4, 16, 64], device=weight.device)).sum(1)
    kept = _MASKS.to(weight.device)[codes].reshape(values.shape)[..., :length]
    return kept.movedim(-1, axis).contiguous()


def pack_mask(mask: Tensor) -> list[int]:
    """The mask as the record file holds it: bits, most significant first, in bytes of little-endian int64 numbers."""
    data = np.packbits(mask.detach().cpu().numpy().reshape(-1) != 0)
    return [int(word) for word in np.pad(data, (0, -len(data) % 8)).view("<i8")]


def unpack_mask(packed: Sequence[int], shape: Sequence[int]) -> Tensor:
    """What `pack_mask` was made of.

    Raises:
        RuntimeError: the numbers are too few or too many for the shape.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if len(packed) != -(-count // 64):
        raise RuntimeError(f"a mask of shape {list(shape)} takes {-(-count // 64)} numbers, not {len(packed)}")
    bits = np.unpackbits(np.array(packed, "<i8").view(np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.float32)).reshape(tuple(shape))
