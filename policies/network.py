"""The recurrent actor-critic: feature net, LSTM, one head per part of the action, op-conditioned critic.

Plain torch, without RLlib. Everything is derived from a list of heads and an encoder of the
observation: the same code makes a policy with eight heads for a host with slots and one with a single head for a
cart and its pole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from envs.action_masks import mask_size
from envs.vocabulary import HeadSpec
from policies.distribution import ActionTables, FactoredDistribution, masked_log_softmax
from policies.encoders import ObservationEncoder
from policies.network_config import NetworkConfig
from policies.normalisers import Normalisers
from policies.policy_network import PolicyNetwork
from policies.results import ActorCriticResult, HiddenState
from policies.return_scale import ReturnScale


def _linear(inputs: int, outputs: int, gain: float = math.sqrt(2.0)) -> nn.Linear:
    """A linear layer with orthogonal weights and no bias at the start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _initialise_lstm(lstm: nn.LSTM) -> None:
    """Orthogonal gates; forget bias 1, so that early gradients reach back (Jozefowicz et al., 2015)."""
    width = lstm.hidden_size
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight"):
                for gate in parameter.chunk(4):
                    nn.init.orthogonal_(gate)
            else:
                parameter.zero_()
                if name == "bias_ih_l0":
                    parameter[width : 2 * width] = 1.0


def _critic_stream(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, width), nn.ReLU(), _linear(width, outputs, gain=0.1))


