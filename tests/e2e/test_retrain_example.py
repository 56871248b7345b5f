"""The retraining example on the digits, in its short form: every method trains, saves, restores."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.server_process import ServerProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "retrain.py"
CHANNELS_PRUNED = {"prune30": 0.75, "prune50": 0.45, "prune70": 0.3, "prune50+qat8": 0.45}


def rows(table: str) -> dict[str, dict[str, str]]:
    """The lines of the printed table by method."""
    header, _, *lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"
    ]
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def percent(text: str) -> float:
    """A share in percent."""
    return float(text.removesuffix("%"))


def test_every_method_keeps_the_accuracy_of_the_digits(server: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--target", server.target, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(done.stdout)
    full = percent(table["float"]["after"])
    assert full > 95
    for method, row in table.items():
        if method == "float":
            continue
        assert percent(row["after"]) > full - 4, row
        assert percent(row["fake_quant in ONNX Runtime"]) > full - 4, row
        if method != "ptq":
            assert row["restored equal"] == "yes", row
        ratio = int(row["MACs"].replace(",", "")) / int(table["float"]["MACs"].replace(",", ""))
        assert ratio <= CHANNELS_PRUNED.get(method, 1), row
        if "qat8" in method or method == "ptq":
            float_bytes = int(re.sub(r"\D", "", table["float"]["deploy model"]))
            assert int(re.sub(r"\D", "", row["deploy model"])) < 0.5 * float_bytes, row
    # What is saved as 2:4 sparse has at most two of four weights left.
    assert (tmp_path / "sparse24_record.txt").read_text().count("selective_mask") > 0
    assert json.loads((tmp_path / "qat8.json").read_text())["batch_num"] == 1
