import itertools
import math
from dataclasses import replace

import pytest
import torch

from envs.slots import SlotConfig
from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from esper_ray.errors import UserError
from esper_ray.learning.advantages import advantage_scale, advantage_streams, lambda_returns
from esper_ray.learning.diagnostics import alarms, minibatch_diagnostics, read
from esper_ray.learning.loss import Minibatch, clipped_surrogate, divergence, entropy_weights, ppo_loss
from policies.distribution import ActionTables, FactoredDistribution, masked_log_softmax
from policies.encoders import BlueprintEncoder
from policies.network import RecurrentPolicyNetwork
from policies.network_config import NetworkConfig
from policies.results import ActorCriticResult

torch.set_num_threads(1)
NO_HIDDEN = ()


def alone(value):
    return value


class Bandit:
    """A 6-op × 13-argument bandit whose policy has rational probabilities.

    Listing every action as often as its probability says makes a batch mean an exact expectation.
    """

    OPS = (4, 3, 2, 1, 1, 1)
    ARGUMENTS = (3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)

    def __init__(self):
        names = [str(index) for index in range(13)]
        self.heads = (
            HeadSpec("op", 6, tuple(names[:6]), tuple(range(6))),
            HeadSpec("argument", 13, tuple(names), tuple(range(6))),
        )
        self.tables = ActionTables(self.heads)
        generator = torch.Generator().manual_seed(0)
        self.rewards = torch.randn(6, 13, generator=generator) + torch.randn(6, 1, generator=generator)
        self.logits = [
            torch.tensor(self.OPS).float().log().reshape(1, 6).requires_grad_(),
            torch.tensor(self.ARGUMENTS).float().log().repeat(6, 1).requires_grad_(),
        ]
        self.actions = torch.tensor(
            [
                (op, argument)
                for op, argument in itertools.product(range(6), range(13))
                for _ in range(self.OPS[op] * self.ARGUMENTS[argument])
            ]
        )[None]

    def distribution(self):
        steps = self.actions.shape[:2]
        mask = torch.ones(*steps, 19, dtype=torch.int8)
        masks = self.tables.masks(mask)
        log_probs = tuple(
            masked_log_softmax(logits.expand(*steps, *logits.shape), mask)
            for logits, mask in zip(self.logits, masks, strict=True)
        )
        return FactoredDistribution(log_probs, masks, self.tables)

    def gradients(self, baseline):
        """Gradients of the loss at the rollout's policy, with the exact critic, and their variance."""
        joint = self.distribution()
        q_values = (joint.log_probs[1][0, 0].exp() * self.rewards).sum(-1).detach()
        value = (joint.op_log_probs[0, 0].exp() * q_values).sum().detach()
        ops, arguments = self.actions.unbind(-1)
        returns = self.rewards[ops, arguments]
        streams = advantage_streams(returns, value.expand_as(returns), q_values[ops], baseline)
        minibatch = Minibatch(
            self.actions,
            joint.log_prob(self.actions).detach(),
            streams,
            returns,
            torch.ones_like(ops, dtype=torch.bool),
        )
        steps = self.actions.shape[:2]
        output = ActorCriticResult(joint, NO_HIDDEN, value.expand(steps), q_values.expand(*steps, 6), torch.ones(()))
        terms = ppo_loss(output, minibatch, LearnerConfig(), torch.zeros(2), alone)
        gradients = torch.autograd.grad(terms.total, self.logits)
        probs = joint.log_probs[1][0, 0].detach().exp()[ops[0]]
        scores = torch.nn.functional.one_hot(arguments[0], 13) - probs
        return *gradients, (scores * streams[0, :, 1:]).var(dim=0).sum()

    def true_gradients(self):
        log_probs = [masked_log_softmax(logits, torch.tensor(True)).exp() for logits in self.logits]
        expected = (log_probs[0].squeeze(0).unsqueeze(-1) * log_probs[1] * self.rewards).sum()
        return torch.autograd.grad(expected, self.logits)


