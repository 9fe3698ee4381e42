"""Every touch of what Ray and RLlib keep to themselves, under plain names. After an upgrade of Ray, look here first.

tests/esper_ray/test_ray_internals.py holds each piece against the Ray that is installed and names what broke; another
test there sees to it that no other file touches anything private. RLlib itself is not imported: the service's processes
do without it.
"""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import numpy as np
import ray
import torch
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR as JOB_VARIABLE
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # the stubs lack it
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

__all__ = [
    "JOB_VARIABLE",  # set by Ray in what `ray job submit` starts
    "AsgiDeployment",
    "AutoscalerReport",
    "OpenLearner",
    "SeededRunner",
    "actor_id",
    "ask_for_reset",
    "autoscaler_report",
    "discard",
    "infeasible_groups",
    "runner_actors",
    "store",
    "stored",
    "why_no_cluster",
    "wrap_learner_thread",
]

# ---------------------------------------------------------------------- a store that outlives processes
NAMESPACE = b"esper-ray"


def store(key: str, value: str) -> None:
    """Put a text into the store of the cluster's head node, where it outlives a failed process."""
    _internal_kv_put(key, value.encode(), namespace=NAMESPACE)


def stored(key: str) -> str | None:
    """What was stored under a key, if anything is."""
    found = _internal_kv_get(key, namespace=NAMESPACE)
    return None if found is None else found.decode()


def discard(key: str) -> None:
    """Forget what was stored under a key, if anything is."""
    _internal_kv_del(key, namespace=NAMESPACE)


# ---------------------------------------------------------------------- env runners
class SeededRunner:
    """Comes before RLlib's env runner: seeds as RLlib does, but leaves torch's deterministic algorithms off.

    RLlib switches them on where torch is built without CUDA. Hosts that train on one CPU thread repeat bit for bit
    without, and the switch imports torch's compiler: 76 MB in every runner. Told of no seed, RLlib seeds nothing.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        seed = None if config.seed is None else int(config.seed) + (kwargs.get("worker_index") or 0)
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (RLlib's own code draws from it)
            torch.manual_seed(seed)
        unseeded = config.copy(copy_frozen=False)
        unseeded.seed = None
        super().__init__(config=unseeded, **kwargs)  # type: ignore[call-arg]  # RLlib's
        self.config: Any
        self.config.seed = config.seed
        self._seed = seed  # of the env's first reset


def ask_for_reset(env_runner: Any) -> None:
    """Have a runner leave its episodes and reset its envs, with its seed, before it samples again."""
    env_runner._needs_initial_reset = True


def runner_actors(env_runner_group: Any) -> dict[int, Any]:
    """Handles of a group's remote runners by their index, dead or alive."""
    return env_runner_group._worker_manager.actors()


def actor_id(actor: Any) -> str:
    """The id of an actor in hexadecimal, which it keeps over restarts, by its handle."""
    return actor._actor_id.hex()


# ---------------------------------------------------------------------- learners
class OpenLearner:
    """Comes before RLlib's TorchLearner: its private hooks and states under plain names."""

    _is_built: bool
    _learner_connector: Any
    _weights_seq_no: int

    @property
    def is_built(self) -> bool:
        """Whether :meth:`build` has run. RLlib's learners of PPO and IMPALA would build a second time."""
        return self._is_built

    def replace_in_pipeline(self, name: str, piece: Any) -> None:
        """Remove RLlib's connector of a class name from the pipeline, if there is one, and append another."""
        if self._learner_connector is not None:
            self._learner_connector.remove(name)
            self._learner_connector.append(piece)

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state, also an older one: its weights count as newer than any before.

        Runners refuse weights whose number is below that of their own, and so would RLlib's learner.
        """
        newest, self._weights_seq_no = self._weights_seq_no, 0
        super().set_state(state)  # type: ignore[misc]  # RLlib's
        self._weights_seq_no = max(newest, self._weights_seq_no) + 1

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        super()._set_optimizer_state(state)  # type: ignore[misc]  # RLlib's
        self.optimizers_restored()

    @abstractmethod
    def optimizers_restored(self) -> None:
        """Called when the optimisers have taken over a checkpoint's state, their settings included."""

    def _set_slicing_by_batch_id(self, batch: Any, *, value: bool) -> Any:
        # RLlib makes minibatches with the lengths of the rows as Python's numbers, one by one: each would be waited for
        # where they lie on a GPU. Nobody else reads them.
        for columns in batch.policy_batches.values():
            columns["seq_lens"] = columns["seq_lens"].cpu()
        return super()._set_slicing_by_batch_id(batch, value=value)  # type: ignore[misc]  # RLlib's

    def _compute_off_policyness(self, batch: dict[str, Any]) -> None:
        """Leave out RLlib's count of updates since the rollout, which waits for a GPU in every minibatch."""

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        return self.update_minibatch(batch, **kwargs)

    def update_minibatch(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        """Loss, gradients and step of one minibatch; called once for each by RLlib's update."""
        return super()._update(batch, **kwargs)  # type: ignore[misc]  # RLlib's


Update = Callable[..., None]


def wrap_learner_thread(learner: Any, wrap: Callable[[Update], Update]) -> None:
    """Put a function around each update that IMPALA's learner thread makes; it has keyword arguments only."""
    thread = learner._learner_thread
    thread._update_method = wrap(thread._update_method)


# ---------------------------------------------------------------------- autoscalers
class AutoscalerReport(NamedTuple):
    """What the first of Ray's two autoscalers last did."""

    asked: float
    """When it asked what the cluster lacks, in Unix seconds."""
    starting: bool | None
    """Whether it is starting nodes; None if it cannot tell yet."""


def infeasible_groups() -> list[str] | None:
    """Descriptions of the placement groups that no node will ever be started for, if the second autoscaler runs."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    state = reply.autoscaling_state
    if not state.autoscaler_state_version:
        return None
    return [request.details for request in state.infeasible_gang_resource_requests]


def autoscaler_report() -> AutoscalerReport | None:
    """What the first autoscaler has written, if it runs."""
    written = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    if written is None:
        return None
    status = json.loads(written)
    nodes = status.get("autoscaler_report")
    starting = None if nodes is None else bool(nodes["pending_nodes"] or nodes["pending_launches"])
    return AutoscalerReport(status["time"] - status["gcs_request_time"], starting)


# ---------------------------------------------------------------------- addresses
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


# ---------------------------------------------------------------------- Serve
class AsgiDeployment:
    """A deployment of Serve that speaks HTTP itself."""

    @abstractmethod
    def application(self) -> Any:
        """The ASGI application; made once per process."""

    def __serve_build_asgi_app__(self) -> Any:
        return self.application()
