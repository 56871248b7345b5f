"""Finds the external data files of an ONNX model by walking its wire format.

The model's tensors are skipped over in a memory map, so a model of any size costs little time and no memory. Neither
the package onnx nor a full parse is needed.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Message -> {field number: message of the field}; only the fields on the way to a TensorProto (onnx.proto).
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_EXTERNAL = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    number: int
    value: int  # of a varint
    begin: int  # of a length-delimited field's content
    end: int


class MalformedError(ValueError):
    """The bytes are not a protobuf message."""


def external_files(model: Path) -> list[str]:
    """The distinct `location`s of the model's external tensors, in the order they come up.

    Raises:
        ValueError: a location is absolute or leaves the model's folder. A file that is no protobuf message gives what
            was found up to there: the service is the one to say what is wrong with it.
    """
    if model.stat().st_size == 0:
        return []
    found: dict[str, None] = {}
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for location in _locations(data):
                found.setdefault(location)
        except MalformedError:
            pass
    for location in found:
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts or "\\" in location:
            raise ValueError(f"{model}: external data location {location!r} does not stay in the model's folder")
    return list(found)


def _locations(data: mmap.mmap) -> Iterator[str]:
    pending = [("Model", 0, len(data))]
    while pending:
        message, begin, end = pending.pop()
        if message == "Tensor":
            location = _location_of_tensor(data, begin, end)
            if location is not None:
                yield location
            continue
        children = _FIELDS[message]
        nested = [
            (children[field.number], field.begin, field.end)
            for field in _fields(data, begin, end)
            if field.number in children and field.begin >= 0
        ]
        pending.extend(reversed(nested))


def _location_of_tensor(data: mmap.mmap, begin: int, end: int) -> str | None:
    external = False
    location = ""
    for field in _fields(data, begin, end):
        if field.number == _TENSOR_DATA_LOCATION:
            external = field.value == _EXTERNAL
        elif field.number == _TENSOR_EXTERNAL_DATA and field.begin >= 0:
            entry = {part.number: data[part.begin : part.end] for part in _fields(data, field.begin, field.end)}
            if entry.get(1) == b"location":
                location = entry.get(2, b"").decode("utf-8", "surrogateescape")
    return location if external else None


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        key, position = _varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        value, begin, stop = 0, -1, -1
        if wire_type == _VARINT:
            value, position = _varint(data, position, end)
        elif wire_type == _BYTES:
            length, begin = _varint(data, position, end)
            position = stop = begin + length
        elif wire_type in {_FIXED64, _FIXED32}:
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise MalformedError(f"wire type {wire_type}")
        if position > end:
            raise MalformedError("a field runs over the end of its message")
        yield _Field(number, value, begin, stop)


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise MalformedError("truncated number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedError("number of more than ten bytes")