def test_factored_baseline_gives_the_true_gradient_and_the_op_baseline_starves_the_op():
    bandit = Bandit()
    true_op, true_argument = bandit.true_gradients()
    results = {baseline: bandit.gradients(baseline) for baseline in ("factored", "state", "op")}
    assert true_op.norm() > 0.2
    for baseline in ("factored", "state"):
        torch.testing.assert_close(-results[baseline][0], true_op, atol=1e-6, rtol=1e-4)
    assert results["op"][0].norm() < 1e-6
    for _, argument, _ in results.values():
        torch.testing.assert_close(-argument, true_argument, atol=1e-6, rtol=1e-4)
    assert results["factored"][2] < 0.8 * results["state"][2]
    assert results["factored"][2] == results["op"][2]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "pushes"),
    [(1.5, 1.0, 1.2, False), (1.5, -1.0, -1.5, True), (0.5, 1.0, 0.5, True), (0.5, -1.0, -0.8, False)],
)
def test_ratio_is_clipped_where_that_lowers_the_objective(ratio, advantage, expected, pushes):
    log_ratio = torch.full((1, 1, 1), math.log(ratio), requires_grad=True)
    true = torch.ones(1, 1, dtype=torch.bool)
    loss = clipped_surrogate(log_ratio, torch.full((1, 1, 2), advantage), true[..., None], 0.2, alone)
    loss.sum().backward()
    assert -loss.item() == pytest.approx(expected)
    assert (log_ratio.grad.abs().item() > 0) == pushes


def test_the_heads_losses_add_up_to_that_of_the_joint_action():
    torch.manual_seed(0)
    decided = torch.rand(2, 50, 3) < torch.tensor([0.6, 0.3, 0.05])
    decided[..., 1:] &= decided[..., :1]
    log_ratios = torch.zeros(2, 50, 3, requires_grad=True)
    advantages = torch.randn(2, 50, 1).expand(2, 50, 2)
    clipped_surrogate(log_ratios, advantages, decided, 0.2, alone).sum().backward()
    steps = decided[..., 0].sum()  # a forced step moves nothing and dilutes nothing
    torch.testing.assert_close(log_ratios.grad, -advantages[..., :1] * decided / steps)


def test_divergence_is_that_of_the_two_policies():
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    counts = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    log_ratios = (new / old).log()[counts].reshape(1, 10, 1)
    true = torch.ones(1, 10, dtype=torch.bool)
    exact = (old * (old / new).log()).sum().item()
    assert divergence(log_ratios, true, alone).item() == pytest.approx(exact, abs=1e-6)


HEADS = SlotConfig.for_row(3).heads


def network_and_batch(op, mask_value=1, padded=True):
    torch.manual_seed(0)
    network = RecurrentPolicyNetwork(HEADS, BlueprintEncoder(121, 3, 13, 4), NetworkConfig(16, 16, 8))
    obs = {
        "obs": torch.randn(2, 6, 121),
        "blueprint_indices": torch.randint(-1, 13, (2, 6, 3)),
        "action_mask": torch.full((2, 6, 56), mask_value, dtype=torch.int8),
    }
    real = torch.ones(2, 6, dtype=torch.bool)
    if padded:
        real[1, 3:] = False
        obs = {name: leaf.masked_fill(~real[..., None], 0) for name, leaf in obs.items()}
    actions = torch.zeros(2, 6, len(HEADS), dtype=torch.int64)
    actions[..., 0] = op
    output = network(obs, network.initial_hidden(2))
    old = output.distribution.log_prob(actions).detach()
    minibatch = Minibatch(actions, old, torch.randn(2, 6, 2), torch.randn(2, 6), real)
    return network, output, minibatch


def test_a_head_whose_ops_never_occur_still_gets_an_entropy_gradient():
    network, output, minibatch = network_and_batch(op=0)
    terms = ppo_loss(output, minibatch, LearnerConfig(), torch.ones(len(HEADS)), alone)
    terms.total.backward()
    assert terms.decided.sum(dim=(0, 1)).tolist() == [9] + [0] * 7
    for head in HEADS[1:]:
        gradient = network.heads[head.name].output.weight.grad
        assert gradient.norm() > 0, head.name
        touched = network.heads[head.name].op_embedding.grad.abs().sum(-1) > 0
        assert touched.tolist() == [op in head.needed_by for op in range(6)]
    shares = dict(zip([head.name for head in HEADS], terms.available_share.tolist(), strict=True))
    assert shares["op"] == 1
    assert shares["slot"] == 5
    assert shares["alpha_curve"] == 2


