"""Every touch of Ray's private parts; a test for each names what broke when Ray is upgraded."""

from __future__ import annotations

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub


def why_no_cluster(address: str, seconds: float) -> str | None:
    """Ask who answers at HOST:PORT what only the head of a Ray cluster knows.

    ``ray.init`` asks the same without a deadline, and the process can then only be killed.

    Returns:
        What is wrong with the answer; None if it came from a cluster, which may still ask for a token.
    """
    with init_grpc_channel(address) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=seconds)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return None
            return " ".join(str(error.details()).split())
    return None
