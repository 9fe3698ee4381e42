"""What the code relies on in Ray without Ray having promised it; each test names what broke where that is gone.

And the other direction: no file but esper_ray/ray_internals.py touches anything private of Ray's.
"""

import ast
import importlib
import inspect
import re
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from esper_ray.learning.runner import HostRunner
from esper_ray.ray_internals import (
    JOB_VARIABLE,
    AsgiDeployment,
    actor_id,
    ask_for_reset,
    autoscaler_report,
    discard,
    infeasible_groups,
    runner_actors,
    store,
    stored,
)
from tests.devices import DEVICES
from tests.dispatched import Dispatched
from tests.esper_ray.learning.test_impala import config_of as impala_config
from tests.esper_ray.learning.test_learner import EPISODE, MODULE, Parts, config_of

torch.set_num_threads(1)
REPOSITORY = Path(__file__).parents[2]
INTERNALS = "esper_ray/ray_internals.py"
EXTENSION_POINTS = {"_forward", "_forward_train", "_forward_exploration", "_forward_inference"}
"""Private by their name, but what RLlib's documentation tells authors of modules to override."""


def broke(what, why):
    return f"Ray {ray.__version__}: {what}. esper_ray.ray_internals relies on it to {why}"


@pytest.fixture(scope="module")
def local_ray():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


# ---------------------------------------------------------------------- runners
def test_a_runner_asked_for_a_reset_leaves_its_episodes():
    runner = HostRunner(config=config_of(fragment=EPISODE - 2), worker_index=0)
    why = "start the same hosts again after a restore (ask_for_reset)"
    assert hasattr(runner, "_needs_initial_reset"), broke("SingleAgentEnvRunner has no _needs_initial_reset", why)
    runner.sample()
    assert runner.sample()[0].t_started > 0
    ask_for_reset(runner)
    started = [episode.t_started for episode in runner.sample()]
    assert started == [0] * len(started), broke("_needs_initial_reset no longer makes sample() reset the envs", why)


def test_a_runner_without_a_seed_seeds_nothing_and_takes_one_for_its_first_reset():
    why = "seed as RLlib does without torch's deterministic algorithms (SeededRunner)"
    config = config_of(seed=3)
    torch.use_deterministic_algorithms(False)
    runner = HostRunner(config=config, worker_index=2)
    assert not torch.are_deterministic_algorithms_enabled(), broke("EnvRunner switches them on without a seed", why)
    assert runner.config.seed == config.seed
    theirs = SingleAgentEnvRunner(config=config, worker_index=2)
    torch.use_deterministic_algorithms(False)
    assert getattr(theirs, "_seed", None) == runner._seed, broke("EnvRunner's _seed is not config.seed + index", why)
    observed = [each.sample()[0].get_observations()["obs"][0].tolist() for each in (runner, theirs)]
    assert observed[0] == observed[1], broke("the first reset's seed is no longer EnvRunner's _seed", why)


def test_runners_are_found_with_the_ids_that_they_know_themselves_by(local_ray):
    group = EnvRunnerGroup(config=config_of(), num_env_runners=1, local_env_runner=False)
    why = "find which runner failed (runner_actors, actor_id)"
    assert hasattr(group, "_worker_manager"), broke("EnvRunnerGroup has no _worker_manager", why)
    (actor,) = runner_actors(group).values()
    assert runner_actors(group).keys() == {1}, broke("the manager no longer numbers runners from 1", why)
    itself = ray.get(actor.apply.remote(lambda _: ray.get_runtime_context().get_actor_id()))
    assert actor_id(actor) == itself, broke("a handle's _actor_id is no longer the actor's id", why)
    group.stop()


def test_the_store_keeps_texts_until_they_are_discarded(local_ray):
    why = "let a runner leave the reason of its failure to the driver (store)"
    assert stored("nobody") is None, broke("_internal_kv_get finds what nobody stored", why)
    store("somebody", "α: a text")
    assert stored("somebody") == "α: a text", broke("_internal_kv_put does not keep what it is given", why)
    discard("somebody")
    assert stored("somebody") is None, broke("_internal_kv_del deletes nothing", why)


