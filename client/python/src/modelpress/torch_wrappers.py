"""Modules that simulate quantization and 2:4 sparsity during training (docs/spec/qat.md sections 5 to 10)."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelpress.amct import record_pb2
from modelpress.torch_quantizers import EPSILON
from modelpress.torch_record import RecordFile
from modelpress.torch_training_layers import GATES, CompModule, CompModuleRNN
from modelpress.v1 import rewrite_plan_pb2

# Where a gate of torch's order comes from in ONNX's.
_ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


class Recorder(nn.Module):
    """Number of quantized layers, which the reference has in its checkpoints, and the model's record file."""

    def __init__(self, record: RecordFile, layers: int, device: torch.device | None) -> None:
        super().__init__()
        self.register_buffer("quant_layer_num", torch.tensor(float(layers), device=device))
        self.record = record


class _RetrainQuant(nn.Module):
    """Base of the wrappers of quantized layers: records their factors at each evaluation."""

    def __init__(
        self,
        layer: rewrite_plan_pb2.WrappedLayer,
        module: CompModule | CompModuleRNN,
        recorder: Recorder,
        weights: str,
        channels: int,
        *,
        force_fp16: bool,
        reference_defects: bool,
    ) -> None:
        """`weights` are the letters that name the scales and offsets of the layer's weights, [channels] each."""
        super().__init__()
        self.layer_name = layer.module
        self._act_type = layer.act.dst_type
        self._wts_type = layer.weight.dst_type
        self._force_fp16 = force_fp16 and not reference_defects
        self._once = reference_defects
        self._recorded = False
        for name, value in (("scale", 1.0), ("offset", 0.0)):
            for weight in weights:
                values = torch.full((channels,), value, device=module.wts_scales.device)
                self.register_buffer(f"{name}_{weight}", values)
        self.quant_module = module
        self.record_module = recorder

    def _fill(self, factors: record_pb2.SingleLayerRecord) -> None:
        """Computes what depends on the kind of layer, also into the buffers."""
        raise NotImplementedError

    @torch.no_grad()
    def _record_factors(self) -> None:
        """Ends a forward: an evaluation gives the layer's factors to the record file (docs/spec/qat.md section 9)."""
        record = self.record_module.record
        if self.training:
            if not self._once:
                record.forget_factors()
            return
        if self.quant_module.pending or (self._once and self._recorded):
            return
        self._recorded = True
        factors = record_pb2.SingleLayerRecord(act_type=self._act_type, wts_type=self._wts_type)
        owner = self.quant_module.input_owner
        if (quantizer := owner.input_quantizer) is not None:
            factors.scale_d, factors.offset_d = quantizer.factors(owner)
        self._fill(factors)
        if self._force_fp16:
            _round_to_half(factors)
        record.put_factors(self.layer_name, factors)


class RetrainQuant(_RetrainQuant):
    """A quantized convolution or linear layer, and the batch norm behind it that will be folded into it."""

    def __init__(
        self,
        layer: rewrite_plan_pb2.WrappedLayer,
        module: CompModule,
        recorder: Recorder,
        batch_norm: nn.Module | None,
        **options: bool,
    ) -> None:
        channels = layer.num_scales if batch_norm is None else batch_norm.num_features
        super().__init__(layer, module, recorder, "w", channels, **options)
        self.bn_path = layer.bn if layer.HasField("bn") else None
        self.register_module("bn_module", batch_norm)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float layer's, and the batch norm's behind it."""
        output = self.quant_module(*args, **kwargs)
        if self.bn_module is not None:
            output = self.bn_module(output)
        self._record_factors()
        return output

    def _fill(self, factors: record_pb2.SingleLayerRecord) -> None:
        scales = self.quant_module.wts_scales.float()
        self.scale_w.copy_(recorded_scales(scales) if self.bn_module is None else folded_scales(scales, self.bn_module))
        factors.scale_w.extend(self.scale_w.tolist())
        factors.offset_w.extend(int(offset) for offset in self.offset_w.tolist())


class RNNRetrainQuant(_RetrainQuant):
    """A quantized LSTM or GRU."""

    def __init__(
        self, layer: rewrite_plan_pb2.WrappedLayer, module: CompModuleRNN, recorder: Recorder, **options: bool
    ) -> None:
        super().__init__(layer, module, recorder, "wr", layer.num_scales, **options)
        self._gates = _ONNX_GATES[layer.torch_type]
        self.bn_path = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float layer's."""
        output = self.quant_module(*args, **kwargs)
        self._record_factors()
        return output

    def _fill(self, factors: record_pb2.SingleLayerRecord) -> None:
        module = self.quant_module
        self.scale_w.copy_(recorded_scales(module.wts_scales.float()))
        self.scale_r.copy_(recorded_scales(module.rec_wts_scales.float()))
        factors.scale_h, factors.offset_h = module.hidden_quantizer.factors(module)
        for name in ("scale_w", "scale_r"):
            getattr(factors, name).extend(self._in_onnx_order(getattr(self, name)))
        for name in ("offset_w", "offset_r"):
            getattr(factors, name).extend(int(offset) for offset in self._in_onnx_order(getattr(self, name)))

    def _in_onnx_order(self, values: Tensor) -> list[float]:
        ordered: list[float] = values.reshape(len(self._gates), -1)[list(self._gates)].flatten().tolist()
        return ordered