def test_without_the_entropy_bonus_such_a_head_gets_none():
    network, output, minibatch = network_and_batch(op=0)
    ppo_loss(output, minibatch, LearnerConfig(), torch.zeros(len(HEADS)), alone).total.backward()
    for head in HEADS[1:]:
        assert network.heads[head.name].output.weight.grad.norm() == 0
    assert network.heads["op"].output.weight.grad.norm() > 0


def op_gradient_and_critic(network, obs, actions, real, old, rewards):
    """Gradient of the policy loss in the op head, V, Q and G, with advantages from the network's own critic."""
    output = network(obs, network.initial_hidden(2))
    value, q_value = output.scaled_value.detach(), output.scaled_q_value(actions[..., 0]).detach()
    after = torch.cat([value, torch.zeros(2, 1)], dim=1)
    returns = lambda_returns(rewards, after, torch.zeros_like(real), real, gamma=0.9, gae_lambda=0.95)
    streams = advantage_streams(returns, value, q_value, "factored")
    streams = streams / advantage_scale(streams[..., 0], real, alone)
    terms = ppo_loss(
        output, Minibatch(actions, old, streams, returns, real), LearnerConfig(), torch.zeros(len(HEADS)), alone
    )
    gradient = torch.autograd.grad(terms.total, network.heads["op"].output.weight)[0]
    return gradient, value, output.scaled_q_values.detach(), returns


@pytest.mark.parametrize("of_the_op", [False, True])
def test_a_constant_added_to_the_op_stream_moves_at_most_q(of_the_op):
    torch.manual_seed(0)
    network, _, minibatch = network_and_batch(op=1, padded=False)
    obs = {
        "obs": torch.randn(2, 6, 121),
        "blueprint_indices": torch.randint(-1, 13, (2, 6, 3)),
        "action_mask": torch.ones(2, 6, 56, dtype=torch.int8),
    }
    actions = minibatch.actions.clone()
    actions[..., 0] = torch.randint(6, (2, 6))
    old = network(obs, network.initial_hidden(2)).distribution.log_prob(actions).detach()
    arguments = (obs, actions, torch.ones(2, 6, dtype=torch.bool), old, torch.randn(2, 6))
    before = op_gradient_and_critic(network, *arguments)
    with torch.no_grad():
        if of_the_op:
            network.op_stream[-1].bias += torch.arange(6.0)
        else:  # the same function of the state for every op
            network.op_stream[-1].weight += torch.randn(network.op_stream[-1].weight.shape[1])
            network.op_stream[-1].bias += 5.0
    after = op_gradient_and_critic(network, *arguments)
    for index, name in enumerate(("gradient", "value", "q_values", "returns")):
        if of_the_op and name == "q_values":
            assert (after[index] - before[index]).abs().max() > 1
        else:
            torch.testing.assert_close(after[index], before[index], atol=1e-5, rtol=1e-4, msg=name)
    assert before[0].norm() > 0


