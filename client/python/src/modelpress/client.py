"""The blocking client: the methods of `modelpress.AsyncClient` without the event loop."""

from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from modelpress.aio import (
    AsyncClient,
    AsyncOperation,
    QuantizedModel,
    RetrainModel,
    SavedConfig,
    SavedModels,
    SavedRecord,
)
from modelpress.connection import ConnectionOptions, make_connection
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
)
from modelpress.progress import ProgressCallback
from modelpress.transport import BlockingTransport, RetryPolicy, run_blocking
from modelpress.v1 import compression_pb2, operations_pb2, workspaces_pb2

ResponseT = TypeVar("ResponseT")


class Operation(Generic[ResponseT]):
    """A compression call that runs, or ran, on the server; see AsyncOperation."""

    def __init__(self, operation: AsyncOperation[ResponseT]) -> None:
        self._operation = operation

    @property
    def name(self) -> str:
        """Resource name: operations/{id}."""
        return self._operation.name

    @property
    def metadata(self) -> operations_pb2.OperationMetadata:
        """State, progress, times, files and warnings, as of the last answer of the server."""
        return self._operation.metadata

    def refresh(self) -> None:
        """Asks the server for the present state."""
        run_blocking(self._operation.refresh())

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return run_blocking(self._operation.done())

    def cancel(self) -> None:
        """Asks the server to end it; `result` then raises Cancelled, unless it ended before."""
        run_blocking(self._operation.cancel())

    def result(self, timeout: float | None = None, *, progress: ProgressCallback | None = None) -> ResponseT:
        """Waits for the end; see AsyncOperation.result."""
        return run_blocking(self._operation.result(timeout, progress=progress))


