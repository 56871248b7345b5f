"""Trains the demo's network, a small residual one on scikit-learn's digits, and exports it: examples/digits/model.onnx.

Takes some seconds on a CPU, and gives the same network each time.
"""

import argparse
from pathlib import Path

import digits_data
import torch
from modelpress.torch import export
from torch import nn
from torch.nn import functional

EPOCHS = 30
BATCH = 64
MIN_ACCURACY = 0.97


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c, h, w] to [n, c, h, w]."""
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class DigitNet(nn.Module):
    """Images [n, 1, 8, 8] to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.block1 = Residual(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.down_bn = nn.BatchNorm2d(32)
        self.block2 = Residual(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.block1(functional.relu(self.stem_bn(self.stem(x))))
        x = self.block2(functional.relu(self.down_bn(self.down(x))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def train(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Trains from a fixed seed on one thread, so that every run gives the same network."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = DigitNet()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for step in range(len(images) // BATCH):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Trains, tests, exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    data = digits_data.load()
    model = train(torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels))
    with torch.no_grad():
        predicted = model(torch.from_numpy(data.test_images)).argmax(1).numpy()
    accuracy = float((predicted == data.test_labels).mean())
    print(f"top-1 on {len(predicted)} test images: {accuracy:.1%}")
    if accuracy < MIN_ACCURACY:
        raise SystemExit(f"below {MIN_ACCURACY:.0%}: nothing written")

    sample = torch.from_numpy(data.test_images[:1])
    path = out / "model.onnx"
    export(model, path, sample, ["images"], ["logits"], {"images": {0: "n"}, "logits": {0: "n"}})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