# ---------------------------------------------------------------------- learners
def test_a_learner_says_whether_it_is_built():
    for theirs, config in ((PPOTorchLearner, config_of()), (IMPALATorchLearner, impala_config())):
        built = getattr(theirs(config=config), "_is_built", None)
        assert built is False, broke(f"{theirs.__name__} has no _is_built", "build once (is_built)")
    assert Parts(config_of()).learner.is_built is True, broke("build() leaves _is_built alone", "build once (is_built)")


def test_the_pipeline_holds_rllibs_advantages_to_be_replaced():
    why = "put its own advantages in their place (replace_in_pipeline)"
    parts = Parts(config_of())
    env, theirs = parts.runner.env, config_of()
    theirs.learners(learner_class=PPOTorchLearner)
    learner = theirs.build_learner(spaces={MODULE: (env.single_observation_space, env.single_action_space)})
    names = [type(piece).__name__ for piece in learner._learner_connector.connectors]
    assert names[-1] == "GeneralAdvantageEstimation", broke(f"PPO's pipeline ends with {names[-1]}", why)
    ours = [type(piece).__name__ for piece in parts.learner._learner_connector.connectors]
    assert ours == [*names[:-1], "FactoredAdvantages"], broke("remove() or append() of a pipeline do otherwise", why)


def test_every_minibatch_of_an_update_goes_through_the_hook():
    parts = Parts(config_of())
    offered = []
    step = parts.learner.update_minibatch
    parts.learner.update_minibatch = lambda *given, **named: offered.append(given) or step(*given, **named)
    parts.update()
    expected = parts.config.settings.num_epochs * parts.config.settings.minibatches
    why = "leave out the steps after a stop (update_minibatch)"
    assert len(offered) == expected, broke("Learner.update no longer calls _update once for each minibatch", why)


@pytest.mark.parametrize("device", DEVICES)
def test_lengths_of_rows_are_where_rllib_reads_them_one_by_one(device):
    learner = Parts(config_of()).learner
    batch = MultiAgentBatch({MODULE: SampleBatch(seq_lens=torch.tensor([2, 3], device=device))}, env_steps=5)
    sliced = learner._set_slicing_by_batch_id(batch, value=True)
    assert sliced[MODULE]["seq_lens"].device.type == "cpu"
    why = "bring the lengths to the CPU before they are read (_set_slicing_by_batch_id)"
    source = inspect.getsource(TorchLearner._create_iterator_if_necessary)
    assert "self._set_slicing_by_batch_id(batch, value=True)" in source, broke(
        "it is not called before minibatches", why
    )


def test_nobody_asks_every_gradient_whether_it_is_finite():
    config = config_of()
    why = "leave that to the norm that the learner has anyway (torch_skip_nan_gradients)"
    assert config.torch_skip_nan_gradients, broke("the config has lost torch_skip_nan_gradients", why)
    learner = Parts(config).learner
    gradients = {parameter: torch.ones_like(parameter) for parameter in learner.module[MODULE].parameters()}
    learner.apply_gradients(gradients)  # Adam makes its state
    with Dispatched() as dispatched:
        learner.apply_gradients(gradients)
    # Adam's own, of its counters of steps on the CPU.
    assert dispatched.waits.total() == len(gradients), broke("apply_gradients reads numbers of every gradient", why)


def test_restored_optimisers_are_told():
    learner = Parts(config_of()).learner
    told = []
    learner.optimizers_restored = lambda: told.append(True)
    learner.set_state(learner.get_state())
    why = "keep this config's settings (optimizers_restored)"
    assert told, broke("Learner.set_state no longer calls _set_optimizer_state", why)


def test_weights_are_numbered_and_a_restored_learners_count_as_the_newest():
    parts = Parts(config_of())
    why = "make runners take restored weights (set_state)"
    assert parts.learner._weights_seq_no == 0, broke("Learner has no _weights_seq_no that begins at 0", why)
    before = parts.learner.get_state()
    parts.update()
    assert parts.learner._weights_seq_no == 1, broke("an update no longer adds 1 to _weights_seq_no", why)
    newer = parts.learner.get_state()
    parts.learner.set_state(before)
    assert parts.learner._weights_seq_no > newer["weights_seq_no"]
    first, later = (state["rl_module"][MODULE] for state in (before, parts.learner.get_state()))
    assert all((first[name] == later[name]).all() for name in first), broke("set_state refuses older weights", why)


