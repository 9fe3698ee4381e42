"""Small hosts of the members-first topologies, for the tests of hosts, seeds and whole episodes."""

import itertools
from dataclasses import replace

import numpy as np
import torch

from envs.batched.activations import SEQUENCES, VECTORS
from envs.blueprints import blueprints_for
from envs.hosts.mlp import MlpHost, MlpVariant
from envs.hosts.transformer import TransformerHost, TransformerVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.population.bank import SeedBank
from envs.population.blending import SeedRun
from envs.slots import SlotConfig
from envs.tasks import Split, make_task
from envs.vocabulary import Blueprint

FEATUREWISE = (Blueprint.NORM, Blueprint.LORA, Blueprint.LORA_LARGE, Blueprint.MLP_SMALL, Blueprint.MLP)
BLUEPRINTS = {
    "transformer": (*FEATUREWISE, Blueprint.ATTENTION, Blueprint.FLEX_ATTENTION),
    "mlp": FEATUREWISE,
}
LAYOUTS = {"transformer": SEQUENCES, "mlp": VECTORS}
CASES = [(topology, blueprint) for topology, blueprints in BLUEPRINTS.items() for blueprint in blueprints]
CASE_IDS = [f"{topology}-{blueprint.name}" for topology, blueprint in CASES]
STYLES = {"ADD": 0, "MULTIPLY": 1, "GATE": 3}

TINY_TRANSFORMER = TransformerVariant(8, 2, layers=(1, 2), hidden=(8, 4), attends=(True, False))
TINY_MLP = MlpVariant(width=4, hidden=(3, 2))
MEMBERS, CONTEXT, VOCABULARY = 3, 12, 11


def transformer_of(variant=TINY_TRANSFORMER):
    return TransformerHost(variant, VOCABULARY, CONTEXT)


def task_of(topology, variants=None, batches=2, samples=64, **changes):
    """A task on a part of the real data whose epochs are cheap."""
    base = make_task({"transformer": "text", "mlp": "tabular"}[topology])
    splits = {name: Split(split.x[:samples], split.y[:samples]) for name, split in base.splits.items()}
    if topology == "transformer":
        variants = variants or (TINY_TRANSFORMER,)
        splits = {name: Split(split.x[:, :CONTEXT], split.y[:, :CONTEXT]) for name, split in splits.items()}
        host = TransformerHost(TransformerVariant.widest(variants), base.num_classes, CONTEXT)
    else:
        variants = variants or (TINY_MLP,)
        host = MlpHost(MlpVariant.widest(variants), base.host.num_inputs, base.num_classes)
    return replace(
        base,
        name=f"tiny_{topology}",
        host=host,
        variants=variants,
        slots=SlotConfig.for_row(2),
        splits=splits,
        batch_size=8,
        batches_per_epoch=batches,
        **changes,
    )


def env_of(topology, num_envs, variants=None, task_changes=None, **settings):
    settings = {"max_epochs": 20, "parameter_budget": 10**9} | settings
    return MorphogenesisVectorEnv(num_envs, task=task_of(topology, variants, **(task_changes or {})), **settings)


def cells_of(topology):
    """Every blueprint with every style, alternating between the two slots."""
    pairs = itertools.product(BLUEPRINTS[topology], STYLES.values())
    return [(blueprint, style, index % 2) for index, (blueprint, style) in enumerate(pairs)]


def activation(topology, width=8, seed=0, batch=6):
    """What a host hands to a slot; like a host's it takes a gradient."""
    shape = (MEMBERS, batch, CONTEXT, width) if topology == "transformer" else (MEMBERS, batch, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def seeds_at_birth(topology, blueprint, width=8, seed=0, noise=0.0):
    bank = SeedBank.create(blueprints_for(topology)[blueprint], 0, width, torch.device("cpu"))
    rng = np.random.default_rng(seed)
    flat = torch.from_numpy(np.stack([bank.layout.draw(bank.layout.specs, rng) for _ in range(MEMBERS)]))
    return bank.layout, flat + noise * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))


def run_of(topology, blueprint, layout, flat, algorithm, alpha, incubating=False, attached=False):
    every = torch.ones(MEMBERS, dtype=torch.bool)
    amplitude = torch.full((MEMBERS,), alpha)
    return SeedRun(
        slot=0,
        module=blueprints_for(topology)[blueprint],
        layout=layout,
        flat=flat,
        members=torch.arange(MEMBERS),
        alpha=torch.zeros(MEMBERS) if incubating else amplitude,
        gradient_weight=torch.ones(MEMBERS) if incubating else amplitude,
        attached=every & attached,
        incubating=every & incubating,
        multiplies=every & (algorithm == "MULTIPLY"),
        gated=every & (algorithm == "GATE"),
        present=None,
    )
