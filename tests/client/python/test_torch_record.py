"""The record file on its own; what wrapped layers put into it is in test_torch_wrappers.py."""

import copy
import pickle
from pathlib import Path

import pytest
from google.protobuf import text_format
from modelpress.amct import record_pb2
from modelpress.torch_record import RecordFile

FACTORS = record_pb2.SingleLayerRecord(scale_d=0.1, offset_d=-3, scale_w=[1, 2e-7], act_type="INT8")


def keys(path: Path) -> list[str]:
    return [entry.key for entry in text_format.Parse(path.read_text(), record_pb2.ScaleOffsetRecord()).record]


def test_empty_record(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "record.txt"
    RecordFile(path).write()
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750


def test_record_that_is_given_is_copied(tmp_path: Path) -> None:
    given = record_pb2.ScaleOffsetRecord()
    given.record.add(key="old")
    given.prune_record.add().selective_prune.name = "a"
    file = RecordFile(tmp_path / "r.txt", given)
    file.expect(["a"], [])
    file.put_factors("a", FACTORS)
    assert keys(file.path) == ["a"]
    assert [entry.key for entry in given.record] == ["old"]
    assert file.record.prune_record == given.prune_record


def test_factors_are_written_when_complete_and_in_the_order_of_execution(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "r.txt")
    file.expect(["a", "b"], [])
    file.put_factors("b", FACTORS)
    assert not file.path.exists()
    file.put_factors("a", FACTORS)
    assert keys(file.path) == ["b", "a"]
    assert file.path.read_text().startswith(
        'record {\n  key: "b"\n  value {\n    scale_d: 0.1\n    offset_d: -3\n    scale_w: 1.0\n    scale_w: 2e-07\n'
    )
    assert not list(tmp_path.glob(".modelpress*"))
    file.put_factors("a", FACTORS)
    file.forget_factors()
    file.put_factors("b", FACTORS)
    assert keys(file.path) == ["b", "a"]
    file.put_factors("b", FACTORS)
    file.put_factors("a", FACTORS)
    file.put_factors("a", FACTORS)
    file.put_factors("b", FACTORS)
    assert keys(file.path) == ["a", "b"]


def test_masks_are_written_when_complete(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "r.txt")
    file.expect([], ["a", "b"])
    file.put_mask("a", [2, 4], [7])
    assert not file.path.exists()
    file.put_mask("b", [1], [-1])
    first = file.path.read_text()
    file.put_mask("a", [2, 4], [8])
    assert file.path.read_text() == first
    file.put_mask("b", [1], [-1])
    assert file.path.read_text() == first.replace("ints: 7", "ints: 8")
    assert [entry.selective_prune.name for entry in file.record.prune_record] == ["a", "b"]


def test_failure_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        RecordFile(path).write()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda file: pickle.loads(pickle.dumps(file))])
def test_copies_go_on_by_themselves(again: type, tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "r.txt")
    file.expect(["a", "b"], ["a"])
    file.put_mask("a", [1], [1])
    file.put_factors("a", FACTORS)
    duplicate = again(file)
    file.forget_factors()
    duplicate.put_factors("b", FACTORS)
    assert keys(file.path) == ["a", "b"]
    assert not file.record.record
    assert duplicate.record.prune_record == file.record.prune_record
