"""Client of modelpress, a gRPC service that compresses neural networks.

`Client` and `AsyncClient` speak to the service; `modelpress.torch` has the documented functions of AMCT (`save_model`,
...) on local paths. The messages are in `modelpress.v1`, generated from api/.
"""

from pkgutil import extend_path

# In a source tree the generated packages `modelpress.v1` and `modelpress.amct` lie in another folder of sys.path.
__path__ = extend_path(__path__, __name__)

from modelpress.aio import (
    AsyncClient,
    AsyncOperation,
    QuantizedModel,
    RetrainModel,
    SavedConfig,
    SavedModels,
    SavedRecord,
)
from modelpress.client import Client, Operation
from modelpress.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from modelpress.progress import Progress, ProgressCallback, progress_bar
from modelpress.transport import RetryPolicy

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncOperation",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Error",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "Operation",
    "OutOfRange",
    "PermissionDenied",
    "Progress",
    "ProgressCallback",
    "QuantizedModel",
    "ResourceExhausted",
    "RetrainModel",
    "RetryPolicy",
    "SavedConfig",
    "SavedModels",
    "SavedRecord",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "progress_bar",
]