class ActionHead(nn.Module):
    """Logits of one part of the action, in one pass for all ops that need it.

    An argument head adds a learned vector per op before its first nonlinearity. The vectors start at zero: at
    first an argument looks the same to every op.

    Args:
        inputs: Width of the features.
        widths: Hidden widths, at least one.
        outputs: Number of choices.
        num_ops: Rows of the op embedding, or None for the op head itself.
        needed_by: Ops whose rows are computed.
    """

    needed_by: Tensor

    def __init__(
        self, inputs: int, widths: Sequence[int], outputs: int, num_ops: int | None, needed_by: Sequence[int]
    ) -> None:
        super().__init__()
        self.first = _linear(inputs, widths[0])
        self.op_embedding = None if num_ops is None else nn.Parameter(torch.zeros(num_ops, widths[0]))
        self.register_buffer("needed_by", torch.tensor(needed_by, dtype=torch.int64), persistent=False)
        layers: list[nn.Module] = [nn.ReLU()]
        for before, after in itertools.pairwise(widths):
            layers += [_linear(before, after), nn.ReLU()]
        self.rest = nn.Sequential(*layers)
        self.output = _linear(widths[-1], outputs, gain=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[..., K, outputs]`` of features ``[..., inputs]``, a row per op that needs this head."""
        hidden: Tensor = self.first(features).unsqueeze(-2)
        if self.op_embedding is not None:
            hidden = hidden + self.op_embedding.index_select(0, self.needed_by)
        logits: Tensor = self.output(self.rest(hidden))
        return logits


def op_bias(ops: Sequence[str], logits: Mapping[str, float]) -> Tensor:
    """The logits that ops start with, ``[len(ops)]``: those named, 0 for the others.

    Raises:
        ValueError: a name that is no op's.
    """
    unknown = set(logits) - set(ops)
    if unknown:
        raise ValueError(f"network op_bias names {sorted(unknown)}, but the ops are {', '.join(ops)}")
    return torch.tensor([float(logits.get(op, 0.0)) for op in ops])


class RecurrentPolicyNetwork(PolicyNetwork):
    """Recurrent policy over a factored action, with a critic that knows the op.

    With a single head there are no arguments to judge, so the critic is v(s) alone: plain recurrent PPO.

    Observations are mappings with the leaves that the encoder reads and, unless every action is always admitted,
    ``action_mask`` ``[..., mask_size(heads)]``.

    Args:
        heads: Parts of the action, op first.
        encoder: Reads an observation.
        config: Widths and the like.
        num_worlds: Worlds that it is trained in, each with a scale of returns of its own.
    """

    def __init__(
        self, heads: Sequence[HeadSpec], encoder: ObservationEncoder, config: NetworkConfig, num_worlds: int = 1
    ) -> None:
        super().__init__()
        self.head_specs = tuple(heads)
        self.config = config
        self.encoder = encoder
        num_ops = heads[0].size
        self.feature_net = nn.Sequential(
            _linear(encoder.width, config.feature_dim),
            nn.LayerNorm(config.feature_dim),
            nn.ReLU(),
        )
        self.lstm = None
        if config.memory:
            self.lstm = nn.LSTM(config.feature_dim, config.hidden_dim, batch_first=True)
            _initialise_lstm(self.lstm)
        width = config.hidden_dim if config.memory else config.feature_dim
        self.lstm_norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict(
            {
                head.name: ActionHead(
                    width,
                    (2 * config.head_dim, config.head_dim // 2)
                    if head.name in config.deep_heads
                    else (config.head_dim,),
                    head.size,
                    None if head is heads[0] else num_ops,
                    head.needed_by,
                )
                for head in heads
            }
        )
        op_head = self.heads[heads[0].name]
        assert isinstance(op_head, ActionHead)
        with torch.no_grad():
            op_head.output.bias.copy_(op_bias(heads[0].choices, config.op_bias))
        self.state_stream = _critic_stream(width, config.head_dim, 1)
        self.op_stream = _critic_stream(width, config.head_dim, num_ops) if len(heads) > 1 else None
        self.return_scale = ReturnScale(num_worlds)
        self.normalisers = Normalisers(encoder.scale, self.return_scale, encoder.scale.sums)
        self.tables = ActionTables(heads)

    @property
    def hidden_dim(self) -> int:
        """Width of the LSTM; 0 without one."""
        return self.config.hidden_dim if self.config.memory else 0

    def forward(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> ActorCriticResult:
        """See :meth:`PolicyNetwork.forward`."""
        features, hidden = self._features(obs, hidden)
        masks = self.tables.masks(self._action_mask(obs, features))
        log_probs = tuple(
            masked_log_softmax(head(features), mask) for head, mask in zip(self.heads.values(), masks, strict=True)
        )
        distribution = FactoredDistribution(log_probs, masks, self.tables)
        value = self.state_stream(features).squeeze(-1).float()
        q_values = self._q_values(features, value, distribution)
        return ActorCriticResult(distribution, hidden, value, q_values, self.return_scale.of(obs))

    def _features(self, obs: Mapping[str, Tensor], hidden: HiddenState) -> tuple[Tensor, HiddenState]:
        """What heads and critic read, ``[B, T, width]``, and the state after the last step."""
        inputs = self.feature_net(self.encoder(obs))
        if self.lstm is None:
            return self.lstm_norm(inputs), hidden
        h, c = hidden
        outputs, (h, c) = self.lstm(inputs, (h.unsqueeze(0), c.unsqueeze(0)))
        return self.lstm_norm(outputs), (h.squeeze(0), c.squeeze(0))

    def _q_values(self, features: Tensor, value: Tensor, distribution: FactoredDistribution) -> Tensor | None:
        """Q(s, op) ``[B, T, num_ops]`` in the units of ``value``, shifted so that its mean under the policy is that."""
        if self.op_stream is None:
            return None
        advantages = self.op_stream(features).float()
        # The policy only weighs here. Detached, or the critic's error would push the actor.
        probs = distribution.op_log_probs.detach().exp()
        mean_advantage = (probs * advantages).sum(dim=-1, keepdim=True)
        return value.unsqueeze(-1) + advantages - mean_advantage

    def _action_mask(self, obs: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """The observation's flat mask; all ones if it has none."""
        if "action_mask" in obs:
            return obs["action_mask"]
        return features.new_ones(*features.shape[:-1], mask_size(self.head_specs), dtype=torch.bool)
