"""The labelled networks of the accuracy benchmark: what they are calibrated on and how a quantized one is judged.

The folder that --data names has models/*.onnx and the data sets that examples/folder_data.py reads.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import folder_data
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]

BATCH = 50
# A forward pass takes about a second and an intermediate tensor 66 MB.
CANDY_CALIBRATION = 10
CANDY_TEST = 10

SCORE_THRESHOLD = 0.5
SUPPRESSION_IOU = 0.45
MATCHING_IOU = 0.5


@dataclass(frozen=True)
class Judgement:
    """How good the outputs of a network are; shares are in 0..1."""

    value: float  # in the network's own measure
    agreement: float | None  # with the float network: share of equal decisions, or F1 of the detections

    def text(self, measure: str) -> tuple[str, str]:
        """Both for a table."""
        value = f"{self.value:.1f} dB" if measure == "PSNR" else f"{100 * self.value:.2f}"
        return value, "" if self.agreement is None else f"{100 * self.agreement:.1f}"


@dataclass(frozen=True)
class Network:
    """A network and everything that is special about it."""

    measure: str  # name of Judgement.value
    calibration: Callable[[Path, Any], Arrays]  # (data folder, a session of the float network); first axis: samples
    outputs: Callable[[Path, Any, int | None], Floats]  # (data folder, session, at most that many samples)
    judge: Callable[[Path, Floats, Floats], Judgement]  # (data folder, float network's outputs, outputs to be judged)
    samples_are_batches: bool = False  # a sample is all that the network takes at once, not a row of it


def feeds(arrays: Arrays, batch: int) -> Iterator[Arrays]:
    """Cuts [samples, ...] arrays into batches."""
    count = len(next(iter(arrays.values())))
    for begin in range(0, count, batch):
        yield {name: array[begin : begin + batch] for name, array in arrays.items()}


def _run(session: Any, arrays: Arrays, batch: int) -> Floats:
    return np.concatenate([session.run(None, feed)[0] for feed in feeds(arrays, batch)])


# ---- classifiers -----------------------------------------------------------------------------------------------------


def _classifier(name: str) -> Network:
    def task(data: Path) -> folder_data.Task:
        return folder_data.load(data, data / "models" / f"{name}.onnx")

    def calibration(data: Path, _: Any) -> Arrays:
        inputs = task(data).calibration.inputs
        return {key: array[: folder_data.CALIBRATION_SAMPLES] for key, array in inputs.items()}

    def outputs(data: Path, session: Any, limit: int | None) -> Floats:
        return _run(session, {key: array[:limit] for key, array in task(data).test.inputs.items()}, BATCH)

    def judge(data: Path, expected: Floats, actual: Floats) -> Judgement:
        labels = task(data).test.labels
        assert labels is not None
        chosen = actual.argmax(1)
        right = float((chosen == labels[: len(chosen)]).mean())
        return Judgement(right, float((chosen == expected.argmax(1)).mean()))

    return Network("top-1", calibration, outputs, judge)


# ---- object detection ------------------------------------------------------------------------------------------------


def _coco_classes(data: Path) -> dict[str, int]:
    with (data / "imagenet" / "imagenet_to_coco.csv").open(newline="", encoding="utf-8") as file:
        return {row["class_index"]: int(row["coco_index"]) for row in csv.DictReader(file)}


def _coco_photos(data: Path) -> list[dict[str, str]]:
    """The eval photos whose class COCO has too."""
    classes = _coco_classes(data)
    return [row for row in folder_data.photo_list(data, "eval") if row["class_index"] in classes]


def _fastestdet_calibration(data: Path, _: Any) -> Arrays:
    rows = folder_data.photo_list(data, "calib")[: folder_data.CALIBRATION_SAMPLES]
    return {"input.1": folder_data.photos(data, "calib", rows, folder_data.resized_352)}


def _fastestdet_outputs(data: Path, session: Any, limit: int | None) -> Floats:
    rows = _coco_photos(data)[:limit]
    return _run(session, {"input.1": folder_data.photos(data, "eval", rows, folder_data.resized_352)}, 1)


def _scores(cells: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Score and class of every cell; cells: [85, rows, columns]."""
    best = cells[5:].max(0)
    return np.maximum(cells[0], 0) ** 0.6 * np.maximum(best, 0) ** 0.4, cells[5:].argmax(0)


def _overlap(box: Floats, others: Floats) -> Floats:
    """Intersection over union of [4] with [n, 4]; boxes are (left, top, right, bottom)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    result: Floats = shared / np.maximum((box[2:] - box[:2]).prod() + areas - shared, 1e-12)
    return result


def detections(cells: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Boxes [n, 4] and classes [n], the best first, of one image's output [85, rows, columns]."""
    scores, classes = _scores(cells)
    y, x = np.nonzero(scores > SCORE_THRESHOLD)
    height, width = scores.shape
    centre = np.stack([(x + np.tanh(cells[1, y, x])) / width, (y + np.tanh(cells[2, y, x])) / height], 1)
    size = 1 / (1 + np.exp(-np.stack([cells[3, y, x], cells[4, y, x]], 1)))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    order = [int(i) for i in np.argsort(-scores[y, x], kind="stable")]
    kept: list[int] = []
    while order:
        best = order.pop(0)
        kept.append(best)
        order = [other for other in order if _overlap(boxes[best], boxes[[other]])[0] <= SUPPRESSION_IOU]
    return boxes[kept], classes[y, x][kept]


