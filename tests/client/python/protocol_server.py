"""The Workspaces, Operations and Compression protocols in memory, on a real socket, with faults that a test can
order."""

import hashlib
import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from modelpress.v1 import (
    compression_pb2,
    compression_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)
from modelpress.v1 import operations_pb2 as metadata_pb2

REPORT = b"{}"


@dataclass
class Faults:
    """What is to go wrong next."""

    break_upload_at: list[int] = field(default_factory=list)  # UNAVAILABLE once so many bytes are held
    end_upload_at: list[int] = field(default_factory=list)  # another stream sends the rest once so many bytes are held
    break_download_after: list[int] = field(default_factory=list)  # UNAVAILABLE after so many bytes of one stream
    unavailable: dict[str, int] = field(default_factory=dict)  # method -> how many of the next calls fail
    flip_downloaded_bit: bool = False
    hold_operations: bool = False  # operations stay running until cancelled
    operation_error: status_pb2.Status | None = None


def status(code: int, message: str, reason: str, **metadata: str) -> status_pb2.Status:
    result = status_pb2.Status(code=code, message=message)
    result.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="modelpress", metadata=metadata))
    return result


def abort(context: Any, error: status_pb2.Status) -> None:
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    context.set_trailing_metadata((("grpc-status-details-bin", error.SerializeToString()),))
    context.abort(code, error.message)


