"""A real server for the end-to-end tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Gives one running server for the whole session; the one of MODELPRESS_TEST_TARGET where that is set."""
    given = os.environ.get("MODELPRESS_TEST_TARGET")
    if given:
        process = ServerProcess(tmp_path_factory.mktemp("server"))
        process.target = given
        yield process
        return
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        yield process
