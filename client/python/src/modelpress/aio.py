"""The client's logic, and its asyncio form. The blocking form (modelpress.client) runs the same coroutines.

Names: a workspace is "workspaces/{id}", a file "workspaces/{id}/files/{path}", an operation "operations/{id}".
"""

import logging
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, text_format

from modelpress import errors
from modelpress.amct import auto_channel_prune_config_pb2
from modelpress.connection import ConnectionOptions, make_connection
from modelpress.local_call import LocalCall
from modelpress.local_files import Digest, Outputs, chunks, digest_of, make_folder
from modelpress.parameters import (
    AutoChannelPruneSearchCall,
    AutoChannelPruneSearchFilesCall,
    CalibrateCall,
    CalibrateFilesCall,
    CallOptions,
    CreateQuantConfigCall,
    CreateQuantConfigFilesCall,
    CreateQuantRetrainCall,
    CreateQuantRetrainFilesCall,
    CreateRetrainCall,
    CreateRetrainFilesCall,
    LocalData,
    LocalOptions,
    LocalPath,
    QuantizeFilesCall,
    QuantizeModelCall,
    QuantizeModelFilesCall,
    QuantizePreprocessCall,
    QuantizePreprocessFilesCall,
    RestoreQuantRetrainCall,
    RestoreQuantRetrainFilesCall,
    RestoreRetrainCall,
    RestoreRetrainFilesCall,
    RetrainConfigCall,
    RetrainConfigFilesCall,
    SaveCompressedRetrainCall,
    SaveCompressedRetrainFilesCall,
    SavePruneCall,
    SavePruneFilesCall,
    SaveQuantRetrainCall,
    SaveQuantRetrainFilesCall,
    make_request,
)
from modelpress.progress import DOWNLOAD, UPLOAD, Progress, ProgressCallback
from modelpress.transport import (
    AioTransport,
    Method,
    Retries,
    RetryPolicy,
    Transport,
)
from modelpress.v1 import compression_pb2, workspaces_pb2
from modelpress.v1 import operations_pb2 as metadata_pb2

ResponseT = TypeVar("ResponseT")
_LOGGER = logging.getLogger("modelpress")

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

_OPERATIONS = "/google.longrunning.Operations/"
_GET_OPERATION: Method[Any] = Method(_OPERATIONS + "GetOperation", operations_pb2.Operation)
_LIST_OPERATIONS: Method[Any] = Method(_OPERATIONS + "ListOperations", operations_pb2.ListOperationsResponse)
_CANCEL_OPERATION: Method[Any] = Method(_OPERATIONS + "CancelOperation", empty_pb2.Empty)
_DELETE_OPERATION: Method[Any] = Method(_OPERATIONS + "DeleteOperation", empty_pb2.Empty)
_WAIT_OPERATION: Method[Any] = Method(_OPERATIONS + "WaitOperation", operations_pb2.Operation)

# Response class by method name.
_RESPONSES: dict[str, type[Any]] = {
    "CreateQuantConfig": compression_pb2.CreateQuantConfigResponse,
    "QuantizePreprocess": compression_pb2.QuantizePreprocessResponse,
    "QuantizeModel": compression_pb2.QuantizeModelResponse,
    "Calibrate": compression_pb2.CalibrateResponse,
    "SaveModel": compression_pb2.SaveModelResponse,
    "CreatePruneRetrainModel": compression_pb2.RetrainModelResponse,
    "RestorePruneRetrainModel": compression_pb2.RetrainModelResponse,
    "AutoChannelPruneSearch": compression_pb2.AutoChannelPruneSearchResponse,
    "CreateQuantRetrainConfig": compression_pb2.CreateQuantConfigResponse,
    "CreateQuantRetrainModel": compression_pb2.RetrainModelResponse,
    "RestoreQuantRetrainModel": compression_pb2.RetrainModelResponse,
    "SaveQuantRetrainModel": compression_pb2.SaveModelResponse,
    "CreateCompressedRetrainModel": compression_pb2.RetrainModelResponse,
    "RestoreCompressedRetrainModel": compression_pb2.RetrainModelResponse,
    "SaveCompressedRetrainModel": compression_pb2.SaveModelResponse,
    "SavePruneRetrainModel": compression_pb2.SavePruneRetrainModelResponse,
}

# What a stream meets whose upload another stream has carried on, or ended.
_UPLOAD_MOVED = ("UPLOAD_OFFSET_MISMATCH", "UPLOAD_NOT_FOUND")
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