class Client:
    """A connection to the service; may be shared by threads. All failures are subclasses of `modelpress.Error`.

    The arguments of all methods are those of `AsyncClient`'s method of the same name.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        credentials: Any = None,
        retry: RetryPolicy | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Opens a channel; nothing is sent yet. See AsyncClient for the arguments."""
        transport = BlockingTransport(make_connection(target, credentials, connection))
        self._client = AsyncClient(retry=retry, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; running operations go on."""
        run_blocking(self._client.close())

    def create_workspace(self, workspace_id: str = "", *, request_id: str | None = None) -> workspaces_pb2.Workspace:
        """Makes an empty workspace; without an id the server chooses one."""
        return run_blocking(self._client.create_workspace(workspace_id, request_id=request_id))

    def get_workspace(self, name: str) -> workspaces_pb2.Workspace:
        """Looks a workspace up."""
        return run_blocking(self._client.get_workspace(name))

    def list_workspaces(self) -> list[workspaces_pb2.Workspace]:
        """All workspaces, by name."""
        return run_blocking(self._client.list_workspaces())

    def delete_workspace(self, name: str) -> None:
        """Deletes a workspace with its files; FailedPrecondition while an unfinished operation uses it."""
        run_blocking(self._client.delete_workspace(name))

    def get_file(self, name: str) -> workspaces_pb2.File:
        """Looks a file up."""
        return run_blocking(self._client.get_file(name))

    def list_files(self, workspace: str) -> list[workspaces_pb2.File]:
        """All files of a workspace, by name."""
        return run_blocking(self._client.list_files(workspace))

    def delete_file(self, name: str) -> None:
        """Removes a file's name."""
        run_blocking(self._client.delete_file(name))

    def upload_file(
        self, workspace: str, path: str, source: LocalPath, *, progress: ProgressCallback | None = None
    ) -> workspaces_pb2.File:
        """Sends a local file; bytes that the server has already are not sent again."""
        return run_blocking(self._client.upload_file(workspace, path, source, progress=progress))

    def download_file(
        self, name: str, destination: LocalPath, *, progress: ProgressCallback | None = None
    ) -> workspaces_pb2.File:
        """Receives a file, verifies its SHA-256, and only then puts it in place of `destination` (mode 0640)."""
        return run_blocking(self._client.download_file(name, destination, progress=progress))

    def get_operation(self, name: str) -> Operation[Any]:
        """Looks an operation up, so that any process can wait for it."""
        return Operation(run_blocking(self._client.get_operation(name)))

    def list_operations(self, filter: str = "") -> list[Operation[Any]]:  # noqa: A002  the API's word
        """Operations, newest first; filter terms as in api/modelpress/v1/operations.proto."""
        return [Operation(operation) for operation in run_blocking(self._client.list_operations(filter))]

    def delete_operation(self, name: str) -> None:
        """Forgets a finished operation."""
        run_blocking(self._client.delete_operation(name))

    def create_quant_config(
        self, workspace: str, config_file: str, model: str, **parameters: Unpack[CreateQuantConfigCall]
    ) -> Operation[compression_pb2.CreateQuantConfigResponse]:
        """Starts create_quant_config on files of a workspace."""
        coroutine = self._client.create_quant_config(workspace, config_file, model, **parameters)
        return Operation(run_blocking(coroutine))

    def quantize_preprocess(
        self,
        workspace: str,
        config_file: str,
        record_file: str,
        model: str,
        calibration_data: str,
        **parameters: Unpack[QuantizePreprocessCall],
    ) -> Operation[compression_pb2.QuantizePreprocessResponse]:
        """Starts quantize_preprocess on files of a workspace."""
        coroutine = self._client.quantize_preprocess(
            workspace, config_file, record_file, model, calibration_data, **parameters
        )
        return Operation(run_blocking(coroutine))

    def quantize_model(
        self, workspace: str, model: str, **parameters: Unpack[QuantizeModelCall]
    ) -> Operation[compression_pb2.QuantizeModelResponse]:
        """Starts quantize_model on files of a workspace; calibration and save_model follow on request."""
        return Operation(run_blocking(self._client.quantize_model(workspace, model, **parameters)))

    def calibrate(
        self,
        workspace: str,
        record_file: str,
        config_file: str,
        calibration_data: str,
        **parameters: Unpack[CalibrateCall],
    ) -> Operation[compression_pb2.CalibrateResponse]:
        """Starts the calibration of a modified model on files of a workspace."""
        coroutine = self._client.calibrate(workspace, record_file, config_file, calibration_data, **parameters)
        return Operation(run_blocking(coroutine))

    def save_model(
        self,
        workspace: str,
        modified_onnx_file: str,
        record_file: str,
        save_path: str,
        **options: Unpack[CallOptions],
    ) -> Operation[compression_pb2.SaveModelResponse]:
        """Starts save_model on files of a workspace."""
        coroutine = self._client.save_model(workspace, modified_onnx_file, record_file, save_path, **options)
        return Operation(run_blocking(coroutine))

    def create_prune_retrain_model(
        self,
        workspace: str,
        model: str,
        config_definition: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[CreateRetrainCall],
    ) -> Operation[compression_pb2.RetrainModelResponse]:
        """Starts create_prune_retrain_model on files of a workspace."""
        coroutine = self._client.create_prune_retrain_model(
            workspace, model, config_definition, record_file, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def restore_prune_retrain_model(
        self,
        workspace: str,
        model: str,
        record_file: str,
        config_definition: str,
        save_path: str,
        **parameters: Unpack[RestoreRetrainCall],
    ) -> Operation[compression_pb2.RetrainModelResponse]:
        """Starts restore_prune_retrain_model on files of a workspace."""
        coroutine = self._client.restore_prune_retrain_model(
            workspace, model, record_file, config_definition, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def save_prune_retrain_model(
        self, workspace: str, model: str, save_path: str, **parameters: Unpack[SavePruneCall]
    ) -> Operation[compression_pb2.SavePruneRetrainModelResponse]:
        """Starts save_prune_retrain_model on an exported ONNX file of a workspace."""
        coroutine = self._client.save_prune_retrain_model(workspace, model, save_path, **parameters)
        return Operation(run_blocking(coroutine))

    def auto_channel_prune_search(
        self,
        workspace: str,
        model: str,
        config: str,
        sensitivities: str,
        output_cfg: str,
        **parameters: Unpack[AutoChannelPruneSearchCall],
    ) -> Operation[compression_pb2.AutoChannelPruneSearchResponse]:
        """Starts auto_channel_prune_search on files of a workspace."""
        coroutine = self._client.auto_channel_prune_search(
            workspace, model, config, sensitivities, output_cfg, **parameters
        )
        return Operation(run_blocking(coroutine))

    def create_quant_retrain_config(
        self, workspace: str, config_file: str, model: str, **parameters: Unpack[RetrainConfigCall]
    ) -> Operation[compression_pb2.CreateQuantConfigResponse]:
        """Starts create_quant_retrain_config on files of a workspace."""
        coroutine = self._client.create_quant_retrain_config(workspace, config_file, model, **parameters)
        return Operation(run_blocking(coroutine))

    def create_quant_retrain_model(
        self,
        workspace: str,
        config_file: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[CreateQuantRetrainCall],
    ) -> Operation[compression_pb2.RetrainModelResponse]:
        """Starts create_quant_retrain_model on files of a workspace."""
        coroutine = self._client.create_quant_retrain_model(
            workspace, config_file, model, record_file, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def restore_quant_retrain_model(
        self,
        workspace: str,
        config_file: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[RestoreQuantRetrainCall],
    ) -> Operation[compression_pb2.RetrainModelResponse]:
        """Starts restore_quant_retrain_model on files of a workspace."""
        coroutine = self._client.restore_quant_retrain_model(
            workspace, config_file, model, record_file, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def save_quant_retrain_model(
        self,
        workspace: str,
        config_file: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[SaveQuantRetrainCall],
    ) -> Operation[compression_pb2.SaveModelResponse]:
        """Starts save_quant_retrain_model on files of a workspace."""
        coroutine = self._client.save_quant_retrain_model(
            workspace, config_file, model, record_file, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def create_compressed_retrain_model(
        self,
        workspace: str,
        model: str,
        config_definition: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[CreateRetrainCall],
    ) -> Operation[compression_pb2.RetrainModelResponse]:
        """Starts create_compressed_retrain_model on files of a workspace."""
        coroutine = self._client.create_compressed_retrain_model(
            workspace, model, config_definition, record_file, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def restore_compressed_retrain_model(
        self,
        workspace: str,
        model: str,
        record_file: str,
        config_definition: str,
        save_path: str,
        **parameters: Unpack[RestoreRetrainCall],
    ) -> Operation[compression_pb2.RetrainModelResponse]:
        """Starts restore_compressed_retrain_model on files of a workspace."""
        coroutine = self._client.restore_compressed_retrain_model(
            workspace, model, record_file, config_definition, save_path, **parameters
        )
        return Operation(run_blocking(coroutine))

    def save_compressed_retrain_model(
        self,
        workspace: str,
        model: str,
        record_file: str,
        save_path: str,
        **parameters: Unpack[SaveCompressedRetrainCall],
    ) -> Operation[compression_pb2.SaveModelResponse]:
        """Starts save_compressed_retrain_model on files of a workspace."""
        coroutine = self._client.save_compressed_retrain_model(workspace, model, record_file, save_path, **parameters)
        return Operation(run_blocking(coroutine))

    def create_quant_config_files(
        self, config_file: LocalPath, model: LocalPath, **parameters: Unpack[CreateQuantConfigFilesCall]
    ) -> SavedConfig:
        """create_quant_config on local files."""
        return run_blocking(self._client.create_quant_config_files(config_file, model, **parameters))

    def quantize_preprocess_files(
        self,
        config_file: LocalPath,
        record_file: LocalPath,
        model: LocalPath,
        calibration_data: LocalData,
        **parameters: Unpack[QuantizePreprocessFilesCall],
    ) -> SavedRecord:
        """quantize_preprocess on local files."""
        coroutine = self._client.quantize_preprocess_files(
            config_file, record_file, model, calibration_data, **parameters
        )
        return run_blocking(coroutine)

    def quantize_model_files(self, model: LocalPath, **parameters: Unpack[QuantizeModelFilesCall]) -> QuantizedModel:
        """quantize_model on local files."""
        return run_blocking(self._client.quantize_model_files(model, **parameters))

    def quantize_files(
        self, model: LocalPath, calibration_data: LocalData, save_path: str, **parameters: Unpack[QuantizeFilesCall]
    ) -> QuantizedModel:
        """From a float model to everything in one call."""
        return run_blocking(self._client.quantize_files(model, calibration_data, save_path, **parameters))

    def calibrate_files(
        self,
        record_file: LocalPath,
        config_file: LocalPath,
        calibration_data: LocalData,
        **parameters: Unpack[CalibrateFilesCall],
    ) -> SavedRecord:
        """Calibrate on local files."""
        return run_blocking(self._client.calibrate_files(record_file, config_file, calibration_data, **parameters))

    def save_model_files(
        self,
        modified_onnx_file: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **options: Unpack[LocalOptions],
    ) -> SavedModels:
        """save_model on local files: uploads, runs, and downloads the results beside `save_path`."""
        return run_blocking(self._client.save_model_files(modified_onnx_file, record_file, save_path, **options))

    def create_prune_retrain_model_files(
        self,
        model: LocalPath,
        config_definition: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[CreateRetrainFilesCall],
    ) -> RetrainModel:
        """create_prune_retrain_model on local files."""
        return run_blocking(
            self._client.create_prune_retrain_model_files(
                model, config_definition, record_file, save_path, **parameters
            )
        )

    def restore_prune_retrain_model_files(
        self,
        model: LocalPath,
        record_file: LocalPath,
        config_definition: LocalPath,
        save_path: str,
        **parameters: Unpack[RestoreRetrainFilesCall],
    ) -> RetrainModel:
        """restore_prune_retrain_model on local files."""
        return run_blocking(
            self._client.restore_prune_retrain_model_files(
                model, record_file, config_definition, save_path, **parameters
            )
        )

    def save_prune_retrain_model_files(
        self, model: LocalPath, save_path: str, **parameters: Unpack[SavePruneFilesCall]
    ) -> SavedModels:
        """save_prune_retrain_model on a local, exported ONNX file."""
        return run_blocking(self._client.save_prune_retrain_model_files(model, save_path, **parameters))

    def auto_channel_prune_search_files(
        self,
        model: LocalPath,
        config: LocalPath,
        sensitivities: LocalPath,
        output_cfg: LocalPath,
        **parameters: Unpack[AutoChannelPruneSearchFilesCall],
    ) -> SavedConfig:
        """auto_channel_prune_search on local files."""
        return run_blocking(
            self._client.auto_channel_prune_search_files(model, config, sensitivities, output_cfg, **parameters)
        )

    def create_quant_retrain_config_files(
        self, config_file: LocalPath, model: LocalPath, **parameters: Unpack[RetrainConfigFilesCall]
    ) -> SavedConfig:
        """create_quant_retrain_config on local files."""
        return run_blocking(self._client.create_quant_retrain_config_files(config_file, model, **parameters))

    def create_quant_retrain_model_files(
        self,
        config_file: LocalPath,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[CreateQuantRetrainFilesCall],
    ) -> RetrainModel:
        """create_quant_retrain_model on local files."""
        return run_blocking(
            self._client.create_quant_retrain_model_files(config_file, model, record_file, save_path, **parameters)
        )

    def restore_quant_retrain_model_files(
        self,
        config_file: LocalPath,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[RestoreQuantRetrainFilesCall],
    ) -> RetrainModel:
        """restore_quant_retrain_model on local files."""
        return run_blocking(
            self._client.restore_quant_retrain_model_files(config_file, model, record_file, save_path, **parameters)
        )

    def save_quant_retrain_model_files(
        self,
        config_file: LocalPath,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[SaveQuantRetrainFilesCall],
    ) -> SavedModels:
        """save_quant_retrain_model on local files."""
        return run_blocking(
            self._client.save_quant_retrain_model_files(config_file, model, record_file, save_path, **parameters)
        )

    def create_compressed_retrain_model_files(
        self,
        model: LocalPath,
        config_definition: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[CreateRetrainFilesCall],
    ) -> RetrainModel:
        """create_compressed_retrain_model on local files."""
        return run_blocking(
            self._client.create_compressed_retrain_model_files(
                model, config_definition, record_file, save_path, **parameters
            )
        )

    def restore_compressed_retrain_model_files(
        self,
        model: LocalPath,
        record_file: LocalPath,
        config_definition: LocalPath,
        save_path: str,
        **parameters: Unpack[RestoreRetrainFilesCall],
    ) -> RetrainModel:
        """restore_compressed_retrain_model on local files."""
        return run_blocking(
            self._client.restore_compressed_retrain_model_files(
                model, record_file, config_definition, save_path, **parameters
            )
        )

    def save_compressed_retrain_model_files(
        self,
        model: LocalPath,
        record_file: LocalPath,
        save_path: str,
        **parameters: Unpack[SaveCompressedRetrainFilesCall],
    ) -> SavedModels:
        """save_compressed_retrain_model on local files."""
        return run_blocking(
            self._client.save_compressed_retrain_model_files(model, record_file, save_path, **parameters)
        )
