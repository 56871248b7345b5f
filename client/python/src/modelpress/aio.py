"""The client's logic, and its asyncio form. The blocking form (modelpress.client) runs the same coroutines.

Names: a workspace is "workspaces/{id}", a file "workspaces/{id}/files/{path}", an operation "operations/{id}".
"""

import logging
import os
import posixpath
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from modelpress import errors
from modelpress.external_data import external_files
from modelpress.local_files import Digest, Outputs, SavePath, chunks, digest_of, require_file
from modelpress.progress import DOWNLOAD, UPLOAD, Progress, ProgressCallback
from modelpress.transport import (
    DEFAULT_TARGET,
    AioTransport,
    Method,
    Retries,
    RetryPolicy,
    Transport,
    default_credentials,
)
from modelpress.v1 import compression_pb2, workspaces_pb2
from modelpress.v1 import operations_pb2 as metadata_pb2

ResponseT = TypeVar("ResponseT")
_LOGGER = logging.getLogger("modelpress")
LocalPath = str | os.PathLike[str]

_WORKSPACES = "/modelpress.v1.Workspaces/"
_CREATE_WORKSPACE = Method(_WORKSPACES + "CreateWorkspace", workspaces_pb2.Workspace)
_GET_WORKSPACE = Method(_WORKSPACES + "GetWorkspace", workspaces_pb2.Workspace)
_LIST_WORKSPACES = Method(_WORKSPACES + "ListWorkspaces", workspaces_pb2.ListWorkspacesResponse)
_DELETE_WORKSPACE: Method[Any] = Method(_WORKSPACES + "DeleteWorkspace", empty_pb2.Empty)
_GET_FILE = Method(_WORKSPACES + "GetFile", workspaces_pb2.File)
_LIST_FILES = Method(_WORKSPACES + "ListFiles", workspaces_pb2.ListFilesResponse)
_DELETE_FILE: Method[Any] = Method(_WORKSPACES + "DeleteFile", empty_pb2.Empty)
_START_UPLOAD = Method(_WORKSPACES + "StartUpload", workspaces_pb2.Upload)
_UPLOAD_BYTES = Method(_WORKSPACES + "UploadBytes", workspaces_pb2.Upload)
_DOWNLOAD_FILE = Method(_WORKSPACES + "DownloadFile", workspaces_pb2.DownloadFileResponse)

_COMPRESSION = "/modelpress.v1.Compression/"
_SAVE_MODEL: Method[Any] = Method(_COMPRESSION + "SaveModel", operations_pb2.Operation)
_SAVE_PRUNE_RETRAIN_MODEL: Method[Any] = Method(_COMPRESSION + "SavePruneRetrainModel", operations_pb2.Operation)

_OPERATIONS = "/google.longrunning.Operations/"
_GET_OPERATION: Method[Any] = Method(_OPERATIONS + "GetOperation", operations_pb2.Operation)
_LIST_OPERATIONS: Method[Any] = Method(_OPERATIONS + "ListOperations", operations_pb2.ListOperationsResponse)
_CANCEL_OPERATION: Method[Any] = Method(_OPERATIONS + "CancelOperation", empty_pb2.Empty)
_DELETE_OPERATION: Method[Any] = Method(_OPERATIONS + "DeleteOperation", empty_pb2.Empty)
_WAIT_OPERATION: Method[Any] = Method(_OPERATIONS + "WaitOperation", operations_pb2.Operation)

# Response class by method name, for operations that are looked up instead of started.
_RESPONSES: dict[str, type[Any]] = {
    "SaveModel": compression_pb2.SaveModelResponse,
    "SavePruneRetrainModel": compression_pb2.SavePruneRetrainModelResponse,
}

# One WaitOperation: short where somebody watches the progress.
_LONG_POLL_S = 20.0
_PROGRESS_POLL_S = 0.25
_POLL_SLACK_S = 30.0
_MIN_POLL_INTERVAL_S = 0.02
# How long a flow that failed or was interrupted waits for its operation to end before it leaves the workspace behind.
_CANCEL_WAIT_S = 15.0


@dataclass(frozen=True)
class SavedModels:
    """What a save function wrote to the local folder.

    Attributes:
        deploy_model: the model for the device's converter.
        fake_quant_model: the model for accuracy simulation in ONNX Runtime.
        external_data: files that the two refer to.
        report: what was done, as JSON.
        warnings: remarks of the service.
    """

    deploy_model: Path
    fake_quant_model: Path
    external_data: tuple[Path, ...]
    report: Path
    warnings: tuple[str, ...]


