"""Calibration and test inputs for the networks of a data folder: DATA/models/*.onnx with imagenet/, cifar10/ and so on.

Each network's preprocessing is the one it was trained with. Networks without labelled data have `labels` None.
"""

import csv
import wave
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CALIBRATION_SAMPLES = 100


class Samples(NamedTuple):
    """Model inputs by name, first axis = samples, and the class of each sample where there is one."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None


class Task(NamedTuple):
    """What a network is calibrated and tested on."""

    calibration: Samples
    test: Samples


Preprocess = Callable[[Image.Image], NDArray[np.float32]]


def _planes(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)


def _crop_224(image: Image.Image) -> NDArray[np.float32]:
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)


def _squeezenet(image: Image.Image) -> NDArray[np.float32]:
    return _planes(_crop_224(image)[:, :, ::-1] - np.array([104, 117, 123], dtype=np.float32))


def _mobilenet(image: Image.Image) -> NDArray[np.float32]:
    return _planes(_crop_224(image) / np.float32(127.5) - 1)


def resized_352(image: Image.Image) -> NDArray[np.float32]:
    """For fastestdet: the whole image at 352x352, blue first, 0..1."""
    pixels = np.asarray(image.resize((352, 352), Image.Resampling.BILINEAR), dtype=np.float32)
    return _planes(pixels[:, :, ::-1] / 255)


def photo_list(data: Path, part: str) -> list[dict[str, str]]:
    """Rows of imagenet/PART.csv; part is "calib" or "eval"."""
    with (data / "imagenet" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def photos(data: Path, part: str, rows: Iterable[dict[str, str]], preprocess: Preprocess) -> NDArray[np.float32]:
    """The photos of some rows of photo_list as a network takes them, [photos, 3, height, width]."""
    images = []
    for row in rows:
        with Image.open(data / "imagenet" / part / row["file"]) as image:
            images.append(preprocess(image.convert("RGB")))
    return np.stack(images)


def _photos(data: Path, input_name: str, preprocess: Preprocess, *, labelled: bool, limit: int | None = None) -> Task:
    def samples(part: str) -> Samples:
        rows = photo_list(data, part)[:limit]
        labels = np.array([int(row["class_index"]) for row in rows]) if labelled else None
        return Samples({input_name: photos(data, part, rows, preprocess)}, labels)

    return Task(samples("calib"), samples("eval"))


def _cifar10(data: Path) -> Task:
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
    deviation = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]

    def samples(file: str, count: int | None) -> Samples:
        rows = np.fromfile(data / "cifar10" / file, dtype=np.uint8).reshape(-1, 3073)[:count]
        images = rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
        return Samples({"input": (images - mean) / deviation}, rows[:, 0].astype(np.int64))

    return Task(samples("train_8000.bin", CALIBRATION_SAMPLES), samples("test_4000.bin", None))


def _magika(data: Path) -> Task:
    def samples(part: str) -> Samples:
        with np.load(data / "filetype" / f"{part}.npz") as arrays:
            return Samples({"bytes": arrays["bytes"].astype(np.int32)}, arrays["label"].astype(np.int64))

    return Task(samples("calib"), samples("eval"))


def speech_chunks(data: Path) -> NDArray[np.float32]:
    """The speech as silero_vad takes it, [chunks, 576]: 64 samples of the chunk before, 512 new ones."""
    with wave.open(str(data / "speech" / "vad_30s_16k.wav")) as file:
        audio = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
    audio = np.concatenate([np.zeros(64, np.float32), audio])
    return np.stack([audio[begin : begin + 576] for begin in range(0, len(audio) - 575, 512)])


def _silero(data: Path) -> Task:
    """Every chunk on its own, from a zero state."""
    chunks = speech_chunks(data)

    def samples(part: NDArray[np.float32]) -> Samples:
        return Samples({"input": part, "state": np.zeros((len(part), 2, 1, 128), np.float32)}, None)

    return Task(samples(chunks[:CALIBRATION_SAMPLES]), samples(chunks[CALIBRATION_SAMPLES:]))


_TASKS: dict[str, Callable[[Path], Task]] = {
    "squeezenet1.1_224": lambda data: _photos(data, "input", _squeezenet, labelled=True),
    "mobilenet_v1_0.25_224": lambda data: _photos(data, "input", _mobilenet, labelled=True),
    "cifar10_resnet20": _cifar10,
    "cifar10_vit": _cifar10,
    "fastestdet_352": lambda data: _photos(data, "input.1", resized_352, labelled=False, limit=100),
    "magika_v3_3": _magika,
    "silero_vad_16k": _silero,
}


def find_model(data: Path, model: str) -> Path:
    """The model's file: a path, or a name in DATA/models with or without .onnx."""
    for candidate in (Path(model), data / model, data / "models" / model, data / "models" / f"{model}.onnx"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in (data / "models").glob("*.onnx")))
    raise SystemExit(f"no model {model!r} in {data / 'models'}; there: {known or 'none'}")


def load(data: Path, model: Path) -> Task:
    """Inputs of the model."""
    if model.stem not in _TASKS:
        raise SystemExit(f"no preprocessing is known for {model.stem}; known: {', '.join(_TASKS)}")
    return _TASKS[model.stem](data)
