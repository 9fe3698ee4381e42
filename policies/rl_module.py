"""The policy network as an RLlib module: translation of batches, and nothing else.

The module draws actions itself and stores beside them every head's log-probability, V(s) and Q(s, op); RLlib
carries these columns from the env runners to the learner. The masks in use are part of the observation, so the
update reads the ones that were stored.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from envs.vocabulary import HeadSpec
from policies.encoders import EncoderFactory
from policies.network import RecurrentPolicyNetwork
from policies.network_config import NetworkConfig
from policies.policy_network import PolicyNetwork
from policies.results import ActorCriticResult
from policies.return_scale import WORLD
from policies.strategic.actor_critic import GraphActorCritic, GraphWorlds

HEAD_LOG_PROBS = "head_log_probs"
"""Column of the rollout: log-probability of each head, ``[..., H]``."""
Q_VALUE = "q_value"
"""Column of the rollout: Q of the drawn op in reward units, V if the critic does not look at the op, ``[...]``."""
STATE_NORMS = "lstm_state_norms"
"""Column of the rollout: Euclidean norms of the hidden and the cell state, ``[..., 2]``."""
FORWARD_RESULT = "forward_result"
"""Key of the :class:`ActorCriticResult` in what the training forward returns."""


class FactoredRLModule(TorchRLModule, ValueFunctionAPI):
    """RLlib's view of a :class:`PolicyNetwork`.

    ``model_config`` holds ``heads`` (tuple of :class:`HeadSpec`), ``encoder`` (an :data:`EncoderFactory`, or the
    :class:`GraphWorlds` of a network that reads graphs), ``network`` (:class:`NetworkConfig`), ``max_seq_len`` (read by
    RLlib) and optionally ``deterministic_inference`` (bool, default False): whether ``forward_inference`` takes the
    mode instead of drawing at the network's ``play_temperature``, and ``bf16`` (bool, default False): whether
    ``forward_train`` multiplies in bfloat16.

    Attributes:
        network: The plain torch network; its return scale says what the critic's outputs mean.
    """

    network: PolicyNetwork
    model_config: dict[str, Any]

    def setup(self) -> None:
        """Build the network from the spaces and the model config.

        Raises:
            ValueError: the action space does not have the sizes of these heads.
        """
        heads: tuple[HeadSpec, ...] = self.model_config["heads"]
        sizes = [head.size for head in heads]
        if not isinstance(self.action_space, gym.spaces.MultiDiscrete) or self.action_space.nvec.tolist() != sizes:
            names = ", ".join(head.name for head in heads)
            raise ValueError(
                f"the heads {names} need the action space MultiDiscrete({sizes}), the env has {self.action_space}: "
                "give the env's own heads"
            )
        # cuDNN would round an LSTM's products to TF32, and runners on a CPU would disagree with the update.
        torch.backends.cudnn.allow_tf32 = False
        self.network = self._build(heads, self.model_config["encoder"], self.model_config["network"])
        h, c = self.network.initial_hidden(1)
        self._initial_state = {"h": h[0], "c": c[0]}

    def _build(
        self, heads: tuple[HeadSpec, ...], encoder: EncoderFactory | GraphWorlds, config: NetworkConfig
    ) -> PolicyNetwork:
        if isinstance(encoder, GraphWorlds):
            return GraphActorCritic(heads, encoder, config)
        assert isinstance(self.observation_space, gym.spaces.Dict)
        world = self.observation_space.spaces.get(WORLD)
        num_worlds = int(world.high[0]) + 1 if isinstance(world, gym.spaces.Box) else 1
        return RecurrentPolicyNetwork(heads, encoder(self.observation_space), config, num_worlds)

    def get_initial_state(self) -> dict[str, Tensor]:
        """The recurrent state at the start of an episode, without a batch axis; always the same, on the CPU.

        RLlib asks for it at the start of every env's episode, and wants it there.
        """
        return self._initial_state

    def set_sequence_length(self, steps: int) -> None:
        """Have RLlib make rows of this length for the training forward."""
        self.model_config = {**self.model_config, "max_seq_len": steps}  # the dict is the algorithm's, too

    def forward_result(self, batch: dict[str, Any]) -> ActorCriticResult:
        """Read a training batch: observation leaves ``[rows, T, ...]``, state ``[rows, ...]``."""
        state = batch[Columns.STATE_IN]
        result: ActorCriticResult = self.network(batch[Columns.OBS], (state["h"], state["c"]))
        return result

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """State values V(s) in reward units, ``[rows, T]`` (demanded by RLlib's PPO)."""
        return self.forward_result(batch).value

    def set_state(self, state: dict[str, Any]) -> None:
        """Load weights; unlike RLlib's version a missing or unknown entry is an error."""
        self.load_state_dict(convert_to_torch_tensor(state), strict=True)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # Here alone: in the same region a pass without gradients would leave its casts of the weights to this one.
        bf16 = bool(self.model_config.get("bf16", False))
        with torch.autocast(batch[Columns.STATE_IN]["h"].device.type, torch.bfloat16, enabled=bf16):
            return {FORWARD_RESULT: self.forward_result(batch)}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch)

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        deterministic = bool(self.model_config.get("deterministic_inference", False))
        return self._act(batch, deterministic, self.network.config.play_temperature)

    def _act(self, batch: dict[str, Any], deterministic: bool = False, temperature: float = 1.0) -> dict[str, Any]:
        """One step; RLlib wants a time axis of length 1 on everything except the recurrent state."""
        state = batch[Columns.STATE_IN]
        obs = {name: leaf.squeeze(1) for name, leaf in batch[Columns.OBS].items()}
        hidden = (state["h"], state["c"])
        result = self.network.act(obs, hidden, deterministic=deterministic, temperature=temperature)
        h, c = result.hidden
        assert result.value is not None
        assert result.q_value is not None
        columns = _on_the_cpu(
            {
                Columns.ACTIONS: result.actions,
                Columns.ACTION_LOGP: result.log_prob,
                HEAD_LOG_PROBS: result.head_log_probs,
                Columns.VF_PREDS: result.value,
                Q_VALUE: result.q_value,
                STATE_NORMS: torch.stack([h.norm(dim=-1), c.norm(dim=-1)], dim=-1),
                "h": h,
                "c": c,
            }
        )
        state_out = {name: columns.pop(name) for name in ("h", "c")}
        return {
            **{name: column.unsqueeze(1) for name, column in columns.items()},
            Columns.STATE_OUT: state_out,
        }


def _on_the_cpu(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns ``[B, ...]`` as views of one tensor on the CPU, where RLlib would bring each by itself.

    A GPU is waited for once. Indices travel as float32, exact up to 2^24, and have their own type again afterwards.
    """
    rows = [column.reshape(len(column), -1).float() for column in columns.values()]
    parts = torch.cat(rows, dim=1).cpu().split([row.shape[1] for row in rows], dim=1)
    return {
        name: part.reshape(column.shape).to(column.dtype)
        for (name, column), part in zip(columns.items(), parts, strict=True)
    }