class MetadataLog(grpc.ServerInterceptor):
    """Keeps the metadata of every call: (method, metadata)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        self.calls.append((method, dict(handler_call_details.invocation_metadata)))
        return continuation(handler_call_details)


class ProtocolServer(
    workspaces_pb2_grpc.WorkspacesServicer,
    operations_pb2_grpc.OperationsServicer,
    compression_pb2_grpc.CompressionServicer,
):
    """One server; `target` is where it listens, `metadata` what came with the calls."""

    def __init__(self, credentials: Any = None) -> None:
        self.metadata = MetadataLog()
        self.faults = Faults()
        self.workspaces: set[str] = set()
        self.deleted: list[str] = []
        self.files: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[workspaces_pb2.Upload, bytearray]] = {}
        self.operations: dict[str, Any] = {}
        self.requests: list[Any] = []
        self.received = 0  # bytes of uploads
        self.rewrite_plan = b"{}"  # what create and restore calls answer with
        self.record: bytes | None = None  # that create calls write; None: something that tells the model
        self.changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[self.metadata])
        workspaces_pb2_grpc.add_WorkspacesServicer_to_server(self, self._server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self, self._server)
        compression_pb2_grpc.add_CompressionServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("0.0.0.0:0")
        else:
            self.port = self._server.add_secure_port("0.0.0.0:0", credentials)
        self.target = f"localhost:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _maybe_unavailable(self, method: str, context: Any) -> None:
        if self.faults.unavailable.get(method, 0) > 0:
            self.faults.unavailable[method] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "try later")

    # ---- Workspaces ----

    def CreateWorkspace(self, request: Any, context: Any) -> Any:
        self._maybe_unavailable("CreateWorkspace", context)
        name = f"workspaces/{request.workspace_id or 'w' + uuid.uuid4().hex[:8]}"
        if name in self.workspaces:
            abort(context, status(6, f"{name} exists", "WORKSPACE_EXISTS"))
        self.workspaces.add(name)
        return workspaces_pb2.Workspace(name=name)

    def GetWorkspace(self, request: Any, context: Any) -> Any:
        if request.name not in self.workspaces:
            abort(context, status(5, f"no {request.name}", "WORKSPACE_NOT_FOUND"))
        return workspaces_pb2.Workspace(name=request.name)

    def ListWorkspaces(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        names = sorted(name for name in self.workspaces if name > request.page_token)
        page = workspaces_pb2.ListWorkspacesResponse(workspaces=[workspaces_pb2.Workspace(name=n) for n in names[:2]])
        if len(names) > 2:
            page.next_page_token = names[1]
        return page

    def DeleteWorkspace(self, request: Any, context: Any) -> Any:
        self._maybe_unavailable("DeleteWorkspace", context)
        if request.name not in self.workspaces:
            abort(context, status(5, f"no {request.name}", "WORKSPACE_NOT_FOUND"))
        if any(not operation.done for operation in self.operations.values()):
            abort(context, status(9, "in use", "WORKSPACE_BUSY"))
        self.workspaces.remove(request.name)
        self.deleted.append(request.name)
        return empty_pb2.Empty()

    def _file(self, name: str) -> Any:
        data = self.files[name]
        return workspaces_pb2.File(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def GetFile(self, request: Any, context: Any) -> Any:
        if request.name not in self.files:
            abort(context, status(5, f"no {request.name}", "FILE_NOT_FOUND", file=request.name))
        return self._file(request.name)

    def ListFiles(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        names = sorted(name for name in self.files if name.startswith(request.parent + "/"))
        return workspaces_pb2.ListFilesResponse(files=[self._file(name) for name in names])

    def DeleteFile(self, request: Any, context: Any) -> Any:
        self.GetFile(request, context)
        del self.files[request.name]
        return empty_pb2.Empty()

    def StartUpload(self, request: Any, context: Any) -> Any:
        self._maybe_unavailable("StartUpload", context)
        for data in self.files.values():
            if hashlib.sha256(data).hexdigest() == request.sha256:
                self.files[request.file] = data
                return workspaces_pb2.Upload(file=request.file, committed_size=len(data), complete=True)
        for upload, data in self.uploads.values():
            if (upload.file, upload.sha256) == (request.file, request.sha256):
                upload.committed_size = len(data)
                return upload
        upload = workspaces_pb2.Upload(
            name=f"{request.file.split('/files/')[0]}/uploads/{uuid.uuid4().hex}",
            file=request.file,
            size_bytes=request.size_bytes,
            sha256=request.sha256,
        )
        self.uploads[upload.name] = (upload, bytearray())
        return upload

    def UploadBytes(self, requests: Iterator[Any], context: Any) -> Any:
        name = ""
        for request in requests:
            name = name or request.upload
            upload, data = self.uploads[name]
            if request.offset != len(data):
                abort(context, status(11, "offset", "UPLOAD_OFFSET_MISMATCH", committed_size=str(len(data))))
            data += request.data
            self.received += len(request.data)
            if self.faults.break_upload_at and len(data) >= self.faults.break_upload_at[0]:
                del data[self.faults.break_upload_at.pop(0) :]
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
            if self.faults.end_upload_at and len(data) >= self.faults.end_upload_at[0]:
                del self.uploads[name], self.faults.end_upload_at[0]
                abort(context, status(5, f"no {name}", "UPLOAD_NOT_FOUND"))
            if len(data) == upload.size_bytes:
                del self.uploads[name]
                if hashlib.sha256(data).hexdigest() != upload.sha256:
                    abort(context, status(3, "digest differs", "DIGEST_MISMATCH", file=upload.file))
                self.files[upload.file] = bytes(data)
                upload.complete = True
            upload.committed_size = len(data)
        return upload

    def DownloadFile(self, request: Any, context: Any) -> Iterator[Any]:
        self.GetFile(request, context)
        file = self._file(request.name)
        if request.sha256 and request.sha256 != file.sha256:
            abort(context, status(9, "changed", "FILE_CHANGED", file=request.name))
        data = bytearray(self.files[request.name])
        if self.faults.flip_downloaded_bit:
            data[-1] ^= 1
        yield workspaces_pb2.DownloadFileResponse(file=file)
        step = 1000
        for offset in range(request.offset, len(data), step):
            if self.faults.break_download_after and offset >= self.faults.break_download_after[0]:
                self.faults.break_download_after.pop(0)
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
            yield workspaces_pb2.DownloadFileResponse(data=bytes(data[offset : offset + step]))

    # ---- Operations ----

    def _start(self, method: str, request: Any) -> Any:
        self.requests.append(request)
        operation = operations_pb2.Operation(name=f"operations/{len(self.operations)}")
        metadata = metadata_pb2.OperationMetadata(
            method=method, workspace=request.workspace, state=metadata_pb2.OperationMetadata.RUNNING
        )
        metadata.progress.stage, metadata.progress.done, metadata.progress.total = "quantize", 1, 2
        metadata.warnings.append("a warning")
        operation.metadata.Pack(metadata)
        self.operations[operation.name] = operation
        return operation

    def GetOperation(self, request: Any, context: Any) -> Any:
        if request.name not in self.operations:
            abort(context, status(5, "no such operation", "OPERATION_NOT_FOUND"))
        return self.operations[request.name]

    def ListOperations(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return operations_pb2.ListOperationsResponse(operations=list(self.operations.values()))

    def WaitOperation(self, request: Any, context: Any) -> Any:
        self._maybe_unavailable("WaitOperation", context)
        operation = self.GetOperation(request, context)
        with self.changed:
            self.changed.wait_for(lambda: operation.done, request.timeout.ToTimedelta().total_seconds())
        return operation

    def CancelOperation(self, request: Any, context: Any) -> Any:
        operation = self.GetOperation(request, context)
        with self.changed:
            operation.done = True
            operation.error.CopyFrom(status(1, "cancelled", "OPERATION_CANCELLED"))
            self.changed.notify_all()
        return empty_pb2.Empty()

    def DeleteOperation(self, request: Any, context: Any) -> Any:
        self.GetOperation(request, context)
        del self.operations[request.name]
        return empty_pb2.Empty()

    # ---- Compression: both outputs are the model as it came, so that tests can tell the files apart from nothing ----

    def _finish(self, operation: Any, request: Any, model: str, response: Any) -> Any:
        base = f"{request.workspace}/files/"
        separator = "" if request.save_path in {"", "results/"} else "_"
        if self.faults.operation_error is not None:
            operation.done = True
            operation.error.CopyFrom(self.faults.operation_error)
        elif not self.faults.hold_operations:
            outputs = {"deploy_model": "deploy_model.onnx", "fake_quant_model": "fake_quant_model.onnx"}
            for attribute, suffix in outputs.items():
                name = f"{base}{request.save_path}{separator}{suffix}"
                self.files[name] = self.files[base + model]
                getattr(response, attribute).CopyFrom(self._file(name))
            for name in [name for name in self.files if name.startswith(f"{base}model/") and name != base + model]:
                copy = f"{base}results/{name.removeprefix(base + 'model/')}"
                self.files[copy] = self.files[name]
                response.external_data.append(self._file(copy))
            report = f"{base}{request.save_path}{separator}report.json"
            self.files[report] = REPORT
            response.report.CopyFrom(self._file(report))
            operation.done = True
            operation.response.Pack(response)
        return operation

    # ---- post-training quantization: outputs say what they were made of ----

    def _put(self, request: Any, path: str, data: bytes) -> Any:
        name = f"{request.workspace}/files/{path}"
        self.files[name] = data
        return self._file(name)

    def _content(self, request: Any, path: str) -> bytes:
        return self.files.get(f"{request.workspace}/files/{path}", b"nothing")

    def _answer(self, operation: Any, response: Any) -> Any:
        operation.done = True
        if self.faults.operation_error is not None:
            operation.error.CopyFrom(self.faults.operation_error)
        else:
            operation.response.Pack(response)
        return operation

    def CreateQuantConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("CreateQuantConfig", request)
        file = self._put(request, request.config_file, b'{"batch_num": 2}')
        return self._answer(operation, compression_pb2.CreateQuantConfigResponse(config_file=file))

    def QuantizePreprocess(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("QuantizePreprocess", request)
        file = self._put(request, request.record_file, b"balance")
        return self._answer(operation, compression_pb2.QuantizePreprocessResponse(record_file=file))

    def QuantizeModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("QuantizeModel", request)
        response = compression_pb2.QuantizeModelResponse()
        modified = request.modified_onnx_file or f"{request.save_path}_modified_model.onnx"
        record = request.record_file or f"{request.save_path}_record.txt"
        model = self._content(request, request.model)
        response.modified_onnx_file.CopyFrom(self._put(request, modified, model))
        external = modified.rpartition("/")[0] + "/w.external"
        response.external_data.append(self._put(request, external, b"weights"))
        content = b"weights + " + self._content(request, record)
        response.record_file.CopyFrom(self._put(request, record, content))
        if request.save_path:
            saved = {
                "config_file": "config.json",
                "deploy_model": "deploy_model.onnx",
                "fake_quant_model": "fake_quant_model.onnx",
                "report": "report.json",
                "report_html": "report.html",
            }
            for attribute, suffix in saved.items():
                file = self._put(request, f"{request.save_path}_{suffix}", suffix.encode())
                getattr(response, attribute).CopyFrom(file)
        return self._answer(operation, response)

    def Calibrate(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("Calibrate", request)
        content = b"activations + " + self._content(request, request.record_file)
        file = self._put(request, request.record_file, content)
        return self._answer(operation, compression_pb2.CalibrateResponse(record_file=file))

    def SaveModel(self, request: Any, context: Any) -> Any:
        missing = [
            name
            for name in (request.modified_onnx_file, request.record_file)
            if f"{request.workspace}/files/{name}" not in self.files
        ]
        if missing:
            error = status(5, "files are missing", "FILE_NOT_FOUND", file=missing[0])
            failure = error_details_pb2.PreconditionFailure()
            for name in missing:
                failure.violations.add(type="MISSING", subject=name)
            error.details.add().Pack(failure)
            abort(context, error)
        operation = self._start("SaveModel", request)
        return self._finish(operation, request, request.modified_onnx_file, compression_pb2.SaveModelResponse())

    def SavePruneRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("SavePruneRetrainModel", request)
        return self._finish(operation, request, request.model, compression_pb2.SavePruneRetrainModelResponse())

    # ---- pruning and quantization-aware training ----

    def _retrain(self, method: str, request: Any, *, writes_record: bool) -> Any:
        operation = self._start(method, request)
        separator = "" if request.save_path in {"", "results/"} else "_"
        response = compression_pb2.RetrainModelResponse()
        model = self._content(request, request.model)
        if writes_record:
            content = b"record of " + model if self.record is None else self.record
            response.record_file.CopyFrom(self._put(request, request.record_file, content))
        plan = f"{request.save_path}{separator}rewrite_plan.json"
        response.rewrite_plan.CopyFrom(self._put(request, plan, self.rewrite_plan))
        if not getattr(request, "plan_only", True):
            pruned = f"{request.save_path}{separator}pruned_model.onnx"
            response.pruned_model.CopyFrom(self._put(request, pruned, b"pruned " + model))
            external = pruned.rpartition("/")[0] + "/w.external"
            response.external_data.append(self._put(request, external, b"weights"))
        response.report.CopyFrom(self._put(request, f"{request.save_path}{separator}report.json", REPORT))
        return self._answer(operation, response)

    def CreatePruneRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return self._retrain("CreatePruneRetrainModel", request, writes_record=True)

    def RestorePruneRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return self._retrain("RestorePruneRetrainModel", request, writes_record=False)

    def CreateQuantRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return self._retrain("CreateQuantRetrainModel", request, writes_record=True)

    def RestoreQuantRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return self._retrain("RestoreQuantRetrainModel", request, writes_record=True)

    def CreateCompressedRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return self._retrain("CreateCompressedRetrainModel", request, writes_record=True)

    def RestoreCompressedRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return self._retrain("RestoreCompressedRetrainModel", request, writes_record=False)

    def AutoChannelPruneSearch(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("AutoChannelPruneSearch", request)
        file = self._put(request, request.output_cfg, b"ratios of " + self._content(request, request.sensitivities))
        return self._answer(operation, compression_pb2.AutoChannelPruneSearchResponse(output_cfg=file))

    def CreateQuantRetrainConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("CreateQuantRetrainConfig", request)
        file = self._put(request, request.config_file, b'{"batch_num": 1}')
        return self._answer(operation, compression_pb2.CreateQuantConfigResponse(config_file=file))

    def SaveQuantRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("SaveQuantRetrainModel", request)
        return self._finish(operation, request, request.model, compression_pb2.SaveModelResponse())

    def SaveCompressedRetrainModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        operation = self._start("SaveCompressedRetrainModel", request)
        return self._finish(operation, request, request.model, compression_pb2.SaveModelResponse())
