"""The record file of quantization-aware training and pruning (docs/spec/qat.md section 9, docs/spec/prune.md section 11)."""

from pathlib import Path
from typing import Any


class RecordFile:
    """A record (amct/record.proto) and the file that it is written to.

    Wrapped layers put their factors and masks into it. All state is in this object: a model has one, and a copy of the
    model gets a copy of it, which writes to the same path.
    """

    def __init__(self, path: Path, record: Any = None) -> None:
        """`record` is a ScaleOffsetRecord to go on with, such as one with prune records; None: an empty one.

        Nothing is written yet.
        """
        self.path = path
        self.record = record

    def write(self) -> None:
        """Writes the record as text, atomically, with mode 0640; missing folders are made. Only rank 0 of a group does.

        Raises:
            OSError: the file cannot be written; a file that was there is as it was.
        """
        raise NotImplementedError
