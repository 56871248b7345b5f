"""Hostile names in requests: each is refused before anything is done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modelpress
import pytest

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAMES = {
    "empty": "",
    "dot": ".",
    "parent": "..",
    "climbs": "../x",
    "climbs_far": "../" * 40 + "etc/passwd",
    "climbs_inside": "a/../../b",
    "absolute": "/etc/passwd",
    "double_slash": "a//b",
    "trailing_slash": "a/",
    "backslash": "..\\x",
    "null": "a\0b",
    "newline": "a\nb",
    "escape": "\x1b[2J",
    "delete": "\x7f",
    "c1_control": "a\x85b",
    "long": "n" * 300,
    "long_path": "n/" * 1000 + "n",
    "megabyte": "n" * (1 << 20),
    "dot_inside": "a/./b",
}
REFUSED = {"NAME_INVALID", "REQUEST_INVALID"}
# Prefixes that get an ending, or name a folder: the files' names are legal then. The operation refuses "." and "..".
PREFIXES = {"trailing_slash", "empty", "dot", "parent"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[modelpress.Client]:
    """A client of a server with a workspace `w`."""
    with ServerProcess(tmp_path_factory.mktemp("names")) as server, modelpress.Client(server.target) as connected:
        connected.create_workspace("w")
        yield connected


def calls(client: modelpress.Client, name: str, source: Path) -> dict[str, Callable[[], Any]]:
    """Every place where a caller gives a name."""
    return {
        "workspace_id": lambda: client.create_workspace(name or "-"),
        "get_workspace": lambda: client.get_workspace(f"workspaces/{name}"),
        "delete_workspace": lambda: client.delete_workspace(f"workspaces/{name}"),
        "upload": lambda: client.upload_file("workspaces/w", name, source),
        "get_file": lambda: client.get_file(f"workspaces/w/files/{name}"),
        "delete_file": lambda: client.delete_file(f"workspaces/w/files/{name}"),
        "download": lambda: client.download_file(f"workspaces/w/files/{name}", source.parent / "out"),
        "operation": lambda: client.get_operation(f"operations/{name}"),
        "model": lambda: client.save_model("workspaces/w", name, "r.txt", "out/m"),
        "record": lambda: client.save_model("workspaces/w", "m.onnx", name, "out/m"),
        "save_path": lambda: client.save_model("workspaces/w", "m.onnx", "r.txt", name),
        "config_file": lambda: client.create_quant_config("workspaces/w", name, "m.onnx"),
        "data": lambda: client.quantize_model(
            "workspaces/w", "m.onnx", calibration_data=name or "/", save_path="out/m"
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_names(client: modelpress.Client, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    for place, call in calls(client, NAMES[name], source).items():
        if (place == "save_path" and name in PREFIXES) or (place == "data" and name == "trailing_slash"):
            continue
        with pytest.raises(modelpress.Error) as caught:
            call()
        assert caught.value.reason in REFUSED, f"{place}: {caught.value!r}"
        assert len(caught.value.message) < 2000
    assert [workspace.name for workspace in client.list_workspaces()] == ["workspaces/w"]
    assert client.list_files("workspaces/w") == []


def test_request_that_is_too_long(client: modelpress.Client) -> None:
    with pytest.raises(modelpress.ResourceExhausted):
        client.create_workspace("w" * (5 << 20))