@dataclass(frozen=True)
class SavedConfig:
    """The configuration that a call wrote, and remarks of the service."""

    config_file: Path
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SavedRecord:
    """The record file that a call wrote, and remarks of the service."""

    record_file: Path
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class QuantizedModel:
    """What quantize_model wrote to the local folders.

    Attributes:
        modified_onnx_file: the modified model.
        record_file: the record file.
        external_data: files that any of the models refers to.
        config_file: the configuration, if the call made one.
        deploy_model: with save_path: the model for the device's converter.
        fake_quant_model: with save_path: the model for accuracy simulation in ONNX Runtime.
        report: with save_path: what was done, as JSON.
        report_html: with save_path: the same for people, in one file.
        warnings: remarks of the service.
    """

    modified_onnx_file: Path
    record_file: Path
    external_data: tuple[Path, ...]
    config_file: Path | None
    deploy_model: Path | None
    fake_quant_model: Path | None
    report: Path | None
    report_html: Path | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RetrainModel:
    """What a create or restore call of retraining wrote to the local folders.

    Attributes:
        rewrite_plan: what to do to the module that is trained (modelpress.v1.rewrite_plan_pb2.RewritePlan) as JSON.
        report: what was done, as JSON.
        record_file: the record file, where the call writes one; None where it only reads it.
        pruned_model: the pruned ONNX model; None with plan_only and where nothing is pruned.
        external_data: files that pruned_model refers to.
        warnings: remarks of the service.
    """

    rewrite_plan: Path
    report: Path
    record_file: Path | None
    pruned_model: Path | None
    external_data: tuple[Path, ...]
    warnings: tuple[str, ...]


