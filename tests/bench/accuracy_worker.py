"""One step of the accuracy benchmark in a process of its own, so that its time and peak memory are its own.

Prints one JSON object. Runs with any Python that has numpy, Pillow and onnxruntime (`peer` and `lift`: onnx as well).
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.bench.networks import NETWORKS, Arrays, feeds

WEIGHTED = ["Conv", "MatMul", "Gemm"]
PER_CHANNEL_OPSET = 13  # DequantizeLinear has no axis before


def open_session(model: Path) -> Any:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the calibration samples (docs/calibration_data.md), as batches where a sample is one."""
    network = NETWORKS[arguments.network]
    arrays = network.calibration(arguments.data, open_session(arguments.model))
    count = len(next(iter(arrays.values())))
    if network.samples_are_batches:
        arrays = {f"{name}__{i}": array[i] for name, array in arrays.items() for i in range(count)}
    np.savez(arguments.out, allow_pickle=False, **arrays)
    return {"samples": count}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a model on the test samples and judges it by the float model's outputs, which it keeps the first time."""
    network = NETWORKS[arguments.network]
    begin = time.monotonic()
    outputs = network.outputs(arguments.data, open_session(arguments.model), arguments.limit)
    if not arguments.reference.exists():
        np.save(arguments.reference, outputs)
    judgement = network.judge(arguments.data, np.load(arguments.reference), outputs)
    return {
        "measure": network.measure,
        "value": judgement.value if np.isfinite(judgement.value) else None,
        "agreement": judgement.agreement,
        "texts": judgement.text(network.measure),
        "samples": len(outputs),
        "seconds": time.monotonic() - begin,
        "onnxruntime": onnxruntime.__version__,
    }


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times a model on all samples of a file, `limit` a batch; the first batch is run before, unmeasured."""
    session = open_session(arguments.model)
    with np.load(arguments.calibration) as archive:
        batches = list(feeds(dict(archive), arguments.limit))
    session.run(None, batches[0])
    begin = time.monotonic()
    for batch in batches:
        session.run(None, batch)
    return {"seconds": time.monotonic() - begin, "onnxruntime": onnxruntime.__version__}


# ---- the peer --------------------------------------------------------------------------------------------------------


def _replace_withdrawn(model: Any) -> None:
    """Puts operators that ONNX still has in the place of Crop, ImageScaler and Affine, by their old definitions."""
    from onnx import helper, numpy_helper

    nodes = []
    for node in model.graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

        def constant(suffix: str, values: Any, like: Any = node) -> str:
            name = f"{like.output[0]}_constant_{suffix}"
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
            return name

        if node.op_type == "Crop" and "scale" not in attributes:
            left, top, right, bottom = attributes["border"]
            far = np.iinfo(np.int32).max
            ends = [-bottom or far, -right or far]
            nodes.append(helper.make_node("Slice", node.input, node.output, axes=[2, 3], starts=[top, left], ends=ends))
        elif node.op_type in {"ImageScaler", "Affine"}:
            if node.op_type == "ImageScaler":
                scale, offset = attributes.get("scale", 1.0), np.reshape(attributes["bias"], [1, -1, 1, 1])
            else:
                scale, offset = attributes.get("alpha", 1.0), np.array(attributes.get("beta", 0.0))
            scaled = f"{node.output[0]}_times_scale"
            nodes.append(helper.make_node("Mul", [node.input[0], constant("scale", scale)], [scaled]))
            nodes.append(helper.make_node("Add", [scaled, constant("offset", offset)], node.output))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def lift(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a model of an older opset as one of PER_CHANNEL_OPSET, with operators that this one has."""
    import onnx
    from onnx import version_converter

    model = onnx.load(arguments.model)
    opset = max(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if opset >= PER_CHANNEL_OPSET:
        return {"opset": opset, "lifted": False}
    # Weights that old files list as inputs too would be taken for inputs.
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 7)
    _replace_withdrawn(model)
    onnx.save(version_converter.convert_version(model, PER_CHANNEL_OPSET), arguments.out)
    return {"opset": opset, "lifted": True}


class _Reader:
    """The samples of a file that `calibrate` wrote one by one, as CalibrationDataReader asks for them."""

    def __init__(self, calibration: Path) -> None:
        self._batches: dict[str, Arrays] = {}
        with np.load(calibration) as archive:
            for member, array in archive.items():
                name, _, number = member.partition("__")
                for i, batch in [(number, array)] if number else enumerate(array[:, None]):
                    self._batches.setdefault(str(i), {})[name] = batch
        self._left = iter(self._batches.values())

    def get_next(self) -> Arrays | None:
        """The next sample, None after the last."""
        return next(self._left, None)

    __next__ = get_next

    def __iter__(self) -> _Reader:
        return self


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    """onnxruntime.quantization.quantize_static: QDQ, weights int8 symmetric, activations int8 asymmetric."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    limit = arguments.memory_limit << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    CalibrationDataReader.register(_Reader)
    reader = _Reader(arguments.calibration)
    before = _peak_bytes()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(arguments.model, prepared, skip_symbolic_shape=arguments.skip_symbolic_shape)
        quantize_static(
            prepared,
            arguments.out,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=WEIGHTED if arguments.operators == "weighted" else None,
            per_channel=not arguments.per_tensor,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[arguments.method],
            extra_options={"CalibPercentile": 99.999} if arguments.method == "Percentile" else {},
        )
    seconds = time.monotonic() - begin
    open_session(arguments.out)
    return {
        "seconds": seconds,
        "peak_bytes": _peak_bytes(),
        "peak_bytes_before": before,
        "onnxruntime": onnxruntime.__version__,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Runs the step; what fails is {"error": text}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["calibrate", "evaluate", "lift", "peer", "plain"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--network")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--method", choices=["MinMax", "Percentile"])
    parser.add_argument("--operators", choices=["all", "weighted"], default="all")
    parser.add_argument("--per_tensor", action="store_true")
    parser.add_argument("--skip_symbolic_shape", action="store_true")
    parser.add_argument("--memory_limit", type=int, default=8192, help="MiB")
    arguments = parser.parse_args()
    try:
        result = globals()[arguments.step](arguments)
    except Exception as error:  # what the peer raises is a result of this benchmark
        text = f"{type(error).__name__}: {error}"[:1000]
        out_of_memory = isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text
        if out_of_memory:
            text = f"needs more than {arguments.memory_limit} MiB: {text}"
        result = {"error": text, "out_of_memory": out_of_memory}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
