"""A study of a few seconds, whose trainings take no time at all."""

import torch
import yaml
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

import esper_ray.learning.training
from esper_ray.experiments.study.study_run import run_study
from esper_ray.keeping.policy_settings import policy_settings, trained_names
from esper_ray.keeping.run_directory import POLICY_FILE
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.weights import save_weights

SMALL = {
    "preset": "debug",
    "settings": {"max_epochs": 6, "hosts_per_runner": 2, "iterations": 2},
    "arms": {"factored": None, "state": {"critic_baseline": "state"}},
    "seeds": 2,
    "evaluations": {"same": None, "mixed": {"task": "digits_mixed"}},
    "episodes": 2,
    "controls": ["never_grow", "fixed_schedule"],
}


def written(path, **changes):
    file = path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | changes))
    return file


def elsewhere(path, **changes):
    """A study of the trainings of small.yaml."""
    study = {"trained_by": "small", "episodes": 2, "controls": ["never_grow"]}
    study["evaluations"] = {"same": None, "wide": {"task": "digits_mixed", "task_args": {"variants": "wide_first"}}}
    file = path / "elsewhere.yaml"
    file.write_text(yaml.safe_dump(study | changes))
    return file


class FakeTraining:
    """Stands in for ``train``: one checkpoint and one point of a curve per iteration, and stops when told.

    Args:
        stop_after: Iterations in all after which it stops as after Ctrl-C.
    """

    def __init__(self, stop_after=1000):
        self.stop_after, self.iterations = stop_after, []

    def __call__(self, run, config, console):
        index = run.index()
        names = trained_names(config.env, config.network)
        with torch.random.fork_rng():
            torch.manual_seed(config.run.seed)
            policy = build_policy(LEARNED, policy_settings(config.env, config.network, names))
        writer = SummaryWriter(str(run.path))
        for iteration in range(index["latest"].iteration + 1 if index else 1, config.run.iterations + 1):
            if len(self.iterations) == self.stop_after:
                break
            run.save(iteration, 0.1 * iteration, lambda path: save_weights(policy.state_dict(), path / POLICY_FILE))
            writer.add_scalar("World/score", 0.1 * iteration, 12 * iteration)
            self.iterations.append((run.path.parent.name, config.run.seed, iteration))
        writer.close()


def run_with(monkeypatch, training, directory):
    monkeypatch.setattr(esper_ray.learning.training, "train", training)
    run_study(directory, workers=0, console=Console(quiet=True))
