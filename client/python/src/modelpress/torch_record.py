"""Record file of quantization-aware training (docs/spec/qat.md section 9) and 2:4 sparsity (prune.md section 11)."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format

from modelpress.amct import attr_pb2, record_pb2
from modelpress.local_files import Outputs, make_folder


class RecordFile:
    """A record (amct/record.proto) and the file that it is written to.

    Wrapped layers put their factors and masks into it; the file is written when all layers have done so. All state is
    in this object: a model has one, and a copy of the model gets a copy of it, which writes to the same path.

    Attributes:
        path: the file.
        record: what `write` writes.
    """

    def __init__(self, path: Path, record: record_pb2.ScaleOffsetRecord | None = None) -> None:
        """`record` is one to go on with, such as one with prune records; None: an empty one.

        Nothing is written yet.
        """
        self.path = path
        self.record = record_pb2.ScaleOffsetRecord()
        if record is not None:
            self.record.CopyFrom(record)
        self._quantized: frozenset[str] = frozenset()
        self._masked: frozenset[str] = frozenset()
        self._factors: dict[str, record_pb2.SingleLayerRecord] = {}  # in the order of the layers' execution
        self._refreshed: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Pickles look for messages under the names of the .proto files' packages.
        factors = [(layer, value.SerializeToString()) for layer, value in self._factors.items()]
        return self.__dict__ | {"record": self.record.SerializeToString(), "_factors": factors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.record = record_pb2.ScaleOffsetRecord.FromString(state["record"])
        self._factors = {layer: record_pb2.SingleLayerRecord.FromString(value) for layer, value in state["_factors"]}

    def expect(self, quantized: Collection[str], masked: Collection[str]) -> None:
        """Names the layers that will put factors, and those that will put masks."""
        self._quantized = frozenset(quantized)
        self._masked = frozenset(masked)
        self.forget_factors()
        self._refreshed.clear()

    @property
    def has_factors(self) -> bool:
        """Whether any layer has put factors, in this inference or an earlier one."""
        return bool(self._factors) or len(self.record.record) > 0

    def put_factors(self, layer: str, factors: record_pb2.SingleLayerRecord) -> None:
        """Takes the factors of a layer; those of all layers replace what the record has, and are written.

        The file is left alone where nothing has changed.

        Raises:
            OSError: see `write`.
        """
        self._factors.pop(layer, None)
        self._factors[layer] = factors
        if self._factors.keys() != self._quantized:
            return
        record = record_pb2.ScaleOffsetRecord()
        for key, value in self._factors.items():
            record.record.add(key=key).value.CopyFrom(value)
        self.forget_factors()
        record.prune_record.extend(self.record.prune_record)
        if record != self.record or not self.path.exists():
            self.record = record
            self.write()

    def forget_factors(self) -> None:
        """Drops the factors of an inference that is not complete: training goes on, and they will be others."""
        self._factors.clear()

    def put_mask(self, layer: str, shape: Sequence[int], packed: Sequence[int]) -> None:
        """Takes a 2:4 mask of a layer; the record is written once all masked layers have put theirs.

        Args:
            layer: full name.
            shape: of the weight.
            packed: see `pack_mask`.

        Raises:
            OSError: see `write`.
        """
        node = next(
            (entry.selective_prune for entry in self.record.prune_record if entry.selective_prune.name == layer), None
        )
        if node is None:
            node = self.record.prune_record.add().selective_prune
            node.name = layer
        del node.attr[:]
        for name, values in (("mask_shape", shape), ("selective_mask", packed)):
            node.attr.add(name=name, type=attr_pb2.AttrProto.INTS, ints=values)
        self._refreshed.add(layer)
        if self._refreshed >= self._masked:
            self._refreshed.clear()
            self.write()

    def write(self) -> None:
        """Writes the record as text, atomically, with mode 0640; missing folders are made. Only rank 0 of a group does.

        Raises:
            OSError: the file cannot be written; a file that was there is as it was.
        """
        if (
            torch.distributed.is_available()
            and torch.distributed.is_initialized()
            and torch.distributed.get_rank() != 0
        ):
            return
        text = text_format.MessageToString(self.record)
        make_folder(self.path.parent)
        with Outputs() as outputs:
            outputs.open(self.path).write(text.encode())
            outputs.commit()