def test_impalas_thread_updates_through_a_method_that_can_be_wrapped():
    parts = Parts(impala_config())
    try:
        why = "hand its failures to the caller (wrap_learner_thread)"
        thread = parts.learner._learner_thread
        assert hasattr(thread, "_update_method"), broke("IMPALA's learner thread has no _update_method", why)
        source = inspect.getsource(type(thread).step)
        assert "self._update_method(\n" in source, broke("the thread's step no longer calls _update_method", why)
    finally:
        parts.learner.shutdown()


def test_the_mixins_hooks_exist_in_rllibs_learner():
    hooks = ("_update", "_set_optimizer_state", "set_state", "_set_slicing_by_batch_id", "_compute_off_policyness")
    for name in hooks:
        assert callable(getattr(TorchLearner, name, None)), broke(f"TorchLearner has no {name}", "override it")
    own = {"is_built", "replace_in_pipeline", "optimizers_restored", "update_minibatch"} & set(dir(TorchLearner))
    assert not own, broke(f"TorchLearner has {own} of its own", "give these names another meaning")


# ---------------------------------------------------------------------- cluster and service
def test_both_autoscalers_can_be_asked(local_ray):
    why = "say whether a cluster will ever have room"
    assert infeasible_groups() is None, broke("a cluster without the second autoscaler reports its state", why)
    deadline = time.monotonic() + 30
    while (report := autoscaler_report()) is None or report.starting is None:
        assert time.monotonic() < deadline, broke(f"the first autoscaler reports nothing, but {report}", why)
        time.sleep(0.5)
    assert report.starting is False
    assert abs(report.asked - time.time()) < 60, broke("the report's times are not Unix seconds", why)


def test_a_job_is_known_by_its_variable():
    from ray._private import worker

    why = "know that `ray job submit` started this process (JOB_VARIABLE)"
    reads = "if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ" in inspect.getsource(worker)
    assert reads, broke("ray.init no longer reads a job's config from the environment", why)
    assert JOB_VARIABLE == "RAY_JOB_CONFIG_JSON_ENV_VAR"


def test_serve_asks_a_deployment_for_its_application():
    import ray.serve._private.replica as replica

    name = next(name for name in vars(AsgiDeployment) if name.startswith("__serve"))
    assert name in inspect.getsource(replica), broke(f"Serve no longer calls {name}", "speak HTTP (AsgiDeployment)")


# ---------------------------------------------------------------------- nobody else
def private(name):
    return name.startswith("_") and (not name.endswith("__") or name.startswith("__serve"))


def modules():
    for package in ("envs", "policies", "esper_ray", "benchmarks"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if str(path.relative_to(REPOSITORY)) != INTERNALS:
                yield path.relative_to(REPOSITORY), ast.parse(path.read_text())


def defined_here(trees):
    """Private names that this repository's own classes and modules define."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return names


def test_no_other_file_imports_what_ray_keeps_private():
    found = []
    for path, tree in modules():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "ray" and any(private(part) or part == "generated" for part in parts):
                    found.append(f"{path}:{node.lineno} imports {name}")
    assert not found, f"move it to {INTERNALS}, with a test of its own: {found}"


def test_no_other_file_reaches_into_a_private_attribute_of_anything_foreign():
    trees = dict(modules())
    own = defined_here(trees.values()) | {"_exit"}  # os._exit is documented
    found = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in trees.items()
        if any("ray" in (getattr(node, "module", None) or "") for node in ast.walk(tree))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and private(node.attr)
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        if node.attr not in own
    ]
    assert not found, f"move it to {INTERNALS}, with a test of its own: {found}"


def rays_own(cls):
    """Private names that Ray's classes among the bases use or define."""
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "ray"]
    return {name for base in bases for name in re.findall(r"(?:self\.|def )(_\w+)", inspect.getsource(base))}


def test_no_class_that_extends_rays_uses_or_replaces_what_that_keeps_private():
    found = []
    for path, tree in modules():
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases}
        if not classes or "ray" not in (REPOSITORY / path).read_text():
            continue
        module = importlib.import_module(".".join(path.with_suffix("").parts))
        for name, node in classes.items():
            theirs = rays_own(getattr(module, name)) - EXTENSION_POINTS
            used = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
            used |= {
                inner.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in ("self", "super()")
            }
            found += [f"{path} {name}: {attribute}" for attribute in sorted(used & theirs) if private(attribute)]
    assert not found, f"rename it if it is our own, else move it to {INTERNALS}: {found}"
