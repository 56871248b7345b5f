"""onnx and onnxruntime in one process.

Some distributions build both on one shared library of operator schemas. Then the first session registers every schema
a second time and the library prints some 1,100 lines of complaints. Importing this module gets that over with in
silence.
"""

import os

import onnx
import onnxruntime
from onnx import TensorProto, helper


def _first_session() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "first", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    kept = os.dup(2)  # the complaints come from C++, so sys.stderr cannot hold them back
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    finally:
        os.dup2(kept, 2)
        os.close(kept)


_first_session()

__all__ = ["onnx", "onnxruntime"]