class AsyncOperation(Generic[ResponseT]):
    """A compression call that runs, or ran, on the server.

    Attributes:
        name: "operations/{id}".
    """

    def __init__(self, transport: Transport, retry: RetryPolicy, proto: Any) -> None:
        self._transport = transport
        self._retry = retry
        self._proto = proto
        self._response_type: type[Any] = _RESPONSES.get(self.metadata.method, empty_pb2.Empty)
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
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Opens a channel; nothing is sent yet.

        Args:
            target: host:port or another gRPC target; None: variable MODELPRESS_TARGET, else localhost:50051.
            credentials: grpc.ChannelCredentials; None: as `connection` and its variables say, by default plaintext to
                this machine, else TLS with the system's certificates.
            retry: how broken streams and polls are taken up again.
            transport: how calls are made, instead of a channel to `target`.
            connection: TLS, token and project; see ConnectionOptions.

        Raises:
            ValueError: options of the connection do not go together.
            OSError: a certificate or key cannot be read.
        """
        self._transport = transport or AioTransport(make_connection(target, credentials, connection))
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
            except (errors.OutOfRange, errors.NotFound) as moved:  # another stream of this upload came first
                if moved.reason not in _UPLOAD_MOVED:
                    raise
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

    async def create_quant_config(
        self, workspace: str, config_file: str, model: str, **parameters: Unpack[CreateQuantConfigCall]
    ) -> AsyncOperation[compression_pb2.CreateQuantConfigResponse]:
        """Starts create_quant_config on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            config_file: the JSON to write.
            model: the ONNX model; its external data files lie beside it.
            **parameters: see modelpress.parameters.
        """
        fields = {**parameters, "config_file": config_file, "model": model}
        return await self._start(compression_pb2.CreateQuantConfigRequest, workspace, fields)

    async def quantize_preprocess(
        self,
        workspace: str,
        config_file: str,
        record_file: str,
        model: str,
        calibration_data: str,
        **parameters: Unpack[QuantizePreprocessCall],
    ) -> AsyncOperation[compression_pb2.QuantizePreprocessResponse]:
        """Starts quantize_preprocess on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            config_file: the JSON configuration.
            record_file: the record file to write.
            model: the ONNX model; its external data files lie beside it.
            calibration_data: a file or folder; its first batch is used.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "config_file": config_file,
            "record_file": record_file,
            "model": model,
            "calibration_data": calibration_data,
        }
        return await self._start(compression_pb2.QuantizePreprocessRequest, workspace, fields)

    async def quantize_model(
        self, workspace: str, model: str, **parameters: Unpack[QuantizeModelCall]
    ) -> AsyncOperation[compression_pb2.QuantizeModelResponse]:
        """Starts quantize_model on files of a workspace; calibration and save_model follow on request.

        Args:
            workspace: "workspaces/{id}".
            model: the ONNX model; its external data files lie beside it.
            **parameters: see modelpress.parameters.
        """
        fields = {**parameters, "model": model}
        return await self._start(compression_pb2.QuantizeModelRequest, workspace, fields)

    async def calibrate(
        self,
        workspace: str,
        record_file: str,
        config_file: str,
        calibration_data: str,
        **parameters: Unpack[CalibrateCall],
    ) -> AsyncOperation[compression_pb2.CalibrateResponse]:
        """Starts the calibration of a modified model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            record_file: the record file of quantize_model; replaced by the completed one.
            config_file: the JSON configuration.
            calibration_data: a file or folder.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "record_file": record_file,
            "config_file": config_file,
            "calibration_data": calibration_data,
        }
        return await self._start(compression_pb2.CalibrateRequest, workspace, fields)

    async def save_model(
        self,
        workspace: str,
        modified_onnx_file: str,
        record_file: str,
        save_path: str,
        **options: Unpack[CallOptions],
    ) -> AsyncOperation[compression_pb2.SaveModelResponse]:
        """Starts save_model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            modified_onnx_file: the modified model; its external data files lie beside it.
            record_file: the record file.
            save_path: prefix of the results' paths.
            **options: see modelpress.parameters.CallOptions.
        """
        fields = {
            **options,
            "modified_onnx_file": modified_onnx_file,
            "record_file": record_file,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.SaveModelRequest, workspace, fields)

    async def create_prune_retrain_model(
        self,
        workspace: str,
        model: str,
        config_definition: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[CreateRetrainCall],
    ) -> AsyncOperation[compression_pb2.RetrainModelResponse]:
        """Starts create_prune_retrain_model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            model: the ONNX model, batch norms not folded; its external data files lie beside it.
            config_definition: the simple configuration (.cfg).
            record_file: the record file to write.
            save_path: prefix of the other results' paths.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "model": model,
            "config_definition": config_definition,
            "record_file": record_file,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.CreatePruneRetrainModelRequest, workspace, fields)

    async def restore_prune_retrain_model(
        self,
        workspace: str,
        model: str,
        record_file: str,
        config_definition: str,
        save_path: str,
        **parameters: Unpack[RestoreRetrainCall],
    ) -> AsyncOperation[compression_pb2.RetrainModelResponse]:
        """Starts restore_prune_retrain_model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            model: the ONNX model as create_prune_retrain_model got it.
            record_file: the record file that it wrote.
            config_definition: the simple configuration (.cfg).
            save_path: prefix of the results' paths.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "model": model,
            "record_file": record_file,
            "config_definition": config_definition,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.RestorePruneRetrainModelRequest, workspace, fields)

    async def save_prune_retrain_model(
        self, workspace: str, model: str, save_path: str, **parameters: Unpack[SavePruneCall]
    ) -> AsyncOperation[compression_pb2.SavePruneRetrainModelResponse]:
        """Starts save_prune_retrain_model on an exported ONNX file of a workspace; arguments as in save_model."""
        fields = {**parameters, "model": model, "save_path": save_path}
        return await self._start(compression_pb2.SavePruneRetrainModelRequest, workspace, fields)

    async def auto_channel_prune_search(
        self,
        workspace: str,
        model: str,
        config: str,
        sensitivities: str,
        output_cfg: str,
        **parameters: Unpack[AutoChannelPruneSearchCall],
    ) -> AsyncOperation[compression_pb2.AutoChannelPruneSearchResponse]:
        """Starts auto_channel_prune_search on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            model: the ONNX model; its external data files lie beside it.
            config: the search's configuration.
            sensitivities: safetensors of one float32 [Cout] per layer: sums of |weight * gradient|.
            output_cfg: the simple configuration to write.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "model": model,
            "config": config,
            "sensitivities": sensitivities,
            "output_cfg": output_cfg,
        }
        return await self._start(compression_pb2.AutoChannelPruneSearchRequest, workspace, fields)

    async def create_quant_retrain_config(
        self, workspace: str, config_file: str, model: str, **parameters: Unpack[RetrainConfigCall]
    ) -> AsyncOperation[compression_pb2.CreateQuantConfigResponse]:
        """Starts create_quant_retrain_config on files of a workspace; arguments as in create_quant_config."""
        fields = {**parameters, "config_file": config_file, "model": model}
        return await self._start(compression_pb2.CreateQuantRetrainConfigRequest, workspace, fields)

    async def create_quant_retrain_model(
        self,
        workspace: str,
        config_file: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[CreateQuantRetrainCall],
    ) -> AsyncOperation[compression_pb2.RetrainModelResponse]:
        """Starts create_quant_retrain_model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            config_file: the JSON configuration.
            model: the ONNX model, batch norms not folded; its external data files lie beside it.
            record_file: the record file to write, empty.
            save_path: prefix of the other results' paths.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "config_file": config_file,
            "model": model,
            "record_file": record_file,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.CreateQuantRetrainModelRequest, workspace, fields)

    async def restore_quant_retrain_model(
        self,
        workspace: str,
        config_file: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[RestoreQuantRetrainCall],
    ) -> AsyncOperation[compression_pb2.RetrainModelResponse]:
        """Starts restore_quant_retrain_model on files of a workspace; arguments as in create_quant_retrain_model."""
        fields = {
            **parameters,
            "config_file": config_file,
            "model": model,
            "record_file": record_file,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.RestoreQuantRetrainModelRequest, workspace, fields)

    async def save_quant_retrain_model(
        self,
        workspace: str,
        config_file: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[SaveQuantRetrainCall],
    ) -> AsyncOperation[compression_pb2.SaveModelResponse]:
        """Starts save_quant_retrain_model on files of a workspace.

        Args:
            workspace: "workspaces/{id}".
            config_file: the JSON configuration.
            model: the trained module's export without its wrappers, batch norms not folded.
            record_file: the record file of its quantization factors.
            save_path: prefix of the results' paths.
            **parameters: see modelpress.parameters.
        """
        fields = {
            **parameters,
            "config_file": config_file,
            "model": model,
            "record_file": record_file,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.SaveQuantRetrainModelRequest, workspace, fields)

    async def create_compressed_retrain_model(
        self,
        workspace: str,
        model: str,
        config_definition: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[CreateRetrainCall],
    ) -> AsyncOperation[compression_pb2.RetrainModelResponse]:
        """Starts create_compressed_retrain_model on files of a workspace.

        Arguments as in create_prune_retrain_model.
        """
        fields = {
            **parameters,
            "model": model,
            "config_definition": config_definition,
            "record_file": record_file,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.CreateCompressedRetrainModelRequest, workspace, fields)

    async def restore_compressed_retrain_model(
        self,
        workspace: str,
        model: str,
        record_file: str,
        config_definition: str,
        save_path: str,
        **parameters: Unpack[RestoreRetrainCall],
    ) -> AsyncOperation[compression_pb2.RetrainModelResponse]:
        """Starts restore_compressed_retrain_model on files of a workspace.

        Arguments as in restore_prune_retrain_model.
        """
        fields = {
            **parameters,
            "model": model,
            "record_file": record_file,
            "config_definition": config_definition,
            "save_path": save_path,
        }
        return await self._start(compression_pb2.RestoreCompressedRetrainModelRequest, workspace, fields)

    async def save_compressed_retrain_model(
        self,
        workspace: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[SaveCompressedRetrainCall],
    ) -> AsyncOperation[compression_pb2.SaveModelResponse]:
        """Starts save_compressed_retrain_model on files of a workspace; arguments as in save_quant_retrain_model."""
        fields = {**parameters, "model": model, "record_file": record_file, "save_path": save_path}
        return await self._start(compression_pb2.SaveCompressedRetrainModelRequest, workspace, fields)

    async def _start(self, message: Any, workspace: str, fields: Mapping[str, Any]) -> AsyncOperation[Any]:
        """Calls the method whose request is of class `message`."""
        method = message.DESCRIPTOR.name.removesuffix("Request")
        rpc: Method[Any] = Method(_COMPRESSION + method, operations_pb2.Operation)
        proto = await self._transport.unary(rpc, make_request(message, workspace, fields))
        return AsyncOperation(self._transport, self._retry, proto)

    # ---- compression, on local files: uploads, runs, and downloads the results ----

    async def create_quant_config_files(
        self, config_file: LocalPath, model: LocalPath, **parameters: Unpack[CreateQuantConfigFilesCall]
    ) -> SavedConfig:
        """create_quant_config on local files; arguments as in create_quant_config, see also LocalOptions."""
        message = compression_pb2.CreateQuantConfigRequest
        return await self._configure_locally(message, config_file, model, parameters)

    async def quantize_preprocess_files(
        self,
        config_file: LocalPath,
        record_file: LocalPath,
        model: LocalPath,
        calibration_data: LocalData,
        **parameters: Unpack[QuantizePreprocessFilesCall],
    ) -> SavedRecord:
        """quantize_preprocess on local files; arguments as in quantize_preprocess, see also LocalOptions.

        Args:
            config_file: the JSON configuration.
            record_file: the record file to write.
            model: the ONNX model; its external data files lie beside it.
            calibration_data: a file, a folder, or arrays; the first batch is used.
            **parameters: see modelpress.parameters.
        """
        names: dict[str, Any] = dict(parameters)

        def plan(call: LocalCall, scratch: Path) -> None:
            names["model"] = call.send_model(model, "model")
            names["config_file"] = call.send(config_file, "config_file", "config")
            names["calibration_data"] = call.send_data(calibration_data, "calibration_data", scratch)
            _send_given(call, names, "module_manifest")
            names["record_file"] = call.receive(record_file, "record_file", "record")

        response, paths, warnings = await self._run_locally(compression_pb2.QuantizePreprocessRequest, names, plan)
        return SavedRecord(paths[response.record_file.name], warnings)

    async def quantize_model_files(
        self, model: LocalPath, **parameters: Unpack[QuantizeModelFilesCall]
    ) -> QuantizedModel:
        """quantize_model on local files; arguments as in quantize_model, see also LocalOptions.

        Calibration data is a file, a folder, or arrays: {input: all samples}, or a list of {input: one batch}.
        """
        names: dict[str, Any] = dict(parameters)
        saves = bool(parameters.get("save_path"))

        def plan(call: LocalCall, scratch: Path) -> None:
            names["model"] = call.send_model(model, "model")
            _send_given(call, names, "config_file", "config_definition", "module_manifest")
            for argument in ("calibration_data", "sample_data"):
                if names.get(argument) is not None:
                    names[argument] = call.send_data(names[argument], argument, scratch)
            if not saves or names.get("modified_onnx_file") is not None:
                modified = names.get("modified_onnx_file") or ""
                names["modified_onnx_file"] = call.receive(modified, "modified_onnx_file", "modified", with_folder=True)
            if not saves or names.get("record_file") is not None:
                record = names.get("record_file") or ""
                names["record_file"] = call.replace(record, "record_file", "record", needed=False)
            if saves:
                names["save_path"] = call.receive_saved(names["save_path"])

        response, paths, warnings = await self._run_locally(compression_pb2.QuantizeModelRequest, names, plan)
        return QuantizedModel(
            modified_onnx_file=paths[response.modified_onnx_file.name],
            record_file=paths[response.record_file.name],
            external_data=tuple(paths[file.name] for file in response.external_data),
            config_file=paths.get(response.config_file.name),
            deploy_model=paths.get(response.deploy_model.name),
            fake_quant_model=paths.get(response.fake_quant_model.name),
            report=paths.get(response.report.name),
            report_html=paths.get(response.report_html.name),
            warnings=warnings,
        )

    async def quantize_files(
        self,
        model: LocalPath,
        calibration_data: LocalData,
        save_path: str,
        **parameters: Unpack[QuantizeFilesCall],
    ) -> QuantizedModel:
        """From a float model to everything in one call: configuration, modified model, record, both models, report.

        Args:
            model: the ONNX model; its external data files lie beside it.
            calibration_data: a file, a folder, or arrays.
            save_path: folder and prefix of all results.
            **parameters: see modelpress.parameters.
        """
        return await self.quantize_model_files(
            model, calibration_data=calibration_data, save_path=save_path, **parameters
        )

    async def calibrate_files(
        self,
        record_file: LocalPath,
        config_file: LocalPath,
        calibration_data: LocalData,
        **parameters: Unpack[CalibrateFilesCall],
    ) -> SavedRecord:
        """Calibrate on local files; arguments as in calibrate, see also LocalOptions.

        Args:
            record_file: the record file of quantize_model; replaced by the completed one.
            config_file: the JSON configuration.
            calibration_data: a file, a folder, or arrays.
            **parameters: see modelpress.parameters.
        """
        names: dict[str, Any] = dict(parameters)
        kv_cache = not names.get("modified_onnx_file")

        def plan(call: LocalCall, scratch: Path) -> None:
            if not kv_cache:
                modified = names["modified_onnx_file"]
                names["modified_onnx_file"] = call.send_model(modified, "modified_onnx_file", "modified")
            if kv_cache or names.get("model") is not None:
                names["model"] = call.send_model(names.get("model") or "", "model")
            names["config_file"] = call.send(config_file, "config_file", "config")
            names["calibration_data"] = call.send_data(calibration_data, "calibration_data", scratch)
            _send_given(call, names, "module_manifest")
            names["record_file"] = call.replace(record_file, "record_file", "record", needed=not kv_cache)

        response, paths, warnings = await self._run_locally(compression_pb2.CalibrateRequest, names, plan)
        return SavedRecord(paths[response.record_file.name], warnings)

    async def save_model_files(
        self,
        modified_onnx_file: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **options: Unpack[LocalOptions],
    ) -> SavedModels:
        """save_model on local files.

        Args:
            modified_onnx_file: the modified model; its external data files lie beside it.
            record_file: the record file.
            save_path: folder and prefix as documented; missing folders are made, files there are replaced.
            **options: see modelpress.parameters.LocalOptions.
        """
        names: dict[str, Any] = dict(options)

        def plan(call: LocalCall, _: Path) -> None:
            names["save_path"] = call.receive_saved(save_path)
            names["modified_onnx_file"] = call.send_model(modified_onnx_file, "modified_onnx_file")
            names["record_file"] = call.send(record_file, "record_file", "record")

        return _saved_models(*await self._run_locally(compression_pb2.SaveModelRequest, names, plan))

    async def create_prune_retrain_model_files(
        self,
        model: LocalPath,
        config_definition: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[CreateRetrainFilesCall],
    ) -> RetrainModel:
        """create_prune_retrain_model on local files; arguments as there, see also LocalOptions."""

        def plan(call: LocalCall, names: dict[str, Any]) -> None:
            names["config_definition"] = call.send(config_definition, "config_definition", "config_definition")
            names["record_file"] = call.receive(record_file, "record_file", "record")

        message = compression_pb2.CreatePruneRetrainModelRequest
        return await self._retrain_locally(message, model, save_path, parameters, plan)

    async def restore_prune_retrain_model_files(
        self,
        model: LocalPath,
        record_file: LocalPath,
        config_definition: LocalPath,
        save_path: str,
        **parameters: Unpack[RestoreRetrainFilesCall],
    ) -> RetrainModel:
        """restore_prune_retrain_model on local files; arguments as there, see also LocalOptions.

        `weights` may also be a checkpoint of torch.save.
        """

        def plan(call: LocalCall, names: dict[str, Any]) -> None:
            names["record_file"] = call.send(record_file, "record_file", "record")
            names["config_definition"] = call.send(config_definition, "config_definition", "config_definition")

        message = compression_pb2.RestorePruneRetrainModelRequest
        return await self._retrain_locally(message, model, save_path, parameters, plan)

    async def save_prune_retrain_model_files(
        self, model: LocalPath, save_path: str, **parameters: Unpack[SavePruneFilesCall]
    ) -> SavedModels:
        """save_prune_retrain_model on a local, exported ONNX file; arguments as in save_model_files."""
        message = compression_pb2.SavePruneRetrainModelRequest
        return await self._save_locally(message, model, save_path, parameters)

    async def auto_channel_prune_search_files(
        self,
        model: LocalPath,
        config: LocalPath,
        sensitivities: LocalPath,
        output_cfg: LocalPath,
        **parameters: Unpack[AutoChannelPruneSearchFilesCall],
    ) -> SavedConfig:
        """auto_channel_prune_search on local files; arguments as there, see also LocalOptions.

        The file that override_prune_cfg of the configuration names (from the working directory) goes along.
        """
        names: dict[str, Any] = dict(parameters)

        def plan(call: LocalCall, _: Path) -> None:
            names["model"] = call.send_model(model, "model")
            names["config"] = call.send(config, "config", "config")
            names.setdefault("override_prune_cfg", _override_named_in(Path(config)))
            names["sensitivities"] = call.send(sensitivities, "sensitivities", "sensitivities")
            _send_given(call, names, "module_manifest", "override_prune_cfg")
            names["output_cfg"] = call.receive(output_cfg, "output_cfg", "output_cfg")

        response, paths, warnings = await self._run_locally(compression_pb2.AutoChannelPruneSearchRequest, names, plan)
        return SavedConfig(paths[response.output_cfg.name], warnings)

    async def create_quant_retrain_config_files(
        self, config_file: LocalPath, model: LocalPath, **parameters: Unpack[RetrainConfigFilesCall]
    ) -> SavedConfig:
        """create_quant_retrain_config on local files; arguments as there, see also LocalOptions."""
        message = compression_pb2.CreateQuantRetrainConfigRequest
        return await self._configure_locally(message, config_file, model, parameters)

    async def create_quant_retrain_model_files(
        self,
        config_file: LocalPath,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[CreateQuantRetrainFilesCall],
    ) -> RetrainModel:
        """create_quant_retrain_model on local files; arguments as there, see also LocalOptions."""

        def plan(call: LocalCall, names: dict[str, Any]) -> None:
            names["config_file"] = call.send(config_file, "config_file", "config")
            names["record_file"] = call.receive(record_file, "record_file", "record")

        message = compression_pb2.CreateQuantRetrainModelRequest
        return await self._retrain_locally(message, model, save_path, parameters, plan)

    async def restore_quant_retrain_model_files(
        self,
        config_file: LocalPath,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[RestoreQuantRetrainFilesCall],
    ) -> RetrainModel:
        """restore_quant_retrain_model on local files; arguments as there, see also LocalOptions.

        `weights` may also be a checkpoint of torch.save.
        """

        def plan(call: LocalCall, names: dict[str, Any]) -> None:
            names["config_file"] = call.send(config_file, "config_file", "config")
            names["record_file"] = call.receive(record_file, "record_file", "record")

        message = compression_pb2.RestoreQuantRetrainModelRequest
        return await self._retrain_locally(message, model, save_path, parameters, plan)

    async def save_quant_retrain_model_files(
        self,
        config_file: LocalPath,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[SaveQuantRetrainFilesCall],
    ) -> SavedModels:
        """save_quant_retrain_model on local files; arguments as there, see also LocalOptions."""
        files = {**parameters, "config_file": config_file, "record_file": record_file}
        message = compression_pb2.SaveQuantRetrainModelRequest
        return await self._save_locally(message, model, save_path, files)

    async def create_compressed_retrain_model_files(
        self,
        model: LocalPath,
        config_definition: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[CreateRetrainFilesCall],
    ) -> RetrainModel:
        """create_compressed_retrain_model on local files; arguments as there, see also LocalOptions."""

        def plan(call: LocalCall, names: dict[str, Any]) -> None:
            names["config_definition"] = call.send(config_definition, "config_definition", "config_definition")
            names["record_file"] = call.receive(record_file, "record_file", "record")

        message = compression_pb2.CreateCompressedRetrainModelRequest
        return await self._retrain_locally(message, model, save_path, parameters, plan)

    async def restore_compressed_retrain_model_files(
        self,
        model: LocalPath,
        record_file: LocalPath,
        config_definition: LocalPath,
        save_path: str,
        **parameters: Unpack[RestoreRetrainFilesCall],
    ) -> RetrainModel:
        """restore_compressed_retrain_model on local files; arguments as there, see also LocalOptions.

        `weights` may also be a checkpoint of torch.save.
        """

        def plan(call: LocalCall, names: dict[str, Any]) -> None:
            names["record_file"] = call.send(record_file, "record_file", "record")
            names["config_definition"] = call.send(config_definition, "config_definition", "config_definition")

        message = compression_pb2.RestoreCompressedRetrainModelRequest
        return await self._retrain_locally(message, model, save_path, parameters, plan)

    async def save_compressed_retrain_model_files(
        self,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[SaveCompressedRetrainFilesCall],
    ) -> SavedModels:
        """save_compressed_retrain_model on local files; arguments as there, see also LocalOptions."""
        files = {**parameters, "record_file": record_file}
        message = compression_pb2.SaveCompressedRetrainModelRequest
        return await self._save_locally(message, model, save_path, files)

    async def _configure_locally(
        self, message: Any, config_file: LocalPath, model: LocalPath, parameters: Mapping[str, Any]
    ) -> SavedConfig:
        """A call that makes a configuration of a model."""
        names = dict(parameters)

        def plan(call: LocalCall, _: Path) -> None:
            names["model"] = call.send_model(model, "model")
            _send_given(call, names, "config_definition", "module_manifest")
            names["config_file"] = call.receive(config_file, "config_file", "config")

        response, paths, warnings = await self._run_locally(message, names, plan)
        return SavedConfig(paths[response.config_file.name], warnings)

    async def _retrain_locally(
        self,
        message: Any,
        model: LocalPath,
        save_path: str,
        parameters: Mapping[str, Any],
        plan_own: Callable[[LocalCall, dict[str, Any]], None],
    ) -> RetrainModel:
        """A create or restore call of retraining; `plan_own` plans the arguments in which they differ."""
        names = dict(parameters)

        def plan(call: LocalCall, scratch: Path) -> None:
            names["model"] = call.send_model(model, "model")
            plan_own(call, names)
            if names.get("weights") is not None:
                names["weights"] = call.send_weights(names["weights"], names.get("state_dict_name") or "", scratch)
            _send_given(call, names, "module_manifest")
            names["save_path"] = call.receive_saved(save_path)

        response, paths, warnings = await self._run_locally(message, names, plan)
        return RetrainModel(
            rewrite_plan=paths[response.rewrite_plan.name],
            report=paths[response.report.name],
            record_file=paths.get(response.record_file.name),
            pruned_model=paths.get(response.pruned_model.name),
            external_data=tuple(paths[file.name] for file in response.external_data),
            warnings=warnings,
        )

    async def _save_locally(
        self, message: Any, model: LocalPath, save_path: str, parameters: Mapping[str, Any]
    ) -> SavedModels:
        """A save call of retraining, with the files that are given."""
        names = dict(parameters)

        def plan(call: LocalCall, _: Path) -> None:
            names["save_path"] = call.receive_saved(save_path)
            names["model"] = call.send_model(model, "model")
            _send_given(call, names, "config_file", "record_file", "module_manifest", "rewrite_plan")

        return _saved_models(*await self._run_locally(message, names, plan))

    async def _run_locally(
        self,
        message: Any,
        fields: dict[str, Any],
        plan: Callable[[LocalCall, Path], None],
    ) -> tuple[Any, dict[str, Path], tuple[str, ...]]:
        """Sends what `plan` wants sent, runs, and puts the results where it wants them.

        `plan` replaces the local paths in `fields` by names in the workspace, and may write files into a folder that
        it is given. Returns the response, the local path of every file it names, and the warnings.
        """
        workspace = fields.pop("workspace", None)
        show: ProgressCallback | None = fields.pop("progress", None)
        call = LocalCall()
        with tempfile.TemporaryDirectory(prefix="modelpress-") as scratch:
            await self._transport.call(lambda: plan(call, Path(scratch)))
            async with self._workspace(workspace) as name:
                for path, local in call.inputs:
                    await self.upload_file(name, path, local, progress=show)
                for path in call.absent:
                    with suppress(errors.NotFound):
                        await self.delete_file(f"{name}/files/{path}")
                operation = await self._start(message, name, fields)
                try:
                    response = await operation.result(progress=show)
                except BaseException:  # Ctrl-C and asyncio's cancellation too: the server should not go on for nobody
                    await self._end(operation)
                    raise
                paths = await self._fetch(response, f"{name}/files/", call, show)
        return response, paths, tuple(operation.metadata.warnings)

    async def _fetch(self, response: Any, base: str, call: LocalCall, show: ProgressCallback | None) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for file in _files_in(response):
            path = call.path_of(file.name.removeprefix(base))
            if path in paths.values():
                raise ValueError(f"two results would be written to {path}; give them different names")
            paths[file.name] = path
        with Outputs() as outputs:
            for name, path in paths.items():
                await self._transport.call(partial(make_folder, path.parent))
                await self._download(name, path, outputs, show)
            await self._transport.call(outputs.commit)
        return paths

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


def _send_given(call: LocalCall, names: dict[str, Any], *arguments: str) -> None:
    """Sends the files of those arguments that are given."""
    for argument in arguments:
        if names.get(argument) is not None:
            names[argument] = call.send(names[argument], argument, argument)


def _override_named_in(config: Path) -> str | None:
    """The file that a search's configuration names; a text that cannot be parsed is left to the service."""
    parsed = auto_channel_prune_config_pb2.AutoChannelPruneConfig()
    try:
        text_format.Parse(config.read_text(encoding="utf-8"), parsed)
    except (text_format.ParseError, UnicodeDecodeError):
        return None
    return parsed.override_prune_cfg or None


def _files_in(response: Any) -> Iterator[Any]:
    """The files that a response names."""
    for _, value in response.ListFields():
        yield from [value] if isinstance(value, workspaces_pb2.File) else value


def _saved_models(response: Any, paths: Mapping[str, Path], warnings: tuple[str, ...]) -> SavedModels:
    return SavedModels(
        deploy_model=paths[response.deploy_model.name],
        fake_quant_model=paths[response.fake_quant_model.name],
        external_data=tuple(paths[file.name] for file in response.external_data),
        report=paths[response.report.name],
        warnings=warnings,
    )


def _new_id() -> str:
    return str(uuid.uuid4())
