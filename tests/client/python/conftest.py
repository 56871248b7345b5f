from collections.abc import Iterator

import pytest
from modelpress import RetryPolicy
from protocol_server import ProtocolServer


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    server = ProtocolServer()
    yield server
    server.stop()


@pytest.fixture
def retry() -> RetryPolicy:
    return RetryPolicy(attempts=3, initial_s=0.01, maximum_s=0.02)
