"""Writes opset11.onnx and opset20.onnx beside itself: every activation that AdaRound knows, as torch 2.6 exports it."""

import collections
import pathlib

import torch
from torch import nn


def conv() -> nn.Conv2d:
    layer = nn.Conv2d(2, 2, 1)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)  # all the same: the exporter lets them share one initializer through Identity nodes
    return layer


def main() -> None:
    torch.manual_seed(1)
    activations = {
        "relu": nn.ReLU(),
        "relu6": nn.ReLU6(),
        "sigmoid": nn.Sigmoid(),
        "tanh": nn.Tanh(),
        "leaky": nn.LeakyReLU(0.2),
        "rrelu": nn.RReLU(),
        "prelu": nn.PReLU(),
        "prelus": nn.PReLU(2),
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "none": nn.Softplus(),
    }
    modules = collections.OrderedDict[str, nn.Module]()
    for name, activation in activations.items():
        modules["conv_" + name] = conv()
        modules["act_" + name] = activation
    last = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "prelu": nn.PReLU()}
    for name, activation in last.items():
        modules["linear_" + name] = nn.Linear(2, 2)
        modules["last_" + name] = activation
    model = nn.Sequential(modules).eval()
    folder = pathlib.Path(__file__).parent
    for opset in (11, 20):
        torch.onnx.export(model, (torch.zeros(1, 2, 3, 2),), str(folder / f"opset{opset}.onnx"), opset_version=opset)


if __name__ == "__main__":
    main()
