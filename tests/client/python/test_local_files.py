import os
import stat
from pathlib import Path

import pytest
from modelpress.local_files import Outputs, SavePath, chunks, make_folder


@pytest.mark.parametrize(
    ("save_path", "folder", "prefix"),
    [
        ("", ".", ""),
        ("res/", "res", ""),
        ("res/x", "res", "x"),
        ("res/x.onnx", "res", "x.onnx"),
        (".", "..", "d"),
        ("lnk", "real", "target"),
    ],
)
def test_save_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_path: str, folder: str, prefix: str) -> None:
    """The table of docs/spec/save.md section 1.1."""
    cwd = tmp_path / "d"
    cwd.mkdir()
    (cwd / "lnk").symlink_to("real/target")
    monkeypatch.chdir(cwd)
    assert SavePath.parse(save_path) == SavePath(Path(os.path.realpath(cwd / folder)), prefix)


def test_longest_prefix(tmp_path: Path) -> None:
    assert SavePath.parse(f"{tmp_path}/{'x' * 233}").prefix == "x" * 233
    for name in ("x" * 234, "ä" * 117):
        with pytest.raises(ValueError, match="234 bytes"):
            SavePath.parse(f"{tmp_path}/{name}")


def test_folder_modes(tmp_path: Path) -> None:
    old = os.umask(0o002)
    try:
        make_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")]
    assert modes == [0o775, 0o775, 0o750]


def test_outputs_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    with Outputs() as outputs:
        outputs.open(tmp_path / "one").write(b"new")
        outputs.open(tmp_path / "two").write(b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "old"}
    with Outputs() as outputs:
        outputs.open(tmp_path / "one").write(b"new")
        outputs.open(tmp_path / "two").write(b"new")
        outputs.commit()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "new", "two": "new"}
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o640


def test_chunks_from_any_offset(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 10_000)
    for start in (0, 1, 1 << 20, 2_560_000):
        pieces = list(chunks(path, start))
        assert b"".join(data for _, data in pieces) == path.read_bytes()[start:]
        assert [offset for offset, _ in pieces] == [start + (i << 20) for i in range(len(pieces))]
