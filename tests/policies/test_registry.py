"""What does not conform to the protocol is refused when it is registered, and the refusal names what is wrong."""

import inspect

import pytest

from policies import registry
from policies.bundle import PolicyBundle
from policies.factory import registered
from policies.learned import LearnedPolicy
from policies.registry import departures, register
from policies.scripted import RandomValid

MEMBERS = [name for name in vars(PolicyBundle) if not name.startswith("_")]
PROPERTIES = [name for name in MEMBERS if isinstance(vars(PolicyBundle)[name], property)]
METHODS = [name for name in MEMBERS if name not in PROPERTIES]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_policies", dict(registry._policies))


def bundle(*without, **instead):
    """A class of its own with the members of the learned policy, but for those given."""
    members = {name: inspect.getattr_static(LearnedPolicy, name) for name in MEMBERS if name not in without}
    return type("Candidate", (), members | instead)


def test_the_protocol_is_the_one_of_the_design():
    assert set(PROPERTIES) == {
        *("is_recurrent", "supports_off_policy", "device", "dtype", "slot_config", "reads_graphs", "feature_dim"),
        *("hidden_dim", "network", "is_compiled"),
    }
    assert set(METHODS) == {
        *("get_action", "forward", "evaluate_actions", "get_value", "initial_hidden", "state_dict"),
        *("load_state_dict", "to", "compile", "build"),
    }


def test_complete_bundles_are_registered_by_name():
    candidate = bundle()
    assert register("candidate")(candidate) is candidate
    assert registered()["candidate"] is candidate
    with pytest.raises(ValueError, match=r"'candidate' is taken by Candidate"):
        register("candidate")(bundle())


@pytest.mark.parametrize(
    "name", ["learned", "never_grow", "random_valid", "heuristic", "fixed_schedule", "periodic", "gradient"]
)
def test_every_policy_of_the_library_conforms(name):
    assert departures(registered()[name]) == []


@pytest.mark.parametrize("name", MEMBERS)
def test_every_missing_property_and_method_is_named(name):
    kind = "property" if name in PROPERTIES else "method"
    with pytest.raises(TypeError, match=rf"Candidate cannot be registered as 'x': .*{kind} {name} is missing"):
        register("x")(bundle(name))
    assert "x" not in registered()


def test_all_problems_are_named_at_once_and_the_protocols_own_bodies_do_not_count():
    class Empty(PolicyBundle):
        pass

    with pytest.raises(TypeError) as refusal:
        register("x")(Empty)
    assert all(name in str(refusal.value) for name in MEMBERS)


def test_an_abstract_method_does_not_count():
    class Unfinished(RandomValid):
        pass

    Unfinished.get_action.__isabstractmethod__ = False
    assert departures(Unfinished) == []

    def get_action(self): ...

    get_action.__isabstractmethod__ = True
    assert "get_action is missing" in departures(bundle(get_action=get_action))[0]


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_method_in_place_of_a_property_is_refused(name):
    assert departures(bundle(**{name: lambda self: None})) == [f"{name} must be a property, not a method"]
    assert departures(bundle(**{name: None})) == []


@pytest.mark.parametrize("name", METHODS)
def test_a_property_in_place_of_a_method_is_refused(name):
    for value in (property(lambda self: None), 3, None):
        (problem,) = departures(bundle(**{name: value}))
        assert problem.startswith(f"{name} must be a ")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("get_action", lambda self, obs, hidden: None),
        ("get_action", lambda self, obs, hidden, generator, deterministic: None),
        ("get_action", lambda self, obs, hidden, generator=None, deterministic=True: None),
        ("get_action", lambda self, hidden, obs, generator=None, deterministic=False: None),
        ("get_action", lambda self, *args, **kwargs: None),
        ("forward", lambda self, observations, hidden: None),
        ("forward", lambda self, obs, *, hidden: None),
        ("evaluate_actions", lambda self, obs, actions, hidden, masks: None),
        ("initial_hidden", lambda self: None),
        ("compile", lambda self, backend: None),
        ("to", staticmethod(lambda device: None)),
        ("to", classmethod(lambda cls, device: None)),
        ("build", lambda settings: None),
        ("build", classmethod(lambda cls, slots, settings: None)),
    ],
)
def test_another_signature_is_refused_by_name(name, other):
    (problem,) = departures(bundle(**{name: other}))
    assert problem.startswith(f"{name} must ")


def test_the_message_shows_both_signatures():
    (problem,) = departures(bundle(initial_hidden=lambda self, hosts=1: None))
    assert problem == (
        "initial_hidden must have the signature initial_hidden(self, batch_size), has initial_hidden(self, hosts=1)"
    )


def test_further_parameters_need_a_default():
    assert departures(bundle(compile=lambda self, backend="inductor", **options: None)) == []