def recorded_scales(scales: Tensor) -> Tensor:
    """Weight scales as the record file has them: learned ones may be negative, or as good as 0."""
    scales = scales.abs()
    return torch.where(scales < EPSILON, 1.0, scales)


def folded_scales(scales: Tensor, batch_norm: nn.Module) -> Tensor:
    """Scales of weights that a batch norm will be folded into, one per channel."""
    factors = batch_norm.weight * (1 / (batch_norm.running_var + batch_norm.eps).sqrt())
    return recorded_scales(scales * factors)


def _round_to_half(factors: record_pb2.SingleLayerRecord) -> None:
    """Scales that float16 hardware computes with (docs/spec/ptq.md section 8.3)."""
    for name in ("scale_d", "scale_h"):
        if factors.HasField(name):
            scale = getattr(factors, name)
            if 2.0**-14 <= scale <= 65504:
                scale = float(np.float16(scale))
            else:  # as a square
                root = np.float32(np.float16(math.sqrt(scale)))
                scale = float(root * root)
            setattr(factors, name, scale)
    factors.fakequant_precision_mode = "FORCE_FP16_QUANT"


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
    if is_wrapped(model):
        raise RuntimeError("the model is wrapped already")
    quantized = [layer.module for layer in plan.layers if layer.HasField("act")]
    device = next((parameter.device for parameter in model.parameters()), None)
    recorder = Recorder(record, len(quantized), device)
    compressed: dict[str, CompModule | CompModuleRNN] = {}
    wrappers: dict[str, nn.Module] = {}
    batch_norms: list[str] = []
    for layer in plan.layers:
        module = _layer_module(model, layer)
        inner: CompModule | CompModuleRNN
        if layer.torch_type in GATES:
            inner = CompModuleRNN(layer, module, plan.batch_num, reference_defects=reference_defects)
        else:
            inner = CompModule(layer, module, plan.batch_num, record, reference_defects=reference_defects)
        compressed[layer.module] = inner
        options = {"force_fp16": plan.force_fp16_quant, "reference_defects": reference_defects}
        if not layer.HasField("act"):
            wrappers[layer.module] = inner
        elif isinstance(inner, CompModuleRNN):
            wrappers[layer.module] = RNNRetrainQuant(layer, inner, recorder, **options)
        else:
            batch_norm = _batch_norm(model, layer) if layer.HasField("bn") else None
            wrappers[layer.module] = RetrainQuant(layer, inner, recorder, batch_norm, **options)
            batch_norms.extend([layer.bn] if batch_norm is not None else [])
    for layer in plan.layers:
        if layer.HasField("share_main") and isinstance(member := compressed[layer.module], CompModule):
            member.share(_owner(compressed, layer))
    record.expect(quantized, [layer.module for layer in plan.layers if layer.HasField("selective")])
    for name, wrapper in wrappers.items():
        _replace(model, name, wrapper)
    for name in batch_norms:
        _replace(model, name, nn.Identity())


