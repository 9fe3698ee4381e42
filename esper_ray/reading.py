"""Files that come from outside: read in one way each, so that what is wrong with one is said in one line."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from esper_ray.errors import UserError

Definition = TypeVar("Definition", bound=BaseModel)
Content = TypeVar("Content")


def expand_home(word: str) -> str:
    """A word of the command line, its ``~`` replaced also where shells leave it: in quotes, and in ``--flag=~/path``.

    Raises:
        UserError: the home of a user who does not exist.
    """
    start = 0 if word.startswith("~") else word.find("=~") + 1
    if not word[start:].startswith("~"):
        return word
    try:
        return word[:start] + str(Path(word[start:]).expanduser())
    except RuntimeError as error:
        raise UserError(f"{word}: there is no user of the name in {word[start:].partition('/')[0]}") from error


def read_text(path: Path) -> str:
    """A file of UTF-8 text.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, is no JSON, or says a key twice.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text says.

    Args:
        text: The text.
        where: It stands, for the message.

    Raises:
        UserError: it is no JSON, or says a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_keys_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return content


def checked(content: object, kind: TypeAdapter[Content], where: str) -> Content:
    """What a file holds, as what it must be.

    Args:
        content: As :func:`read_json` returns it.
        kind: That it must be of.
        where: It was found, and what to do if it is not of this kind, for the message.

    Raises:
        UserError: it is of another kind.
    """
    try:
        return kind.validate_python(content)
    except UserError as error:  # of a config in it
        raise UserError(f"{where}: {error}") from error
    except ValidationError as error:
        raise UserError(f"{where}: {describe_problems(error)}") from error


def describe_problems(error: ValidationError, most: int | None = None, whole: str = "content") -> str:
    """What pydantic found, in one line.

    Args:
        error: Of pydantic.
        most: So many problems are told, and how many more there are; None tells all.
        whole: What is wrong where it is no part of it.
    """
    problems = error.errors(include_url=False, include_input=False)
    told = [
        f"{'.'.join(str(part) for part in problem['loc'] if part != 'config') or whole}: "
        f"{problem['msg'].removeprefix('Value error, ')}"
        for problem in problems[:most]
    ]
    more = len(problems) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


# ---------------------------------------------------------------------- YAML
class _KeysOnce(yaml.SafeLoader):
    """Plain YAML, but for keys that are given twice: PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise UserError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, kind: type[Definition]) -> Definition:
    """Read what a YAML file defines.

    Raises:
        UserError: unreadable, a key that is unknown or given twice, or a value of the wrong kind; names the file and
            the place.
    """
    text = read_text(path)
    try:
        content = yaml.load(text, _KeysOnce)
        return kind.model_validate({} if content is None else content)
    except ValidationError as error:
        raise UserError(f"{path}: {describe_problems(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # YAML takes numbers that Python does not
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{path}, {error}") from error
