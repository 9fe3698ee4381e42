"""Small networks of every kind in somebody's loop, and policies that follow a script, for the tests of live hosts."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp
from esper_ray.live import grow
from policies.rule import RulePolicy
from tests.envs.helpers import EAGER, WAIT, act, random_valid_action

CLASSES, SAMPLES, BATCH, TOKENS, LENGTH = 4, 24, 8, 11, 5


class Encoder(nn.Module):
    """Torch's own transformer layers over tokens."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.embed = nn.Embedding(TOKENS, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, tokens):
        return self.out(self.encoder(self.embed(tokens)).mean(1))


def _cnn():
    """Batch norm, dropout, and a ReLU in place right behind a slot."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def _mlp():
    return nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def _images(generator):
    return torch.randn(SAMPLES, 1, 6, 6, generator=generator)


def _tokens(generator):
    return torch.randint(0, TOKENS, (SAMPLES, LENGTH), generator=generator)


def _vectors(generator):
    return torch.randn(SAMPLES, 6, generator=generator)


NETWORKS = {
    "cnn": (_cnn, _images, ("1", "4")),
    "channels_last": (lambda: _cnn().to(memory_format=torch.channels_last), _images, ("1", "4")),
    "transformer": (Encoder, _tokens, ("encoder.layers.0", "encoder.layers.1")),
    "mlp": (_mlp, _vectors, ("0", "2")),
}
"""Model, data, slots."""
SHORT = 0.01
"""Norm to which a loop clips, below any that these networks have."""
TOPOLOGY = {"cnn": "cnn", "channels_last": "cnn", "transformer": "transformer", "mlp": "mlp"}

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "SGD foreach": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "Adam foreach": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True, foreach=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=False),
    "AdamW fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


class Loop:
    """A model in somebody's training loop.

    Args:
        network: One of ``NETWORKS``.
        optimizer: One of ``OPTIMIZERS``.
        closure: Whether the optimiser is stepped with a closure.
        clip: Whether the loop clips the gradient of ``model.parameters()``, so far that it always bites.
    """

    def __init__(self, network, optimizer="SGD", closure=False, clip=False, seed=0):
        build, data, self.slots = NETWORKS[network]
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.model = build()
        self.x, self.y = data(generator), torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        self.held_out = data(generator), torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.closure, self.clip = closure, clip

    def grow(self, policy, **settings):
        settings = {"max_epochs": 40, "counterfactual_interval": 2, "parameter_budget": 10**6} | settings
        return grow(
            self.model,
            self.optimizer,
            self.slots,
            example=self.x[:3],
            evaluate=self.evaluate,
            policy=policy,
            **settings,
        )

    def evaluate(self):
        x, y = self.held_out
        logits = self.model(x)
        return F.cross_entropy(logits, y).item(), 100.0 * (logits.argmax(1) == y).float().mean().item()

    def epoch(self):
        self.model.train()
        for index in torch.randperm(SAMPLES).split(BATCH):
            step = self._closing(index)
            if self.closure:
                self.optimizer.step(step)
            else:
                step()
                self.optimizer.step()

    def _closing(self, index):
        def step():
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.x[index]), self.y[index])
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), SHORT)
            return loss

        return step

    def own_state(self):
        """Copies of the host's tensors and of its optimiser state, by name; nothing of what has grown."""
        tensors = {f"model.{name}": value for name, value in own_state_dict(self.model).items()}
        for name, parameter in self.model.named_parameters():
            if not name.startswith("growth."):
                state = self.optimizer.state.get(parameter, {})
                tensors |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in state.items()}
        return copy.deepcopy(tensors)


def own_state_dict(model):
    return {name: value for name, value in model.state_dict().items() if not name.startswith("growth.")}


def same(left, right):
    """Whether two nests of dicts and lists hold the same, tensors bit for bit."""
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(_bits(left), _bits(right))
    return left == right or (left != left and right != right)  # NaN is as good as NaN


def _bits(tensor):
    kinds = {torch.float32: torch.int32, torch.float64: torch.int64}
    return tensor.contiguous().view(kinds[tensor.dtype]) if tensor.dtype in kinds else tensor


class Script(RulePolicy):
    """Does what a plan says: epochs done → action."""

    def __init__(self, plan, num_slots=2, max_epochs=40, internal_levels=False):
        super().__init__(SlotConfig.for_row(num_slots, internal_levels))
        self._plan, self._max_epochs = plan, max_epochs

    def choices(self, observations, memory):
        epoch = round(float(self._layout.base(observations["obs"], "epoch")[0]) * self._max_epochs)
        return self.certain(self._plan.get(epoch, WAIT)[None])


class Eager(RulePolicy):
    """Draws admitted actions so that seeds get through all stages; remembers how often it drew."""

    def __init__(self, seed, num_slots=2, internal_levels=False, op_weights=EAGER):
        super().__init__(SlotConfig.for_row(num_slots, internal_levels))
        self._seed, self._weights = seed, op_weights

    @property
    def hidden_dim(self):
        return 1

    def choices(self, observations, memory):
        rng = np.random.default_rng([self._seed, int(memory[0, 0])])
        action = random_valid_action(observations["action_mask"][0], self._heads, rng, self._weights)
        return self.certain(np.array([action]))

    def remember(self, observations, memory, actions):
        return memory + 1.0


def prune(slot=0, **heads):
    return act(LifecycleOp.PRUNE, slot, **heads)


def retarget(slot=0, **heads):
    return act(LifecycleOp.SET_ALPHA_TARGET, slot, **heads)
