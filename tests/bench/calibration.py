"""What calibration costs beside plain inference of the same batches, and how its memory grows with the data."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.bench.accuracy import Worker
from tests.bench.service import data_folder, service

if TYPE_CHECKING:
    from collections.abc import Sequence

MB = 1e6
NETWORKS = ["squeezenet1.1_224", "mobilenet_v1_0.25_224", "cifar10_resnet20", "cifar10_vit"]
BATCH = 10
SAMPLES = [100, 1000]
REPEATS = 3


def _markdown(results: dict[str, Any]) -> str:
    lines = [
        f"| network | samples | plain inference, s | engine, s | times plain | peak memory | (batches of {BATCH})",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for row in rows:
            if "error" in row:
                cells = [name, str(row["samples"]), "", "fails", "", "", row["error"]]
            else:
                plain, engine = row["plain_median"], row["engine_median"]
                cells = [name, str(row["samples"]), f"{plain:.2f}", f"{engine:.2f}", f"{engine / plain:.2f}"]
                cells += [f"{row['peak_bytes'] / MB:.0f} MB", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(cache: Path, data: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """Measures the named networks, NETWORKS without names; prints the table."""
    folder = data_folder(data)
    if folder is None:
        return {"skipped": "no data"}
    left_out = set(names) - set(NETWORKS)
    if left_out:
        print(f"\nnot measured: {', '.join(sorted(left_out))} (takes no batches of {BATCH})")
    worker = Worker(folder)
    results: dict[str, Any] = {}
    with service(cache) as ours, tempfile.TemporaryDirectory(dir=cache, prefix="calibration-") as temporary:
        work = Path(temporary)
        for name in [name for name in NETWORKS if not names or name in names]:
            model, some = folder / "models" / f"{name}.onnx", work / "some.npz"
            worker.need("calibrate", f"--network={name}", f"--model={model}", f"--out={some}")
            with np.load(some) as archive:
                arrays = dict(archive)
            results[name] = []
            for samples in SAMPLES:
                many = work / "many.npz"
                np.savez(
                    many,
                    allow_pickle=False,
                    **{key: np.resize(array, (samples, *array.shape[1:])) for key, array in arrays.items()},
                )
                plain, engine, peaks = [], [], []
                row: dict[str, Any] = {"samples": samples}
                for repeat in range(REPEATS):  # by turns, so that both meet the same load
                    step = worker.need("plain", f"--model={model}", f"--calibration={many}", f"--limit={BATCH}")
                    plain.append(step["seconds"])
                    result = ours.quantize(model, many, work / f"out{repeat}", batch_size=BATCH)
                    if "error" in result:
                        row["error"] = result["error"]
                        break
                    engine.append(result["engine_seconds"])
                    peaks.append(result["peak_bytes"])
                else:
                    row |= {"plain_seconds": plain, "engine_seconds": engine, "peak_bytes": max(peaks)}
                    row |= {"plain_median": statistics.median(plain), "engine_median": statistics.median(engine)}
                results[name].append(row)
    print(f"\ncalibration, both models and the report included; medians of {REPEATS}\n")
    print(_markdown(results))
    return results