class AsyncOperation(Generic[ResponseT]):
    """A compression call that runs, or ran, on the server.

    Attributes:
        name: "operations/{id}".
    """

    def __init__(
        self, transport: Transport, retry: RetryPolicy, proto: Any, response_type: type[ResponseT] | None = None
    ) -> None:
        self._transport = transport
        self._retry = retry
        self._proto = proto
        self._response_type: type[Any] = response_type or _RESPONSES.get(self.metadata.method, empty_pb2.Empty)
        self.name: str = proto.name

    @property
    def metadata(self) -> metadata_pb2.OperationMetadata:
        """State, progress, times, files and warnings, as of the last answer of the server."""
        metadata = metadata_pb2.OperationMetadata()
        self._proto.metadata.Unpack(metadata)
        return metadata

    async def refresh(self) -> None:
        """Asks the server for the present state."""
        request = operations_pb2.GetOperationRequest(name=self.name)
        self._proto = await self._transport.unary(_GET_OPERATION, request)

    async def done(self) -> bool:
        """Whether it has ended, well or not."""
        if not self._proto.done:
            await self.refresh()
        return bool(self._proto.done)

    async def cancel(self) -> None:
        """Asks the server to end it; `result` then raises Cancelled, unless it ended before."""
        await self._transport.unary(_CANCEL_OPERATION, operations_pb2.CancelOperationRequest(name=self.name))

    async def result(self, timeout: float | None = None, *, progress: ProgressCallback | None = None) -> ResponseT:
        """Waits for the end.

        Args:
            timeout: seconds; None waits for ever. The operation goes on after a timeout.
            progress: called with each change of the progress.

        Returns:
            The call's response, such as SaveModelResponse.

        Raises:
            TimeoutError: it has not ended in time.
            modelpress.Error: why it failed.
        """
        await self._wait(timeout, progress)
        if self._proto.HasField("error"):
            raise errors.from_status(self._proto.error)
        response = self._response_type()
        self._proto.response.Unpack(response)
        result: ResponseT = response
        return result

    async def _wait(self, timeout: float | None, show: ProgressCallback | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        retries = Retries(self._retry)
        shown: Progress | None = None
        while True:
            if show is not None:
                seen = self.metadata.progress
                current = Progress(seen.stage, seen.done, seen.total)
                if current != shown and current.stage:
                    show(current)
                    shown = current
            if self._proto.done:
                return
            poll = _LONG_POLL_S if show is None else _PROGRESS_POLL_S
            begin = time.monotonic()
            if end is not None:
                if begin >= end:
                    raise TimeoutError(f"{self.name} has not ended within {timeout} s")
                poll = min(poll, end - begin)
            request = operations_pb2.WaitOperationRequest(name=self.name)
            request.timeout.FromTimedelta(timedelta(seconds=poll))
            try:
                self._proto = await self._transport.unary(_WAIT_OPERATION, request, timeout=poll + _POLL_SLACK_S)
                retries.progressed()
            except errors.Unavailable as error:
                await self._transport.sleep(retries.delay_after(error))
            if not self._proto.done and time.monotonic() - begin < _MIN_POLL_INTERVAL_S:
                await self._transport.sleep(_MIN_POLL_INTERVAL_S)  # a server may answer before the poll's time is over


class AsyncClient:
    """A connection to the service for asyncio; see `modelpress.Client` for the blocking form with the same methods.

    All failures of the service are raised as subclasses of `modelpress.Error`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        credentials: Any = None,
        retry: RetryPolicy | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Opens a channel; nothing is sent yet.

        Args:
            target: host:port or another gRPC target; None: variable MODELPRESS_TARGET, else localhost:50051.
            credentials: grpc.ChannelCredentials; None: plaintext to this machine, else TLS with the system's
                certificates.
            retry: how broken streams and polls are taken up again.
            transport: how calls are made, instead of a channel to `target`.
        """
        self._transport = transport or AioTransport(*channel_arguments(target, credentials))
        self._retry = retry or RetryPolicy()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; running operations go on."""
        await self._transport.close()

    # ---- workspaces ----

    async def create_workspace(
        self, workspace_id: str = "", *, request_id: str | None = None
    ) -> workspaces_pb2.Workspace:
        """Makes an empty workspace; without an id the server chooses one."""
        request = workspaces_pb2.CreateWorkspaceRequest(workspace_id=workspace_id, request_id=request_id or _new_id())
        return await self._transport.unary(_CREATE_WORKSPACE, request)

    async def get_workspace(self, name: str) -> workspaces_pb2.Workspace:
        """Looks a workspace up."""
        return await self._transport.unary(_GET_WORKSPACE, workspaces_pb2.GetWorkspaceRequest(name=name))

    async def list_workspaces(self) -> list[workspaces_pb2.Workspace]:
        """All workspaces, by name."""
        request = workspaces_pb2.ListWorkspacesRequest(page_size=1000)
        return [item for page in await self._pages(_LIST_WORKSPACES, request) for item in page.workspaces]

    async def delete_workspace(self, name: str) -> None:
        """Deletes a workspace with its files; FailedPrecondition while an unfinished operation uses it."""
        await self._transport.unary(_DELETE_WORKSPACE, workspaces_pb2.DeleteWorkspaceRequest(name=name))

    # ---- files ----

    async def get_file(self, name: str) -> workspaces_pb2.File:
        """Looks a file up."""
        return await self._transport.unary(_GET_FILE, workspaces_pb2.GetFileRequest(name=name))

    async def list_files(self, workspace: str) -> list[workspaces_pb2.File]:
        """All files of a workspace, by name."""
        request = workspaces_pb2.ListFilesRequest(parent=workspace, page_size=1000)
        return [item for page in await self._pages(_LIST_FILES, request) for item in page.files]

    async def delete_file(self, name: str) -> None:
        """Removes a file's name."""
        await self._transport.unary(_DELETE_FILE, workspaces_pb2.DeleteFileRequest(name=name))

    async def upload_file(
        self, workspace: str, path: str, source: LocalPath, *, progress: ProgressCallback | None = None
    ) -> workspaces_pb2.File:
        """Sends a local file; bytes that the server has already are not sent again.

        Args:
            workspace: "workspaces/{id}".
            path: the file's path in the workspace.
            source: the local file.
            progress: called with the bytes sent.

        A stream that breaks goes on where the server has stored the last byte.
        """
        local = Path(source)
        digest = await self._transport.call(lambda: digest_of(local))
        file = workspaces_pb2.File(name=f"{workspace}/files/{path}", size_bytes=digest.size, sha256=digest.sha256)
        announce = workspaces_pb2.StartUploadRequest(file=file.name, size_bytes=digest.size, sha256=digest.sha256)
        retries = Retries(self._retry)
        committed = -1
        while True:
            try:
                # Also the way back into a broken upload: an unfinished one with the same content is returned as it
                # stands.
                upload = await self._transport.unary(_START_UPLOAD, announce)
                if upload.committed_size > committed:
                    committed = upload.committed_size
                    retries.progressed()
                if not upload.complete:
                    messages = _upload_messages(local, upload, progress)
                    upload = await self._transport.send(_UPLOAD_BYTES, messages)
                if upload.complete:
                    _report(progress, digest.size, digest.size)
                    return file
                error = errors.Unavailable("the server ended the upload before the last byte")
            except errors.Unavailable as broken:
                error = broken
            except errors.OutOfRange as moved:  # another stream of this upload came first
                error = errors.Unavailable(moved.message, reason=moved.reason, metadata=moved.metadata)
            await self._transport.sleep(retries.delay_after(error))

    async def download_file(
        self, name: str, destination: LocalPath, *, progress: ProgressCallback | None = None
    ) -> workspaces_pb2.File:
        """Receives a file, verifies its SHA-256, and only then puts it in place of `destination` (mode 0640)."""
        with Outputs() as outputs:
            file = await self._download(name, Path(destination), outputs, progress)
            await self._transport.call(outputs.commit)
            return file

    async def _download(
        self, name: str, destination: Path, outputs: Outputs, show: ProgressCallback | None
    ) -> workspaces_pb2.File:
        part = await self._transport.call(lambda: outputs.open(destination))
        file = workspaces_pb2.File()
        retries = Retries(self._retry)

        def sink(response: workspaces_pb2.DownloadFileResponse) -> None:
            if response.HasField("file"):
                file.CopyFrom(response.file)
            part.write(response.data)
            retries.progressed()
            _report(show, part.size, file.size_bytes, stage=DOWNLOAD)

        while True:
            # From the first answer on the content is fixed by its digest.
            request = workspaces_pb2.DownloadFileRequest(name=name, offset=part.size, sha256=file.sha256)
            try:
                if not file.name or part.size < file.size_bytes:
                    await self._transport.receive(_DOWNLOAD_FILE, request, sink)
                break
            except errors.Unavailable as error:
                await self._transport.sleep(retries.delay_after(error))
        received = await self._transport.call(part.close)
        if received != Digest(file.size_bytes, file.sha256):
            raise errors.DataLoss(
                f"{name}: received {received.size} bytes with SHA-256 {received.sha256}, "
                f"announced were {file.size_bytes} bytes with {file.sha256}",
                reason="DIGEST_MISMATCH",
                metadata={"file": name},
            )
        return file

    # ---- operations ----

    async def get_operation(self, name: str) -> AsyncOperation[Any]:
        """Looks an operation up, so that any process can wait for it."""
        proto = await self._transport.unary(_GET_OPERATION, operations_pb2.GetOperationRequest(name=name))
        return AsyncOperation(self._transport, self._retry, proto)

    async def list_operations(self, filter: str = "") -> list[AsyncOperation[Any]]:  # noqa: A002  the API's word
        """Operations, newest first; filter terms as in api/modelpress/v1/operations.proto."""
        request = operations_pb2.ListOperationsRequest(name="operations", filter=filter, page_size=1000)
        pages = await self._pages(_LIST_OPERATIONS, request)
        return [AsyncOperation(self._transport, self._retry, proto) for page in pages for proto in page.operations]

    async def delete_operation(self, name: str) -> None:
        """Forgets a finished operation."""
        await self._transport.unary(_DELETE_OPERATION, operations_pb2.DeleteOperationRequest(name=name))

    # ---- compression, on files of a workspace ----

    async def save_model(
        self,
        workspace: str,
        modified_onnx_file: str,
        record_file: str,
        save_path: str,
        *,
        reference_defects: bool = False,
        validate_only: bool = False,
        execution_timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[compression_pb2.SaveModelResponse]:
        """Starts save_model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            modified_onnx_file: the modified model; its external data files lie beside it.
            record_file: the record file.
            save_path: prefix of the results' paths.
            reference_defects: bring back the bytes of the reference where it is wrong.
            validate_only: check everything and write nothing.
            execution_timeout: seconds for one attempt; None: the server's limit.
            request_id: a UUID; the same request with the same id gets the same operation again.
        """
        request = compression_pb2.SaveModelRequest(
            workspace=workspace,
            modified_onnx_file=modified_onnx_file,
            record_file=record_file,
            save_path=save_path,
            options=_options(reference_defects, validate_only, execution_timeout, request_id),
        )
        proto = await self._transport.unary(_SAVE_MODEL, request)
        return AsyncOperation(self._transport, self._retry, proto, compression_pb2.SaveModelResponse)

    async def save_prune_retrain_model(
        self,
        workspace: str,
        model: str,
        save_path: str,
        *,
        validate_only: bool = False,
        execution_timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[compression_pb2.SavePruneRetrainModelResponse]:
        """Starts save_prune_retrain_model on an exported ONNX file of a workspace; arguments as in save_model."""
        request = compression_pb2.SavePruneRetrainModelRequest(
            workspace=workspace,
            model=model,
            save_path=save_path,
            options=_options(False, validate_only, execution_timeout, request_id),
        )
        proto = await self._transport.unary(_SAVE_PRUNE_RETRAIN_MODEL, request)
        return AsyncOperation(self._transport, self._retry, proto, compression_pb2.SavePruneRetrainModelResponse)

    # ---- compression, on local files ----

    async def save_model_files(
        self,
        modified_onnx_file: LocalPath,
        record_file: LocalPath,
        save_path: str,
        *,
        workspace: str | None = None,
        reference_defects: bool = False,
        progress: ProgressCallback | None = None,
    ) -> SavedModels:
        """save_model on local files: uploads, runs, and downloads the results beside `save_path`.

        Args:
            modified_onnx_file: the modified model; its external data files lie beside it.
            record_file: the record file.
            save_path: folder and prefix as documented; missing folders are made, files there are replaced.
            workspace: a workspace to use and keep; None: a temporary one.
            reference_defects: bring back the bytes of the reference where it is wrong.
            progress: called for uploads, the operation's stages and downloads.
        """
        target = SavePath.parse(save_path)
        model = require_file(Path(modified_onnx_file), "modified_onnx_file")
        record = require_file(Path(record_file), "record_file")
        external = await self._external_files(model)
        async with self._workspace(workspace) as name:
            model_name = await self._upload_model(name, model, external, progress)
            record_name = f"record/{record.name}"
            await self.upload_file(name, record_name, record, progress=progress)
            operation = await self.save_model(
                name, model_name, record_name, f"results/{target.prefix}", reference_defects=reference_defects
            )
            return await self._finish(operation, name, target, progress)

    async def save_prune_retrain_model_files(
        self,
        model: LocalPath,
        save_path: str,
        *,
        workspace: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> SavedModels:
        """save_prune_retrain_model on a local, exported ONNX file; arguments as in save_model_files."""
        target = SavePath.parse(save_path)
        local = require_file(Path(model), "model")
        external = await self._external_files(local)
        async with self._workspace(workspace) as name:
            model_name = await self._upload_model(name, local, external, progress)
            operation = await self.save_prune_retrain_model(name, model_name, f"results/{target.prefix}")
            return await self._finish(operation, name, target, progress)

    async def _external_files(self, model: Path) -> list[str]:
        locations = await self._transport.call(lambda: external_files(model))
        for location in locations:
            require_file(model.parent / location, f"external data of {model}")
        return locations

    async def _upload_model(
        self, workspace: str, model: Path, external: list[str], show: ProgressCallback | None
    ) -> str:
        for location in external:
            name = posixpath.normpath(f"model/{location}")
            await self.upload_file(workspace, name, model.parent / location, progress=show)
        await self.upload_file(workspace, f"model/{model.name}", model, progress=show)
        return f"model/{model.name}"

    async def _finish(
        self, operation: AsyncOperation[Any], workspace: str, target: SavePath, show: ProgressCallback | None
    ) -> SavedModels:
        try:
            response = await operation.result(progress=show)
        except BaseException:  # Ctrl-C and asyncio's cancellation too: the server should not go on for nobody
            await self._end(operation)
            raise
        files = [response.deploy_model, response.fake_quant_model, *response.external_data, response.report]
        base = f"{workspace}/files/results/"
        paths = [target.folder / file.name.removeprefix(base) for file in files]
        with Outputs() as outputs:
            await self._transport.call(target.make_folder)
            for file, path in zip(files, paths, strict=True):
                await self._download(file.name, path, outputs, show)
            await self._transport.call(outputs.commit)
        return SavedModels(paths[0], paths[1], tuple(paths[2:-1]), paths[-1], tuple(operation.metadata.warnings))

    async def _end(self, operation: AsyncOperation[Any]) -> None:
        with suppress(errors.Error, TimeoutError):  # the first failure is the one to tell
            if not await operation.done():
                await operation.cancel()
                await operation.result(timeout=_CANCEL_WAIT_S)

    @asynccontextmanager
    async def _workspace(self, name: str | None) -> AsyncIterator[str]:
        if name is not None:
            yield name if name.startswith("workspaces/") else f"workspaces/{name}"
            return
        workspace = await self.create_workspace()
        try:
            yield workspace.name
        except BaseException:
            with suppress(errors.Error):  # the first failure is the one to tell
                await self.delete_workspace(workspace.name)
            raise
        try:
            await self.delete_workspace(workspace.name)
        except errors.Error as error:  # the results are there: no reason to fail
            _LOGGER.warning("the temporary %s is left on the server: %s", workspace.name, error)

    async def _pages(self, method: Method[Any], request: Any) -> list[Any]:
        pages = [await self._transport.unary(method, request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await self._transport.unary(method, request))
        return pages


def channel_arguments(target: str | None, credentials: Any) -> tuple[str, Any]:
    """Target and credentials with their defaults."""
    chosen = target or os.environ.get("MODELPRESS_TARGET") or DEFAULT_TARGET
    return chosen, credentials or default_credentials(chosen)


def _report(show: ProgressCallback | None, done: int, total: int, stage: str = UPLOAD) -> None:
    if show is not None:
        show(Progress(stage, done, total))


def _upload_messages(
    path: Path, upload: workspaces_pb2.Upload, show: ProgressCallback | None
) -> Iterator[workspaces_pb2.UploadBytesRequest]:
    name = upload.name  # in the first message only
    for offset, data in chunks(path, upload.committed_size):
        yield workspaces_pb2.UploadBytesRequest(upload=name, offset=offset, data=data)
        name = ""
        _report(show, offset + len(data), upload.size_bytes)


def _options(
    reference_defects: bool, validate_only: bool, execution_timeout: float | None, request_id: str | None
) -> compression_pb2.CallOptions:
    options = compression_pb2.CallOptions(
        request_id=request_id or _new_id(), validate_only=validate_only, reference_defects=reference_defects
    )
    if execution_timeout is not None:
        options.execution_timeout.FromTimedelta(timedelta(seconds=execution_timeout))
    return options


def _new_id() -> str:
    return str(uuid.uuid4())