def strip(model: nn.Module) -> nn.Module:
    """A copy of a wrapped model with the trained float layers at their paths, as it is exported.

    Absorbed batch norms are back at their paths, and the weights of 2:4 layers are masked. A model without wrappers is
    only copied.
    """
    stripped = copy.deepcopy(model)
    for name, wrapper in list(_wrappers(stripped)):
        if isinstance(wrapper, CompModule):
            _replace(stripped, name, wrapper.float_module())
            continue
        _replace(stripped, name, wrapper.quant_module.float_module())
        if wrapper.bn_path is not None:
            # The wrapped model may be a part of a larger one.
            _replace(stripped, name.removesuffix(wrapper.layer_name) + wrapper.bn_path, wrapper.bn_module)
    return stripped


def is_wrapped(model: nn.Module) -> bool:
    """Whether `wrap` has replaced a layer of the model."""
    return next(_wrappers(model), None) is not None


def _wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that stand at the path of a layer."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, _RetrainQuant):
            inside.add(module.quant_module)
            yield name, module
        elif isinstance(module, CompModule) and module not in inside:
            yield name, module


def _layer_module(model: nn.Module, layer: rewrite_plan_pb2.WrappedLayer) -> nn.Module:
    module = _module_at(model, layer.module)
    if type(module).__name__ != layer.torch_type:
        raise RuntimeError(
            f"layer {layer.module} is a {type(module).__name__}, in the plan a {layer.torch_type}: give the model that "
            "the plan was made for"
        )
    weights = ["weight_ih_l0", "weight_hh_l0"] if layer.torch_type in GATES else ["weight"]
    parameters = dict(module.named_parameters(recurse=False))
    for name in weights:
        if name not in parameters:
            raise RuntimeError(f"layer {layer.module} has no parameter {name}, as a plain {layer.torch_type} has")
    expected = _num_scales(module, layer)
    if layer.HasField("weight") and layer.num_scales != expected:
        raise RuntimeError(
            f"layer {layer.module} takes {expected} weight scales, in the plan {layer.num_scales}: give the model that "
            "the plan was made for, with the plan's cuts made"
        )
    shape, mask_shape = list(parameters[weights[0]].shape), list(layer.selective.mask_shape)
    if mask_shape and shape != mask_shape:
        raise RuntimeError(f"the weight of layer {layer.module} has the shape {shape}, in the plan {mask_shape}")
    return module


def _num_scales(module: nn.Module, layer: rewrite_plan_pb2.WrappedLayer) -> int:
    """n0 of docs/spec/qat.md section 5.2."""
    if layer.torch_type in GATES:
        gates = GATES[layer.torch_type]
        return gates * module.hidden_size if layer.weight.channel_wise else gates
    if not layer.weight.channel_wise:
        return 1
    if layer.torch_type.startswith("ConvTranspose"):
        return int(module.weight.shape[1] * module.groups)
    return int(module.weight.shape[0])


def _batch_norm(model: nn.Module, layer: rewrite_plan_pb2.WrappedLayer) -> nn.Module:
    module = _module_at(model, layer.bn)
    channels = len(_module_at(model, layer.module).weight)
    for name in ("weight", "running_mean", "running_var"):
        if getattr(getattr(module, name, None), "shape", None) != (channels,):
            raise RuntimeError(
                f"{layer.bn}, behind layer {layer.module}, is no batch norm of {channels} channels with weights and "
                "statistics"
            )
    return module


def _owner(compressed: dict[str, CompModule | CompModuleRNN], layer: rewrite_plan_pb2.WrappedLayer) -> Any:
    owner = compressed.get(layer.share_main)
    if owner is None or owner.input_quantizer is None:
        raise RuntimeError(f"layer {layer.module} shares with {layer.share_main}, which has no activation quantizer")
    return owner


def _module_at(model: nn.Module, name: str) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if module is None or module is model:
        raise RuntimeError(f"the model has no layer {name!r}, which is in the plan")
    return module


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