def test_the_ratio_of_the_action_is_the_product_of_its_heads_ratios():
    network, output, minibatch = network_and_batch(op=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        obs = {
            "obs": torch.randn(2, 6, 121),
            "blueprint_indices": torch.zeros(2, 6, 3, dtype=torch.int64),
            "action_mask": torch.ones(2, 6, 56, dtype=torch.int8),
        }
        moved = network(obs, network.initial_hidden(2))
    terms = ppo_loss(moved, minibatch, LearnerConfig(), torch.ones(len(HEADS)), alone)
    numbers = read(minibatch_diagnostics(HEADS, moved, minibatch, terms, clip=0.2))
    new, old = moved.distribution.log_prob(minibatch.actions), output.distribution.log_prob(minibatch.actions)
    real = minibatch.real
    joint = (new.sum(-1).exp() / old.sum(-1).exp())[real]
    torch.testing.assert_close((new.exp() / old.exp()).prod(-1)[real], joint)
    assert numbers["joint_ratio_mean"] == pytest.approx(joint.mean().item(), rel=1e-4)
    assert numbers["joint_ratio_max"] == pytest.approx(joint.max().item(), rel=1e-4)
    assert joint.std() > 0.01


def test_padding_changes_nothing():
    # The same real steps, with and without three padded ones behind them.
    _, output, minibatch = network_and_batch(op=1)
    weights = torch.ones(len(HEADS))
    cut = slice(0, 3)
    full = ppo_loss(output, minibatch, LearnerConfig(), weights, alone)
    joint = output.distribution

    def second(tensor):
        return torch.cat([tensor[1, cut]])[None]

    shorter = ActorCriticResult(
        FactoredDistribution(
            tuple(second(t) for t in joint.log_probs), tuple(second(m) for m in joint.masks), joint.tables
        ),
        NO_HIDDEN,
        second(output.scaled_value),
        second(output.scaled_q_values),
        output.return_scale,
    )
    padded = ActorCriticResult(
        FactoredDistribution(tuple(t[1:] for t in joint.log_probs), tuple(m[1:] for m in joint.masks), joint.tables),
        NO_HIDDEN,
        output.scaled_value[1:],
        output.scaled_q_values[1:],
        output.return_scale,
    )
    fields = [getattr(minibatch, name) for name in ("actions", "old_log_probs", "advantages", "scaled_returns", "real")]
    terms = [
        ppo_loss(padded, Minibatch(*(f[1:] for f in fields)), LearnerConfig(), weights, alone),
        ppo_loss(shorter, Minibatch(*(second(f) for f in fields)), LearnerConfig(), weights, alone),
    ]
    for name in ("total", "policy", "entropy", "value", "q_value", "kl"):
        torch.testing.assert_close(getattr(terms[0], name), getattr(terms[1], name))
    assert full.total.isfinite()


@pytest.mark.parametrize(("baseline", "of_v"), [("factored", 1.0), ("state", 1.0), ("op", 0.0)])
def test_the_op_baseline_regresses_the_critic_at_the_op_taken_alone(baseline, of_v):
    _, output, minibatch = network_and_batch(op=1)
    learner, none = LearnerConfig(critic_baseline=baseline, value_loss_coeff=0.5), torch.zeros(len(HEADS))
    terms = ppo_loss(output, minibatch, learner, none, alone)
    assert min(terms.value, terms.q_value) > 0
    assert (terms.total - terms.policy.sum()).item() == pytest.approx(
        0.5 * (of_v * terms.value + terms.q_value).item(), rel=1e-5
    )
    # A critic that does not look at the op has V alone, with any baseline.
    plain = ppo_loss(replace(output, scaled_q_values=None), minibatch, learner, none, alone)
    assert (plain.total - plain.policy.sum()).item() == pytest.approx(0.5 * plain.value.item(), rel=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_two_learners_together_follow_the_gradient_of_the_undivided_minibatch(sparse):
    network, output, minibatch = network_and_batch(op=2)
    if sparse:
        # A single step needs the arguments, so that each learner's share of it is half a step.
        minibatch.actions[..., 0] = 0
        minibatch.actions[0, 0, 0] = 2
    weights = torch.ones(len(HEADS))

    def part(tensor, learner):
        return tensor if learner is None else tensor[learner : learner + 1]

    def loss(learner, average):
        joint = output.distribution
        tables, masks = (tuple(part(t, learner) for t in ts) for ts in (joint.log_probs, joint.masks))
        values = (part(output.scaled_value, learner), part(output.scaled_q_values, learner))
        names = ("actions", "old_log_probs", "advantages", "scaled_returns", "real")
        batch = Minibatch(*(part(getattr(minibatch, name), learner) for name in names))
        joint = FactoredDistribution(tables, masks, joint.tables)
        result = ActorCriticResult(joint, NO_HIDDEN, *values, torch.ones(()))
        return ppo_loss(result, batch, LearnerConfig(), weights, average)

    def gradient(total):
        return torch.autograd.grad(total, network.feature_net[0].weight, retain_graph=True)[0]

    # First let each learner tell what it would send, in order; then answer with the averages.
    sent = [[], []]
    for learner in (0, 1):
        loss(learner, lambda values, learner=learner: sent[learner].append(values) or values)
    averages = [torch.stack(pair).mean(dim=0) for pair in zip(*sent, strict=True)]
    answers = [iter(averages), iter(averages)]
    terms = [loss(learner, lambda _, learner=learner: next(answers[learner])) for learner in (0, 1)]
    whole = loss(None, alone)
    torch.testing.assert_close((gradient(terms[0].total) + gradient(terms[1].total)) / 2, gradient(whole.total))
    assert terms[0].kl == terms[1].kl == whole.kl


def test_nothing_real_or_nothing_admitted_stays_finite():
    network, output, minibatch = network_and_batch(op=0, mask_value=0)
    nothing = Minibatch(
        minibatch.actions,
        minibatch.old_log_probs,
        minibatch.advantages,
        minibatch.scaled_returns,
        torch.zeros_like(minibatch.real),
    )
    for batch in (minibatch, nothing):
        terms = ppo_loss(output, batch, LearnerConfig(), torch.ones(len(HEADS)), alone)
        terms.total.backward(retain_graph=True)
        assert terms.total.isfinite()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        assert terms.entropy.eq(0).all()


def test_diagnostics_of_an_unchanged_policy():
    _, output, minibatch = network_and_batch(op=1)
    terms = ppo_loss(output, minibatch, LearnerConfig(), torch.ones(len(HEADS)), alone)
    numbers = read(minibatch_diagnostics(HEADS, output, minibatch, terms, clip=0.2))
    assert numbers["kl"] == 0
    assert numbers["joint_ratio_max"] == 1
    assert numbers["forced_share"] == 0
    assert numbers["decided_share/blueprint"] == 1
    assert numbers["decided_share/alpha_speed"] == 0
    assert math.isnan(numbers["ratio_mean/alpha_speed"])
    assert math.isnan(numbers["advantage_mean/WAIT"])
    assert not math.isnan(numbers["entropy_available/alpha_speed"])
    assert numbers["value_nrmse"] == pytest.approx(terms.value.sqrt().item())
    assert alarms(numbers) == {
        "alarm/low_entropy": 0,
        "alarm/high_ratio": 0,
        "alarm/low_q_spread": int(numbers["q_spread"] < 0.01),
    }


def test_alarms_ring():
    numbers = {"entropy_available/op": 0.05, "entropy_available/slot": 0.5, "ratio_max/op": 11.0, "q_spread": 0.0}
    assert alarms(numbers) == {
        "alarm/low_entropy": 1,
        "alarm/high_ratio": 1,
        "alarm/low_q_spread": 1,
    }


def test_entropy_weights_are_the_heads_own_unless_the_settings_say_otherwise():
    names = [head.name for head in HEADS]
    own = entropy_weights(LearnerConfig(entropy_coeff=0.1), HEADS)
    assert dict(zip(names, own, strict=True))["blueprint"] == pytest.approx(0.13)
    assert own == pytest.approx([0.1 * head.entropy_coefficient for head in HEADS])
    changed = entropy_weights(LearnerConfig(entropy_coeff=0.1, entropy_multipliers={"slot": 3.0}), HEADS)
    assert changed == pytest.approx(
        [0.3 if name == "slot" else weight for name, weight in zip(names, own, strict=True)]
    )
    with pytest.raises(ValueError, match=r"\['turn'\], but the heads are op, slot"):
        entropy_weights(LearnerConfig(entropy_multipliers={"turn": 1.0}), HEADS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr_final", 1.1),
        ("entropy_final", -0.1),
        ("clip", -0.1),
        ("kl_stop", 0.0),
        ("gamma", 1.1),
        ("gae_lambda", -0.1),
        ("num_epochs", 0),
        ("minibatches", 0),
        ("entropy_coeff", -1.0),
        ("critic_baseline", "q"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(field, value):
    with pytest.raises(UserError, match=f"{field}.* must be .* got {value!r}"):
        LearnerConfig(**{field: value})
