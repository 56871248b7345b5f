"""What all functions of modelpress.torch share."""

import os
from typing import Any, Unpack

from modelpress.client import Client
from modelpress.connection import ConnectionOptions


class SessionBase:
    """Where and how functions are computed; each call opens and closes its own connection."""

    def __init__(
        self,
        target: str | None = None,
        *,
        reference_defects: bool | None = None,
        workspace: str | None = None,
        credentials: Any = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Nothing is sent yet.

        Args:
            target: host:port; None: variable MODELPRESS_TARGET, else localhost:50051.
            reference_defects: bring back the bytes of the reference where it is wrong; None: only if the variable
                MODELPRESS_REFERENCE_DEFECTS is 1.
            workspace: a workspace to use and keep; None: a temporary one per call.
            credentials: grpc.ChannelCredentials; None: plaintext to this machine, else TLS.
            connection: TLS, token and project as modelpress.Client takes them.
        """
        self._target = target
        self._workspace = workspace
        self._credentials = credentials
        self._connection = connection
        if reference_defects is None:
            reference_defects = os.environ.get("MODELPRESS_REFERENCE_DEFECTS") == "1"
        self._reference_defects = reference_defects

    def _client(self) -> Client:
        return Client(self._target, credentials=self._credentials, **self._connection)
