"""In the world everything is written by its owner alone."""

import ast
from pathlib import Path

import pytest

import envs

FILES = sorted(Path(envs.__file__).parent.rglob("*.py"))
OWNERS = {"self", "cls", "ctx"}  # ctx: what autograd hands to a function to keep things in
GRADIENT = "grad"  # of a parameter, is its optimiser's, and torch has no other way to set it


def strangers(tree):
    """Assignments to a field, or into an array, of something else than the object itself."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        for target in (part for whole in targets for part in getattr(whole, "elts", [whole])):
            while isinstance(target, ast.Subscript):
                target = target.value
            owned = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            mine = owned and (target.value.id in OWNERS or target.attr == GRADIENT)
            if isinstance(target, ast.Attribute) and not mine:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nobody_writes_anothers_fields(path):
    assert not list(strangers(ast.parse(path.read_text())))


def test_such_a_write_would_be_found():
    writes = "env.lifecycle.alpha[host, slot] = 1.0\nlife.mode |= on\na, env.x = 1, 2"
    assert len(list(strangers(ast.parse(writes)))) == 3
