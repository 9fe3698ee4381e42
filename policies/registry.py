"""Policies by name; what does not conform to the protocol is refused when it is registered, not when it is played."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from policies.bundle import PolicyBundle

BundleT = TypeVar("BundleT", bound=PolicyBundle)

_policies: dict[str, type[PolicyBundle]] = {}


def register(name: str) -> Callable[[type[BundleT]], type[BundleT]]:
    """Class decorator that makes a :class:`PolicyBundle` known under a name.

    Raises:
        TypeError: the class lacks a property or method, or has one with another signature; the message names each.
        ValueError: the name is taken.
    """

    def add(policy: type[BundleT]) -> type[BundleT]:
        problems = departures(policy)
        if problems:
            raise TypeError(f"{policy.__qualname__} cannot be registered as {name!r}: {'; '.join(problems)}")
        if name in _policies:
            raise ValueError(f"the policy name {name!r} is taken by {_policies[name].__qualname__}: choose another")
        _policies[name] = policy
        return policy

    return add


def registered() -> dict[str, type[PolicyBundle]]:
    """Every policy class by its name."""
    return dict(_policies)


def departures(policy: type) -> list[str]:
    """Where a class departs from :class:`PolicyBundle`, one clause each; empty if it conforms.

    Methods must have the protocol's parameters, with their names, order and defaults; further ones need a default.
    """
    members = {name: member for name, member in vars(PolicyBundle).items() if not name.startswith("_")}
    found = [(name, wanted, inspect.getattr_static(policy, name, _MISSING)) for name, wanted in members.items()]
    problems = [_departure(name, wanted, given) for name, wanted, given in found]
    return [problem for problem in problems if problem is not None]


_MISSING = object()


def _departure(name: str, wanted: Any, given: Any) -> str | None:
    is_property = isinstance(wanted, property)
    kind = "property" if is_property else "class method" if isinstance(wanted, classmethod) else "method"
    # A class that inherits from the protocol has its empty bodies.
    if given is _MISSING or given is wanted or getattr(given, "__isabstractmethod__", False):
        hint = " (attributes that __init__ sets cannot be checked)" if is_property else ""
        return f"{kind} {name} is missing{hint}"
    if is_property:
        is_method = callable(given) or isinstance(given, classmethod | staticmethod)
        return f"{name} must be a property, not a method" if is_method else None
    if isinstance(given, staticmethod | property) or isinstance(given, classmethod) != isinstance(wanted, classmethod):
        return f"{name} must be a {kind}, is a {type(given).__name__}"
    wanted, given = (getattr(member, "__func__", member) for member in (wanted, given))
    if not callable(given):
        return f"{name} must be a {kind}, is {given!r}"
    signatures = inspect.signature(wanted), inspect.signature(given)
    if _takes_at_least(*signatures):
        return None
    expected, actual = (_plain(signature) for signature in signatures)
    return f"{name} must have the signature {name}{expected}, has {name}{actual}"


def _takes_at_least(wanted: inspect.Signature, given: inspect.Signature) -> bool:
    required, offered = list(wanted.parameters.values()), list(given.parameters.values())
    same = [(p.name, p.kind, p.default) for p in required] == [
        (p.name, p.kind, p.default) for p in offered[: len(required)]
    ]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return same and all(p.default is not p.empty or p.kind in variadic for p in offered[len(required) :])


def _plain(signature: inspect.Signature) -> str:
    """The parameters without their annotations."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))
