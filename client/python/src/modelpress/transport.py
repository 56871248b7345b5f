"""Channels, retries, and the two ways to wait: blocking and asyncio.

The client's logic (modelpress.aio) is written once, as coroutines over a `Transport`. `AioTransport` really suspends;
`BlockingTransport` blocks inside its coroutines and never suspends, so that `run_blocking` can run the same logic
without an event loop.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import grpc

from modelpress import errors
from modelpress.connection import Connection

T = TypeVar("T")
MessageT = TypeVar("MessageT")

_UNARY_TIMEOUT_S = 60.0

# Unary calls may be retried by gRPC: they are idempotent (reads, names, request ids). Streams go on at an offset
# instead, which gRPC cannot know.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": "modelpress.v1.Workspaces", "method": "UploadBytes"},
                    {"service": "modelpress.v1.Workspaces", "method": "DownloadFile"},
                ]
            },
            {
                "name": [
                    {"service": "modelpress.v1.Workspaces"},
                    {"service": "modelpress.v1.Compression"},
                    {"service": "google.longrunning.Operations"},
                ],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
        ]
    }
)
_CHANNEL_OPTIONS = [("grpc.service_config", _SERVICE_CONFIG), ("grpc.max_receive_message_length", 16 << 20)]


@dataclass(frozen=True)
class Method(Generic[MessageT]):
    """An RPC: its path and the class of its response."""

    path: str
    response: type[MessageT]


@dataclass(frozen=True)
class RetryPolicy:
    """How often a broken stream or poll is taken up again.

    Attributes:
        attempts: failures in a row, without progress in between, after which the error is raised.
        initial_s: delay after the first failure; it doubles with each further one.
        maximum_s: longest delay.
    """

    attempts: int = 8
    initial_s: float = 0.2
    maximum_s: float = 10.0


@dataclass
class Retries:
    """The count for one transfer or wait."""

    policy: RetryPolicy
    _failures: int = field(default=0, init=False)

    def progressed(self) -> None:
        """Something went well: failures count from 0 again."""
        self._failures = 0

    def delay_after(self, error: errors.Unavailable) -> float:
        """Seconds to wait before the next attempt; raises `error` when there were enough."""
        self._failures += 1
        if self._failures >= self.policy.attempts:
            raise error
        longest = min(self.policy.initial_s * 2.0 ** (self._failures - 1), self.policy.maximum_s)
        return float(longest) * random.uniform(0.5, 1.0)


class Transport(Protocol):
    """What the client's logic needs of the outside. All RPC failures are raised as `modelpress.Error`."""

    async def unary(self, method: Method[MessageT], request: Any, timeout: float = _UNARY_TIMEOUT_S) -> MessageT:
        """One request, one response."""

    async def send(self, method: Method[MessageT], requests: Iterator[Any]) -> MessageT:
        """A stream of requests, made by blocking code; an exception of the iterator is raised here."""

    async def receive(self, method: Method[MessageT], request: Any, sink: Callable[[MessageT], None]) -> None:
        """A stream of responses, each given to blocking code; an exception of the sink is raised here."""

    async def call(self, function: Callable[[], T]) -> T:
        """Runs blocking code."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def close(self) -> None:
        """Closes the channel."""


class BlockingTransport:
    """Transport over grpc's blocking channel."""

    def __init__(self, connection: Connection) -> None:
        self._arguments = connection.call_arguments
        options = [*_CHANNEL_OPTIONS, *connection.channel_options]
        if connection.credentials is None:
            self._channel: Any = grpc.insecure_channel(connection.target, options=options)
        else:
            self._channel = grpc.secure_channel(connection.target, connection.credentials, options=options)

    async def unary(self, method: Method[MessageT], request: Any, timeout: float = _UNARY_TIMEOUT_S) -> MessageT:
        """See Transport."""
        stub = self._channel.unary_unary(method.path, _serialize, _parser(method))
        try:
            response: MessageT = stub(request, timeout=timeout, **self._arguments())
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error) from error
        return response

    async def send(self, method: Method[MessageT], requests: Iterator[Any]) -> MessageT:
        """See Transport."""
        stub = self._channel.stream_unary(method.path, _serialize, _parser(method))
        source = _Source(requests)
        call = stub.future(source, **self._arguments())
        try:
            response: MessageT = call.result()
        except grpc.FutureCancelledError:
            raise errors.Cancelled("the call was cancelled") from None
        except grpc.RpcError as error:
            raise source.failure or errors.from_rpc_error(error) from error
        finally:
            call.cancel()  # no effect on a finished call
        return response

    async def receive(self, method: Method[MessageT], request: Any, sink: Callable[[MessageT], None]) -> None:
        """See Transport."""
        stub = self._channel.unary_stream(method.path, _serialize, _parser(method))
        call = stub(request, **self._arguments())
        try:
            for response in call:
                sink(response)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error) from error
        finally:
            call.cancel()

    async def call(self, function: Callable[[], T]) -> T:
        """See Transport."""
        return function()

    async def sleep(self, seconds: float) -> None:
        """See Transport."""
        time.sleep(seconds)

    async def close(self) -> None:
        """See Transport."""
        self._channel.close()


