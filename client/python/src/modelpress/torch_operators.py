"""Layers for quantization-aware training that are used one by one (docs/spec/qat.md section 18).

Each takes the place of a float layer in a network, trains with quantized inputs and weights, and is exported with
QuantizeLinear and DequantizeLinear. Unlike the reference's, they do not initialise their clip values again when a
checkpoint is loaded in which that is done, learned scales work for all of them, and a grouped transposed convolution
with scales per channel is exported to a valid graph.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from modelpress import torch_quantizers as quantizers
from modelpress.torch_training_layers import MAX_COUNT, ActivationQuantizer, WeightQuantizer, completed_forwards
from modelpress.v1 import rewrite_plan_pb2

__all__ = ["Conv1dQAT", "Conv2dQAT", "Conv3dQAT", "ConvTranspose1dQAT", "ConvTranspose2dQAT", "LinearQAT"]

Config = Mapping[str, Any]

_INTEGERS = {"INT8": torch.int8, "INT16": torch.int16}


class _Settings:
    """A layer's configuration, checked.

    Raises:
        TypeError, ValueError: the configuration is not as documented; the message names the entry.
    """

    def __init__(self, layer: str, config: Config | None, channel_wise: bool) -> None:
        self._layer = layer
        config = self._section({"config": config}, "config")
        data = self._section(config, "retrain_data_config")
        weight = self._section(config, "retrain_weight_config")
        self.enabled: bool = self._get(config, "retrain_enable", bool, True)
        self.dst_type: str = self._one_of(data, "dst_type", ("INT8", "INT16"), "INT8")
        self.batch_num: int = self._get(data, "batch_num", int, 1)
        self.fixed_min: bool = self._get(data, "fixed_min", bool, False)
        self.asymmetric: bool = self._get(data, "asymmetric", bool, True)
        self.clip_max: float | None = self._get(data, "clip_max", float, None)
        self.clip_min: float | None = self._get(data, "clip_min", float, None)
        self._one_of(weight, "dst_type", ("INT8",), "INT8")
        self.algo: str = self._one_of(weight, "weights_retrain_algo", ("arq_retrain", "ulq_retrain"), "arq_retrain")
        self.channel_wise: bool = self._get(weight, "channel_wise", bool, channel_wise)
        self._require(self.batch_num > 0, "batch_num", "greater than 0")
        self._require(self.clip_max is None or self.clip_max > 0, "clip_max", "greater than 0")
        self._require(self.clip_min is None or self.clip_min < 0, "clip_min", "less than 0")
        self._require(channel_wise or not self.channel_wise, "channel_wise", "false")

    def _section(self, config: Config, key: str) -> Config:
        section = config.get(key)
        if not isinstance(section, Mapping | None):
            raise TypeError(f"{self._layer}: {key} must be a dict, not {section!r}")
        return {} if section is None else section

    def _get(self, section: Config, key: str, expected: type, default: Any) -> Any:
        value = section.get(key)
        if value is None:
            return default
        if type(value) is not expected:
            raise TypeError(f"{self._layer}: {key} must be of type {expected.__name__}, not {value!r}")
        return value

    def _one_of(self, section: Config, key: str, values: tuple[str, ...], default: str) -> str:
        value: str = self._get(section, key, str, default)
        self._require(value in values, key, " or ".join(values))
        return value

    def _require(self, condition: bool, key: str, requirement: str) -> None:
        if not condition:
            raise ValueError(f"{self._layer}: {key} must be {requirement}")


class _OperatorQAT(nn.Module):
    """What the layers have in common; each is also of its float class."""

    _float_class: ClassVar[type[nn.Module]]
    _channel_wise: ClassVar[bool] = True  # by default
    _from_float_error: ClassVar[type[Exception]] = TypeError
    weight: nn.Parameter

    @classmethod
    def _arguments(cls, mod: Any) -> dict[str, Any]:
        """Arguments of the float class that give a layer like `mod`."""
        raise NotImplementedError

    @classmethod
    def from_float(cls, mod: nn.Module, config: Config | None = None) -> Self:
        """A layer with the parameters, not copies of them, of a float layer.

        Raises:
            TypeError, RuntimeError: mod is of another class.
            TypeError, ValueError: the configuration is not as documented.
        """
        if type(mod) is not cls._float_class:
            raise cls._from_float_error(f"{cls.__name__}.from_float can only works for {cls._float_class.__name__}")
        weight: Any = mod.weight
        layer = cls(**cls._arguments(mod), device=weight.device, dtype=weight.dtype, config=config)
        layer.weight = weight
        layer.bias = mod.bias
        layer.train(mod.training)
        return layer

    def __init__(self, *args: Any, config: Config | None = None, **kwargs: Any) -> None:
        """Arguments of the float layer, and the configuration.

        Raises:
            TypeError, ValueError: the configuration is not as documented; the message names the entry.
        """
        super().__init__(*args, **kwargs)
        settings = _Settings(type(self).__name__, config, self._channel_wise)
        device = self.weight.device
        self.retrain_enable = settings.enabled
        self._activation = ActivationQuantizer(
            "acts_",
            rewrite_plan_pb2.ActivationQuantizer(
                num_bits=16 if settings.dst_type == "INT16" else 8, ifmr_init=settings.clip_max is None
            ),
            settings.fixed_min,
            settings.batch_num,
            asymmetric=settings.asymmetric,
            offset="offset_deploy",
        )
        self._weight_quantizer = WeightQuantizer(
            rewrite_plan_pb2.WeightQuantizer(algo=settings.algo, num_bits=8, channel_wise=settings.channel_wise)
        )
        for name, value in (("max", settings.clip_max or 1.0), ("min", settings.clip_min or -1.0)):
            self.register_parameter(f"acts_clip_{name}", nn.Parameter(torch.tensor(value, device=device)))
        self._scaled_by_channel = settings.channel_wise
        channels = len(self._channels_first(self.weight.detach())) if settings.channel_wise else 1
        nan = torch.full((channels,), torch.nan, device=device)
        for name in ("wts_scales", "wts_offsets"):
            self.register_parameter(name, nn.Parameter(nan.clone(), requires_grad=False))
        self.register_buffer("cur_batch", torch.zeros((), dtype=torch.int64, device=device))
        for name in ("acts_clip_max_pre", "acts_clip_min_pre"):
            self.register_buffer(name, torch.full((), torch.nan, device=device))
        self.register_buffer("acts_scale", torch.full((1,), torch.nan, device=device))
        offset = torch.zeros(1, dtype=_INTEGERS[settings.dst_type], device=device)
        self.register_buffer("acts_offset_deploy", offset)
        self.register_buffer("wts_offsets_deploy", torch.zeros(channels, dtype=torch.int8, device=device))
        self.register_buffer("s_rec_flag", torch.zeros((), dtype=torch.bool, device=device))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the float layer's, with quantized input and weight; overwrites the weight by its quantized value.

        Raises:
            TypeError: input or weight are of a type that cannot be quantized.
            RuntimeError: input or weight have an infinity or NaN.
        """
        if not self.retrain_enable:
            return self._operator(x, self.weight, *args, **kwargs)
        if not torch.onnx.is_in_onnx_export():
            return self._operator(self._quantize(x), self.weight, *args, **kwargs)
        x = _ExportedActivation.apply(x, self)
        kernel = self._with_scaled_axis_second(self.weight)
        kernel = _ExportedWeight.apply(kernel, self.wts_scales, self.wts_offsets_deploy)
        return self._operator(x, self._with_axes_back(kernel), *args, **kwargs)

    def _operator(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The float operator with a weight. The exporter names weights after variables: none may be called weight."""
        raise NotImplementedError

    def _quantize(self, x: Tensor) -> Tensor:
        """The input for the float operator; its weight is quantized in place, and so gets the operator's gradient."""
        if self._activation.pending:  # which leaves the input as it is
            self._activation.observe(self, x, x)
        else:
            x = self._activation(self, x, self.training)
        with torch.no_grad():
            weight = self._channels_first(self.weight)
            weight = self._weight_quantizer(weight, self.wts_scales, self.wts_offsets, int(self.cur_batch) == 0)
            self.weight.data.copy_(self._channels_first(weight))
            self.cur_batch.add_(1).clamp_(max=MAX_COUNT)
        return x

    def _channels_first(self, weight: Tensor) -> Tensor:
        """The weight with its output channels first, and back."""
        return weight

    def _with_scaled_axis_second(self, kernel: Tensor) -> Tensor:
        """The weight with the axis that has scales where QuantizeLinear takes it to be without being told."""
        return kernel

    def _with_axes_back(self, kernel: Tensor) -> Tensor:
        """What `_with_scaled_axis_second` was made of."""
        return kernel

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._activation.restart(completed_forwards(self))


class _ExportedActivation(torch.autograd.Function):
    """A forward's quantization, which is not traced, as QuantizeLinear and DequantizeLinear in an exported graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _OperatorQAT) -> Tensor:  # noqa: ARG004
        tracing = torch._C._get_tracing_state()  # has no public name
        torch._C._set_tracing_state(None)
        try:
            return layer._quantize(x).clone()
        finally:
            torch._C._set_tracing_state(tracing)

    @staticmethod
    def symbolic(g: Any, x: Any, layer: Any) -> Any:
        """The nodes."""
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            scale = g.op("Constant", value_t=layer.acts_scale.detach().cpu().squeeze())
            offset = g.op("Constant", value_t=layer.acts_offset_deploy.cpu().squeeze())
            x = g.op(operator, x, scale, offset)
        return x


class _ExportedWeight(torch.autograd.Function):
    """A quantized weight, as QuantizeLinear and DequantizeLinear in an exported graph."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:  # noqa: ARG004
        return kernel.clone()

    @staticmethod
    def symbolic(g: Any, kernel: Any, scales: Any, offsets: Any) -> Any:
        """The nodes."""
        return g.op("DequantizeLinear", g.op("QuantizeLinear", kernel, scales, offsets), scales, offsets)


class _ConvQAT(_OperatorQAT):
    """A convolution of any rank."""

    @classmethod
    def _arguments(cls, mod: Any) -> dict[str, Any]:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        return {name: getattr(mod, name) for name in names} | {"bias": mod.bias is not None}

    def _operator(self, x: Tensor, kernel: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(x, kernel, self.bias)
        return output

    def _with_scaled_axis_second(self, kernel: Tensor) -> Tensor:
        return kernel.transpose(0, 1)

    def _with_axes_back(self, kernel: Tensor) -> Tensor:
        return kernel.transpose(0, 1)


class _ConvTransposeQAT(_ConvQAT):
    """A transposed convolution of any rank."""

    @classmethod
    def _arguments(cls, mod: Any) -> dict[str, Any]:
        return super()._arguments(mod) | {"output_padding": mod.output_padding}

    def _operator(self, x: Tensor, kernel: Tensor, output_size: list[int] | None = None) -> Tensor:
        axes = len(self.kernel_size)
        padding = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation)
        operator = {1: nn.functional.conv_transpose1d, 2: nn.functional.conv_transpose2d}[axes]
        output: Tensor = operator(x, kernel, self.bias, self.stride, self.padding, padding, self.groups, self.dilation)
        return output

    def _channels_first(self, weight: Tensor) -> Tensor:
        return quantizers.swap_channels(weight, self.groups)

    def _with_scaled_axis_second(self, kernel: Tensor) -> Tensor:
        return self._channels_first(kernel).transpose(0, 1) if self._scaled_across_groups() else kernel

    def _with_axes_back(self, kernel: Tensor) -> Tensor:
        return self._channels_first(kernel.transpose(0, 1)) if self._scaled_across_groups() else kernel

    def _scaled_across_groups(self) -> bool:
        """Whether there are more scales than the weight's second axis has entries: [Cin, Cout/groups, ...]."""
        return self._scaled_by_channel and self.groups > 1


class Conv1dQAT(_ConvQAT, nn.Conv1d):
    """torch.nn.Conv1d for quantization-aware training."""

    _float_class = nn.Conv1d


class Conv2dQAT(_ConvQAT, nn.Conv2d):
    """torch.nn.Conv2d for quantization-aware training."""

    _float_class = nn.Conv2d


class Conv3dQAT(_ConvQAT, nn.Conv3d):
    """torch.nn.Conv3d for quantization-aware training."""

    _float_class = nn.Conv3d
    _from_float_error = RuntimeError


class ConvTranspose1dQAT(_ConvTransposeQAT, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d for quantization-aware training."""

    _float_class = nn.ConvTranspose1d


class ConvTranspose2dQAT(_ConvTransposeQAT, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d for quantization-aware training."""

    _float_class = nn.ConvTranspose2d


class LinearQAT(_OperatorQAT, nn.Linear):
    """torch.nn.Linear for quantization-aware training."""

    _float_class = nn.Linear
    _channel_wise = False
    _from_float_error = RuntimeError

    @classmethod
    def _arguments(cls, mod: Any) -> dict[str, Any]:
        return {"in_features": mod.in_features, "out_features": mod.out_features, "bias": mod.bias is not None}

    def _operator(self, x: Tensor, kernel: Tensor) -> Tensor:
        return nn.functional.linear(x, kernel, self.bias)
