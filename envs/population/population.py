"""N hosts and their seeds, trained together.

The population owns weights and data and nothing else: what a slot's stage means for values and gradients comes in
as arrays of the lifecycle. No method loops over members, but for drawing fresh weights and batch orders of the
members concerned at a reset or a germination.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.parameters import ParameterLayout
from envs.blueprints import blueprints_for
from envs.episode_state import EpisodeState
from envs.hosts.base import Observe
from envs.lifecycle import Lifecycle
from envs.limits import ParameterCosts
from envs.measurements import SeedGradients
from envs.population.bank import SeedBank
from envs.population.blending import SeedRun, SlotSeeds, gate_parameters
from envs.population.capture import Repeater
from envs.population.evaluation import Prefixes, SharedForward, loss_and_hits, number_of_chunks, share_prefixes
from envs.population.flops import FORWARDS_PER_TRAINING_STEP, variant_flops
from envs.population.optimizer import EpochOptimizer, Part, TrainedRows
from envs.population.record import EpochMotion, EpochRecord
from envs.population.training import TrainingData, TrainingEpoch
from envs.population.variants import VariantTables
from envs.seeding import HostChance
from envs.tasks.base import SplitName, Task
from envs.vocabulary import AlphaAlgorithm, Blueprint, SeedStage

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def draw_variant(task: Task, generator: np.random.Generator) -> int:
    """Index of an episode's host variant: the first thing that is drawn."""
    return int(generator.integers(len(task.variants)))


