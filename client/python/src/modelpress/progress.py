"""Progress of transfers and operations: a callback type and a bar for terminals."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far something is: `done` of `total` (0: not known) in the unit of the stage, bytes for transfers."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@contextlib.contextmanager
def progress_bar(description: str = "", *, enabled: bool | None = None) -> Iterator[ProgressCallback | None]:
    """Gives a callback that draws a tqdm bar on standard error, or None where no bar is to be drawn.

    Args:
        description: text in front of the stage.
        enabled: None draws on a terminal only; without tqdm nothing is drawn.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    bar: Any = None
    stage = ""

    def show(progress: Progress) -> None:
        nonlocal bar, stage
        if bar is None or progress.stage != stage:
            if bar is not None:
                bar.close()
            stage = progress.stage
            unit = "B" if stage in TRANSFER_STAGES else ""
            bar = tqdm(desc=f"{description} {stage}".strip(), unit=unit, unit_scale=bool(unit), leave=False)
        bar.total = progress.total or None
        bar.n = progress.done
        bar.refresh()

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


UPLOAD = "upload"
DOWNLOAD = "download"
TRANSFER_STAGES = frozenset({UPLOAD, DOWNLOAD})
