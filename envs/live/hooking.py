"""A slot's forward hook: where it stands among those of its module, and when it is there at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Hook = Callable[[nn.Module, Any, Any], Any]
"""A forward hook, as :meth:`torch.nn.Module.register_forward_hook` takes it."""


class SlotHook:
    """Calls a slot with its module's output while a seed grows there.

    A module that has hooks is called the long way round (``nn.Module._call_impl``), which the steps of a tiny network
    feel: the hook is there with the seed only. It stands right behind those hooks that the module had when the slot was
    made, and before those that it got since.

    Compiled code does not look whether a hook has come (``torch._dynamo.config.skip_nnmodule_hook_guards``), but it
    looks whether the module has got another ``forward``: beside the hook it has one, which does what its own does.

    ``nn.TransformerEncoderLayer`` does not even call its parts in evaluation while nothing in it is hooked, so compiled
    code that has left them out would not look at them: in such a layer the hook is always there.

    Args:
        model: Has the module.
        name: Of the module.
        hook: Says what is seen of an output; None where that is the output.
    """

    def __init__(self, model: nn.Module, name: str, hook: Hook) -> None:
        parts = name.split(".")
        around = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1)]
        self._module, self._hook = around[-1], hook
        # No other hook gets its number, not even in a process that unpickles it: torch goes on behind it.
        self._number = RemovableHandle(self._module._forward_hooks)
        self._always = any(isinstance(module, nn.TransformerEncoderLayer) for module in around)
        self._own: Any = None  # the attribute ``forward`` that the module had of itself, if it had one
        self._other: Any = None

    def follow(self, grows: bool) -> None:
        """Be there if it is needed.

        Args:
            grows: Whether there is a seed.
        """
        there = self._number.id in self._module._forward_hooks
        if there and not (grows or self._always):
            self.remove()
        elif not there and (grows or self._always):
            self._register()

    def _register(self) -> None:
        hooks, own = self._module._forward_hooks, self._number.id
        start = max((at for at, number in enumerate(hooks, start=1) if number < own), default=0)
        behind = list(hooks)[start:]
        hooks[own] = self._hook
        for number in behind:
            hooks.move_to_end(number)  # type: ignore[attr-defined]
        if not self._always:
            attributes = vars(self._module)
            theirs = attributes.get("forward")
            self._own, self._other = theirs, self._another(theirs)
            attributes["forward"] = self._other

    def _another(self, theirs: Any) -> Any:
        """What does the same; again the one of the time before, which compiled code knows."""
        if theirs is None:
            return MethodType(type(self._module).forward, self._module)
        return self._other if theirs is self._own else partial(theirs)

    def remove(self) -> None:
        """Leave the module as it would be without the slot."""
        self._module._forward_hooks.pop(self._number.id, None)
        attributes = vars(self._module)
        if self._other is not None and attributes.get("forward") is self._other:
            del attributes["forward"]
            if self._own is not None:
                attributes["forward"] = self._own