class Population(EpisodeState):
    """Weights, optimiser state, batch orders and data of ``num_members`` hosts.

    Args:
        task: Data and host.
        num_members: N.
        max_epochs: Epochs of an episode; the learning rate's schedule and the batch order span them.
        device: Where hosts live.
        chance: Of each host.

    Attributes:
        variant: ``[N]`` index of each host's variant.
        lr_factor: ``[N]`` how much faster than the task's rate each host learns.
        training_flops: ``[N]`` FLOPs spent on each host since it was drawn: training, and evaluations that are part
            of it (see ``envs.population.flops``). What several evaluations of a host share is computed, and counts,
            once; what is computed for padding alone does not count.
        evaluation_flops: ``[N]`` of these, what evaluations took: nobody needs them who does not look.
        repeater: Takes an epoch's steps.
    """

    def __init__(self, task: Task, num_members: int, max_epochs: int, device: torch.device, chance: HostChance) -> None:
        self.task, self.num_members, self.max_epochs, self.device = task, num_members, max_epochs, device
        task.check_data()
        self._data = {name: (split.x.to(device), split.y.to(device)) for name, split in task.splits.items()}
        host = task.host
        self.layout = ParameterLayout(host.parameters(host.widest))
        self.flat = torch.zeros(num_members, self.layout.size, device=device)
        self.momentum = torch.zeros_like(self.flat)
        self.buffers = {
            name: torch.zeros(num_members, *spec.shape, device=device)
            for name, spec in host.buffers(host.widest).items()
        }
        self.modules = blueprints_for(host.topology, task.slots.blueprints)
        self.banks: dict[tuple[int, Blueprint], SeedBank] = {}
        self.variant = np.zeros(num_members, np.int64)
        self.lr_factor = np.ones(num_members, np.float32)
        shape = (num_members, max_epochs, task.batches_per_epoch, task.batch_size)
        self._order = np.zeros(shape, np.int32)
        self._augmentation = np.zeros(shape, np.int32)  # stays 0, and unread, where the task augments nothing
        self._chance = chance
        self._rates = np.array([task.learning_rate(epoch / max_epochs) for epoch in range(max_epochs)], np.float32)
        self._tables = VariantTables(task, self.modules, self.layout, device)
        self._flops_of_variants = variant_flops(task, self.modules)
        self._flops = self._flops_of_variants.rows(self.variant)
        self.training_flops = np.zeros(num_members, np.int64)
        self.evaluation_flops = np.zeros(num_members, np.int64)
        self.repeater = Repeater(device)

    # ------------------------------------------------------------------ membership
    @property
    def costs(self) -> ParameterCosts:
        """Parameter counts of the hosts at hand."""
        return self._tables.costs(self.variant)

    def marked(self, members: IntArray) -> BoolArray:
        """``[N]`` True for these members."""
        chosen = np.zeros(self.num_members, bool)
        chosen[members] = True
        return chosen

    def start(self, members: IntArray) -> None:
        """Draw fresh hosts: variant, rate, weights, the episode's batch order, its augmentation; no seed is left."""
        host, task = self.task.host, self.task
        for bank in self.banks.values():
            bank.drop(self.marked(members))
        for member in members:
            generator = self._chance.of(member)
            variant = draw_variant(task, generator)
            self.variant[member] = variant
            if task.lr_spread > 1.0:
                self.lr_factor[member] = task.lr_spread ** generator.uniform(-1.0, 1.0)
            row = self.layout.draw(host.parameters(task.variants[variant]), generator)
            self.flat[member] = torch.from_numpy(row).to(self.device)
            self._order[member] = self._draw_order(generator)
            if task.augment is not None:
                self._augmentation[member] = task.augment.draw(generator, self._augmentation.shape[1:])
        index = torch.from_numpy(members).to(self.device)
        self.momentum[index] = 0.0
        self._flops = self._flops_of_variants.rows(self.variant)
        self.training_flops[members] = self.evaluation_flops[members] = 0
        for name, spec in host.buffers(host.widest).items():
            start = spec.draw(np.random.default_rng(0))  # running statistics start at constants
            self.buffers[name][index] = torch.from_numpy(start).to(self.device)

    def batches(self, member: int, epoch: int) -> IntArray:
        """Samples of a host's mini-batches in an epoch, ``[batches_per_epoch, batch_size]``."""
        return self._order[member, epoch].astype(np.int64)

    def _draw_order(self, generator: np.random.Generator) -> npt.NDArray[np.int32]:
        """Sample indices of a whole episode: one random pass over the training set after another."""
        samples = len(self._data["train"][1])
        shape = self._order.shape[1:]
        needed = int(np.prod(shape))
        passes = [generator.permutation(samples) for _ in range(-(-needed // samples))]
        return np.concatenate(passes)[:needed].astype(np.int32).reshape(shape)

    def sync(self, lifecycle: Lifecycle) -> None:
        """Make the banks hold exactly the seeds that the lifecycle says have weights."""
        computing, gated = lifecycle.computing, lifecycle.algorithm == AlphaAlgorithm.GATE
        levels = lifecycle.internal_level
        used = {
            (slot, Blueprint(int(blueprint)))
            for slot in range(computing.shape[1])
            for blueprint in np.unique(lifecycle.blueprint[computing[:, slot], slot])
        }
        for slot, blueprint in sorted(used | self.banks.keys()):
            wanted = computing[:, slot] & (lifecycle.blueprint[:, slot] == blueprint)
            self.bank(slot, blueprint).sync(wanted, gated[:, slot], levels[:, slot], self._draw_seed)
        # In a fixed order, whoever germinated first: the order of sums must not depend on former episodes.
        self.banks = {key: bank for key, bank in sorted(self.banks.items()) if len(bank.rows.members)}

    def bank(self, slot: int, blueprint: Blueprint) -> SeedBank:
        """The bank of one blueprint in one slot; an empty one if nobody has that seed."""
        key = (slot, blueprint)
        if key not in self.banks:
            width = self.task.host.slot_width(self.task.host.widest, slot)
            self.banks[key] = SeedBank.create(self.modules[blueprint], slot, width, self.device)
        return self.banks[key]

    def _draw_seed(self, bank: SeedBank, member: int) -> npt.NDArray[np.float32]:
        width = self.task.host.slot_width(self.task.variants[self.variant[member]], bank.slot)
        return bank.layout.draw(bank.module.parameters(width) | gate_parameters(width), self._chance.of(member))

    def forward_flops(self, lifecycle: Lifecycle) -> IntArray:
        """FLOPs of one sample's forward through each host with all its seeds that have weights, ``[N]``."""
        return self._flops.host + np.where(lifecycle.computing, lifecycle.seed_costs(self._flops), 0).sum(axis=1)

    def never_grown_flops(self, epochs: IntArray) -> IntArray:
        """What each host would have cost, as ``training_flops`` counts, had nothing grown in it, ``[N]``.

        That is its training and an evaluation per epoch, and the evaluation before the first.

        Args:
            epochs: ``[N]`` epochs done.
        """
        trained = FORWARDS_PER_TRAINING_STEP * self._samples_per_epoch * epochs
        return (trained + len(self._data["validation"][1]) * (epochs + 1)) * self._flops.host

    @property
    def _samples_per_epoch(self) -> int:
        return self.task.batches_per_epoch * self.task.batch_size

    # ------------------------------------------------------------------ training
    def train_epoch(self, epoch: IntArray, lifecycle: Lifecycle) -> SeedGradients:
        """Train every host and every seed in TRAINING to FOSSILIZED for one epoch.

        Args:
            epoch: ``[N]`` epochs done in each member's episode, which is the index of the one to train.
            lifecycle: Stages and alphas during this epoch; the banks must be in sync with it.
        """
        return self._train(epoch, lifecycle, None)

    def train_recorded(self, epoch: IntArray, lifecycle: Lifecycle) -> tuple[SeedGradients, EpochMotion]:
        """:meth:`train_epoch`, and what it did to hosts and seeds. Neither learns anything else by being watched."""
        record = EpochRecord(self._trained_hosts(epoch))
        banks = [bank for bank in self.banks.values() if len(bank.rows.members)]
        before = [bank.rows.flat.clone() for bank in banks]
        gradients = self._train(epoch, lifecycle, record)
        change = np.full((self.num_members, self.task.slots.num_slots), np.nan)
        for bank, flat in zip(banks, before, strict=True):
            change[bank.rows.members, bank.slot] = bank.relative_change(flat)
        return gradients, EpochMotion(record.read(), change)

    def _train(self, epoch: IntArray, lifecycle: Lifecycle, record: EpochRecord | None) -> SeedGradients:
        banks = self._banks_by_slot()
        seeds = {
            slot: SlotSeeds([self._training_run(bank, lifecycle) for bank in of_slot])
            for slot, of_slot in banks.items()
        }
        optimizer = self._optimizer(epoch, banks, seeds)
        names, batches = list(self.layout.specs), self._mini_batches(np.minimum(epoch, self.max_epochs - 1))
        training = TrainingEpoch(self.task.host, names, self.buffers, seeds, optimizer, batches, record)
        training.run(self.repeater)
        self.training_flops += FORWARDS_PER_TRAINING_STEP * self._samples_per_epoch * self.forward_flops(lifecycle)
        return self._gradients([bank for of_slot in banks.values() for bank in of_slot], optimizer)

    def _mini_batches(self, epoch: IntArray) -> TrainingData:
        everybody = np.arange(self.num_members)
        order = self._order[everybody, epoch].swapaxes(0, 1).astype(np.int64)
        changes = self._augmentation[everybody, epoch].swapaxes(0, 1)
        return TrainingData(*self._data["train"], self._to_device(order), self._to_device(changes), self.task.augment)

    def _optimizer(
        self, epoch: IntArray, banks: dict[int, list[SeedBank]], seeds: dict[int, SlotSeeds]
    ) -> EpochOptimizer:
        """Of all hosts, and of all seeds slot by slot."""
        hosts = self._trained_hosts(epoch)
        groups = [hosts]
        leaves: list[list[Part]] = [[(0, name)] for name in self.layout.specs]
        for slot, of_slot in seeds.items():
            leaves += [[(len(groups) + run, name) for run, name in parts] for parts in of_slot.parts]
            groups += [bank.trained(hosts.lr) for bank in banks[slot]]
        return EpochOptimizer(groups, leaves)

    def _trained_hosts(self, epoch: IntArray) -> TrainedRows:
        present = self._tables.parameters_present(self.variant)
        absent = None if present is None else present == 0.0
        rates = self._to_device(self.learning_rates(epoch))
        return TrainedRows(self.layout, self.flat, self.momentum, rates, absent)

    def learning_rates(self, epoch: IntArray) -> npt.NDArray[np.float32]:
        """Rate at which each host trains in the epoch with this index (``[N]``); behind the last one the last's."""
        rates: npt.NDArray[np.float32] = self._rates[np.minimum(epoch, self.max_epochs - 1)] * self.lr_factor
        return rates

    def _banks_by_slot(self) -> dict[int, list[SeedBank]]:
        """Banks that hold any member; kinds with equal tails side by side, so that merging them copies little."""
        banks = [bank for bank in self.banks.values() if len(bank.rows.members)]
        banks.sort(key=lambda bank: (bank.slot, -len(bank.layers)))
        return {slot: list(of_slot) for slot, of_slot in groupby(banks, key=lambda bank: bank.slot)}

    def _training_run(self, bank: SeedBank, lifecycle: Lifecycle) -> SeedRun:
        members, slot = bank.rows.members, bank.slot
        stage = lifecycle.stage[members, slot]
        incubating = stage == SeedStage.TRAINING
        alpha = np.where(incubating, 0.0, lifecycle.alpha[members, slot])
        return self._run(
            bank,
            flat=bank.rows.flat,
            members=members,
            places=members,
            lifecycle=lifecycle,
            alpha=alpha,
            gradient_weight=np.where(incubating, 1.0, alpha),
        )

    def _run(
        self,
        bank: SeedBank,
        flat: Tensor,
        members: IntArray,
        places: IntArray,
        lifecycle: Lifecycle,
        alpha: FloatArray,
        gradient_weight: FloatArray,
    ) -> SeedRun:
        """Bring one bank's part in a forward to the device; ``places`` is where ``members`` ride in it."""
        stage, algorithm = lifecycle.stage[members, bank.slot], lifecycle.algorithm[members, bank.slot]
        return SeedRun(
            slot=bank.slot,
            module=bank.module_in_use,
            layout=bank.layout,
            flat=flat,
            members=self._to_device(places),
            alpha=self._to_device(alpha.astype(np.float32)),
            gradient_weight=self._to_device(gradient_weight.astype(np.float32)),
            attached=self._to_device(stage >= SeedStage.HOLDING),
            incubating=self._to_device(stage == SeedStage.TRAINING),
            multiplies=self._to_device(algorithm == AlphaAlgorithm.MULTIPLY),
            gated=self._to_device(algorithm == AlphaAlgorithm.GATE),
            present=self._tables.channels_present(self.variant[members], bank.slot),
        )

    def _gradients(self, banks: list[SeedBank], optimizer: EpochOptimizer) -> SeedGradients:
        shape = (self.num_members, self.task.slots.num_slots)
        fields = {name: np.full(shape, np.nan) for name in ("norm", "vanishing", "exploding", "health")}
        if banks:
            used = [bank.parameters_in_use() for bank in banks]
            columns = max(len(self.layout.specs), *(mask.shape[1] for mask in used))
            health = optimizer.health(torch.cat([F.pad(mask, (0, columns - mask.shape[1])) for mask in used]), first=1)
            members = np.concatenate([bank.rows.members for bank in banks])
            slots = np.repeat([bank.slot for bank in banks], [len(bank.rows.members) for bank in banks])
            for name, array in fields.items():
                array[members, slots] = getattr(health, name).cpu().numpy()
        return SeedGradients(**fields)

    # ------------------------------------------------------------------ evaluation
    def validate(self, hosts: IntArray, alpha: FloatArray, lifecycle: Lifecycle) -> tuple[FloatArray, FloatArray]:
        """See :class:`envs.counterfactuals.Evaluate`."""
        return self.evaluate(hosts, alpha, lifecycle, "validation")

    @torch.no_grad()
    def evaluate(
        self, members: IntArray, alpha: FloatArray, lifecycle: Lifecycle, split: SplitName
    ) -> tuple[FloatArray, FloatArray]:
        """Loss and accuracy of some members with given alphas, what rows have in common being computed once.

        Args:
            members: ``[J]`` which hosts; one may occur several times.
            alpha: ``[J, S]`` blend amplitudes to evaluate with; a slot at 0 is not run.
            lifecycle: For the seeds' algorithms.
            split: Data to evaluate on, in batch-norm's inference mode; only the test split costs no training FLOPs.

        Returns:
            Mean cross-entropy ``[J]`` and accuracy in percent ``[J]``.
        """
        y = self._data[split][1]
        levels, place = self._prefixes(members, alpha, lifecycle, split)
        loss = torch.zeros(len(levels[-1].members), device=self.device)
        hits = torch.zeros_like(loss)
        for mean_loss, of_samples in self._in_parts(levels, lifecycle, split):
            loss += mean_loss * of_samples.shape[1]
            hits += of_samples.sum(1)
        results = loss / len(y), 100.0 * hits / y.numel()
        loss_of_row, accuracy_of_row = (values.double().cpu().numpy()[place] for values in results)
        return loss_of_row, accuracy_of_row

    @torch.no_grad()
    def hits(self, members: IntArray, alpha: FloatArray, lifecycle: Lifecycle, split: SplitName) -> IntArray:
        """How often some members with given alphas are right, sample by sample.

        Args:
            members: ``[J]`` which hosts.
            alpha: ``[J, S]`` blend amplitudes to evaluate with.
            lifecycle: For the seeds' algorithms.
            split: As of :meth:`evaluate`, whose accuracy is the sum of these over all predictions.

        Returns:
            ``[J, n]`` right predictions in each of the split's samples: of an image 0 or 1, of a sequence up to its
            length.
        """
        levels, place = self._prefixes(members, alpha, lifecycle, split)
        parts = [of_samples for _, of_samples in self._in_parts(levels, lifecycle, split)]
        return torch.cat(parts, dim=1).long().cpu().numpy()[place]

    def _prefixes(
        self, members: IntArray, alpha: FloatArray, lifecycle: Lifecycle, split: SplitName
    ) -> tuple[list[Prefixes], IntArray]:
        """What an evaluation computes, and where its rows are in that; only the test split costs no training FLOPs."""
        levels, place = share_prefixes(members, np.where(lifecycle.computing[members], alpha, 0.0))
        if split != "test":
            self._book_evaluation(levels, lifecycle, len(self._data[split][1]))
        return levels, place

    def _in_parts(
        self, levels: list[Prefixes], lifecycle: Lifecycle, split: SplitName
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean loss ``[R]`` and hits ``[R, B]`` of the last prefixes, for one part of the samples after the other."""
        x, y = self._data[split]
        forward = self._forward(levels, lifecycle)
        parts = number_of_chunks(levels, y)
        for xs, ys in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            yield loss_and_hits(forward(xs), ys)

    @torch.no_grad()
    def show(self, members: IntArray, lifecycle: Lifecycle, samples: int, observe: Observe) -> None:
        """Let somebody watch some members, in ascending order, read validation samples; it costs no training FLOPs.

        Args:
            members: ``[m]`` which hosts.
            lifecycle: Stages and alphas.
            samples: How many there are at most, evenly spaced.
            observe: Called by each layer that an activation function follows, with the rows of ``members``.
        """
        x, _ = self._data["validation"]
        chosen = torch.linspace(0, len(x) - 1, min(samples, len(x)), device=self.device).long()
        alpha = np.where(lifecycle.computing[members], lifecycle.alpha[members], 0.0)
        levels, _ = share_prefixes(members, alpha)
        self._forward(levels, lifecycle)(x[chosen], observe)

    def _forward(self, levels: list[Prefixes], lifecycle: Lifecycle) -> SharedForward:
        seeds = {
            slot: SlotSeeds(runs)
            for slot, banks in self._banks_by_slot().items()
            if (runs := [run for bank in banks for run in self._evaluation_runs(bank, levels[slot + 1], lifecycle)])
        }
        return SharedForward(self.task.host, self.layout.views(self.flat), self.buffers, levels, seeds)

    def _book_evaluation(self, levels: list[Prefixes], lifecycle: Lifecycle, samples: int) -> None:
        """Add to both sums of FLOPs what an evaluation of these prefixes computes."""
        seeds, flops = lifecycle.seed_costs(self._flops), np.zeros(self.num_members, np.int64)
        for segment, level in enumerate(levels):
            np.add.at(flops, level.members, samples * self._flops.segments[level.members, segment])
            if segment > 0:
                on = level.members[level.alpha > 0.0]
                np.add.at(flops, on, samples * seeds[on, segment - 1])
        self.training_flops += flops
        self.evaluation_flops += flops

    def _evaluation_runs(self, bank: SeedBank, prefixes: Prefixes, lifecycle: Lifecycle) -> list[SeedRun]:
        row = np.full(self.num_members, -1)
        row[bank.rows.members] = np.arange(len(bank.rows.members))
        places = np.flatnonzero((row[prefixes.members] >= 0) & (prefixes.alpha > 0.0))
        if not len(places):
            return []
        members, alpha = prefixes.members[places], prefixes.alpha[places]
        flat = bank.rows.flat[self._to_device(row[members])]
        return [self._run(bank, flat, members, places, lifecycle, alpha, alpha)]

    def _to_device(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