class AioTransport:
    """Transport over grpc.aio. Blocking code runs in threads, so that the event loop never waits for a disk."""

    def __init__(self, connection: Connection) -> None:
        self._arguments = connection.call_arguments
        options = [*_CHANNEL_OPTIONS, *connection.channel_options]
        if connection.credentials is None:
            self._channel: Any = grpc.aio.insecure_channel(connection.target, options=options)
        else:
            self._channel = grpc.aio.secure_channel(connection.target, connection.credentials, options=options)

    async def unary(self, method: Method[MessageT], request: Any, timeout: float = _UNARY_TIMEOUT_S) -> MessageT:
        """See Transport."""
        stub = self._channel.unary_unary(method.path, _serialize, _parser(method))
        arguments = await asyncio.to_thread(self._arguments)
        try:
            response: MessageT = await stub(request, timeout=timeout, **arguments)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error) from error
        return response

    async def send(self, method: Method[MessageT], requests: Iterator[Any]) -> MessageT:
        """See Transport."""
        stub = self._channel.stream_unary(method.path, _serialize, _parser(method))
        source = _Source(requests)

        async def stream() -> AsyncIterator[Any]:
            while (request := await asyncio.to_thread(next, source, None)) is not None:
                yield request

        call = stub(stream(), **await asyncio.to_thread(self._arguments))
        try:
            response: MessageT = await call
        except asyncio.CancelledError:
            if source.failure is not None:  # grpc.aio cancels the call when its iterator fails
                raise source.failure from None
            raise
        except grpc.RpcError as error:
            raise source.failure or errors.from_rpc_error(error) from error
        finally:
            call.cancel()
        return response

    async def receive(self, method: Method[MessageT], request: Any, sink: Callable[[MessageT], None]) -> None:
        """See Transport."""
        stub = self._channel.unary_stream(method.path, _serialize, _parser(method))
        call = stub(request, **await asyncio.to_thread(self._arguments))
        try:
            async for response in call:
                await asyncio.to_thread(sink, response)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error) from error
        finally:
            call.cancel()

    async def call(self, function: Callable[[], T]) -> T:
        """See Transport."""
        return await asyncio.to_thread(function)

    async def sleep(self, seconds: float) -> None:
        """See Transport."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """See Transport."""
        await self._channel.close()


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs logic over a BlockingTransport to its end; such a coroutine never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError("logic over a BlockingTransport suspended")


class _Source:
    """An iterator that keeps the exception that ended it, which grpc only logs."""

    def __init__(self, requests: Iterator[Any]) -> None:
        self._requests = requests
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _parser(method: Method[MessageT]) -> Callable[[bytes], MessageT]:
    response: Any = method.response
    parse: Callable[[bytes], MessageT] = response.FromString
    return parse
