"""A full disk: clear errors, nothing lost, and everything goes on when there is room again."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import modelpress
import pytest

from tests.e2e.server_process import GOLDEN_SAVE, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a tmpfs of 24 MB; needs CAP_SYS_ADMIN, which ./dev gives."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    case = GOLDEN_SAVE / "conv2d_bn_relu_linear"
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (128 << 10))  # 32 MB
    filler = small_disk / "filler"
    # Otherwise it would keep operations waiting until there is some room.
    flags = ["--admission=false", "--min_free_disk_mb=0"]
    with ServerProcess(small_disk, *flags) as server, modelpress.Client(server.target) as client:
        workspace = client.create_workspace("small").name
        client.upload_file(workspace, "m.onnx", case / "modified.onnx")
        client.upload_file(workspace, "r.txt", case / "record.txt")
        with pytest.raises(modelpress.ResourceExhausted) as caught:
            client.upload_file(workspace, "big", big)
        assert caught.value.reason == "STORAGE_FULL"

        # With the disk full to the last block, what was there before can still be read.
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(24 << 20))
        client.download_file(f"{workspace}/files/m.onnx", tmp_path / "back.onnx")
        assert (tmp_path / "back.onnx").read_bytes() == (case / "modified.onnx").read_bytes()
        with pytest.raises((modelpress.ResourceExhausted, modelpress.Internal)):
            client.save_model(workspace, "m.onnx", "r.txt", "out/m").result(timeout=120)  # it is tried again for 40 s

        # With room again the same server does the work.
        filler.unlink()
        response = client.save_model(workspace, "m.onnx", "r.txt", "out/m", reference_defects=True).result(timeout=60)
        client.download_file(response.deploy_model.name, tmp_path / "deploy.onnx")
        assert (tmp_path / "deploy.onnx").read_bytes() == (case / "deploy.onnx").read_bytes()
        client.delete_workspace(workspace)