def _matches(expected: Floats, actual: Floats) -> tuple[int, int, int]:
    """Detections of one image: matched one to one (same class, boxes overlap), expected, and found."""
    boxes, classes = detections(expected)
    free = set(range(len(boxes)))
    found_boxes, found_classes = detections(actual)
    matched = 0
    for found, kind in enumerate(found_classes):
        candidates = [i for i in sorted(free) if classes[i] == kind]
        if candidates:
            overlaps = _overlap(found_boxes[found], boxes[candidates])
            if overlaps.max() >= MATCHING_IOU:
                free.remove(candidates[int(overlaps.argmax())])
                matched += 1
    return matched, len(boxes), len(found_boxes)


def _fastestdet_judge(data: Path, expected: Floats, actual: Floats) -> Judgement:
    classes = _coco_classes(data)
    rows = _coco_photos(data)[: len(actual)]
    right = 0
    for i, row in enumerate(rows):
        _, found = detections(actual[i])
        right += int(len(found) > 0 and found[0] == classes[row["class_index"]])
    counts = np.array([_matches(expected[i], actual[i]) for i in range(len(rows))]).sum(0)
    return Judgement(right / len(rows), 2 * counts[0] / max(1, counts[1] + counts[2]))


# ---- speech ----------------------------------------------------------------------------------------------------------


def _silero_run(data: Path, session: Any, limit: int | None) -> tuple[Arrays, Floats]:
    """Runs chunk after chunk with the network's own state; the inputs that it saw, and the probabilities."""
    state = np.zeros((2, 1, 128), np.float32)
    chunks = folder_data.speech_chunks(data)[:limit]
    states, probabilities = [], []
    for chunk in chunks:
        states.append(state)
        output, state = session.run(["output", "stateN"], {"input": chunk[None], "state": state})
        probabilities.append(output)
    return {"input": chunks, "state": np.stack(states)}, np.concatenate(probabilities)


def _silero_calibration(data: Path, session: Any) -> Arrays:
    """Chunks spread evenly over the speech, with the states that the float network has there."""
    inputs, _ = _silero_run(data, session, None)
    count = len(inputs["input"])
    chosen = np.linspace(0, count - 1, folder_data.CALIBRATION_SAMPLES).astype(int)
    return {"input": inputs["input"][chosen, None], "state": inputs["state"][chosen]}


def _silero_judge(_: Path, expected: Floats, actual: Floats) -> Judgement:
    return Judgement(float((actual > 0.5).mean()), float(((actual > 0.5) == (expected > 0.5)).mean()))


# ---- style transfer --------------------------------------------------------------------------------------------------


def _resized_720(image: Image.Image) -> Floats:
    pixels = np.asarray(image.resize((720, 720), Image.Resampling.BILINEAR), dtype=np.float32)
    return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))


def _candy_calibration(data: Path, _: Any) -> Arrays:
    rows = folder_data.photo_list(data, "calib")[:CANDY_CALIBRATION]
    return {"inputImage": folder_data.photos(data, "calib", rows, _resized_720)}


def _candy_outputs(data: Path, session: Any, limit: int | None) -> Floats:
    rows = folder_data.photo_list(data, "eval")[: min(CANDY_TEST, limit or CANDY_TEST)]
    return _run(session, {"inputImage": folder_data.photos(data, "eval", rows, _resized_720)}, 1)


def _candy_judge(_: Path, expected: Floats, actual: Floats) -> Judgement:
    error = float(np.square(np.clip(expected, 0, 255) - np.clip(actual, 0, 255), dtype=np.float64).mean())
    return Judgement(10 * float(np.log10(255**2 / error)) if error else float("inf"), None)


NETWORKS: dict[str, Network] = {
    "squeezenet1.1_224": _classifier("squeezenet1.1_224"),
    "mobilenet_v1_0.25_224": _classifier("mobilenet_v1_0.25_224"),
    "cifar10_resnet20": _classifier("cifar10_resnet20"),
    "cifar10_vit": _classifier("cifar10_vit"),
    "fastestdet_352": Network("top detection", _fastestdet_calibration, _fastestdet_outputs, _fastestdet_judge),
    "magika_v3_3": _classifier("magika_v3_3"),
    "silero_vad_16k": Network(
        "speech share", _silero_calibration, lambda *a: _silero_run(*a)[1], _silero_judge, samples_are_batches=True
    ),
    "candy_720": Network("PSNR", _candy_calibration, _candy_outputs, _candy_judge),
}
