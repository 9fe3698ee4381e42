"""docs/packet.md and its JSON schema, from the messages: ``python -m policies.strategic.packet_page docs``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from policies.strategic.coverage import CRITICAL_AT_MOST, WARNING_BELOW
from policies.strategic.graph_columns import MOST_EDGES, MOST_NODES, Graph, Monitors
from policies.strategic.input_page import PAGE_FILE as INPUT_PAGE
from policies.strategic.input_page import read_keys
from policies.strategic.messages import KEYS, SeedState, SystemState
from policies.strategic.packet_values import LARGEST_NUMBER, LARGEST_WHOLE_NUMBER

PAGE_FILE, SCHEMA_FILE = "packet.md", "packet.schema.json"

UNREAD = frozenset(KEYS) - read_keys() | {"run.timestamp_ns", "run.epoch"}
"""What no decision depends on: these two always are there, and so are no keys."""
_KINDS = {
    **{type(field.default).__name__: kind for kind, field in Graph.model_fields.items()},
    **{SystemState.__name__: "run", SeedState.__name__: "seeds", Monitors.__name__: "monitors"},
}
"""Message → type of its keys."""

OPENING = f"""\
# What a training run says of itself

<!-- written by: python -m policies.strategic.packet_page docs -->

A packet is one JSON object, a `SystemState`: `SystemState.model_validate_json(bytes)` reads it, `model_dump_json()`
writes it. The classes are in `policies/strategic/messages.py` and `policies/strategic/graph_columns.py`. For other
languages [{SCHEMA_FILE}]({SCHEMA_FILE}) says the same as a JSON schema, but for what no schema can say: that columns
have one length, and that rows exist.

- What is marked *not read* is for records, or for later: no decision depends on it. Of a slot and of the run the policy
  reads `observation`, not the fields that say something like it; without `observation` it does not know them.
  [{INPUT_PAGE}]({INPUT_PAGE}) has all that is read.
- What was not measured is `null` or left out, never 0. So is a number that is not finite.
- Nodes and edges are columns. All columns of a table have the same length; the first one says which. A *column* that
  is `null` or left out was measured nowhere, a `null` in it not there.
- At most {MOST_NODES} nodes of each kind are sent, slots among them, and {MOST_EDGES:,} edges of each relation (what
  all slots monitor is one). Of a larger model the source sends a sample: `sampled` is true, and `layer_count` the
  number of layers that the model has.
- A number means the same whoever measures it, the greenhouse or a probe, but for gradients and what is made of them:
  those of the greenhouse are not clipped yet, a probe sees what the optimiser is given, which a loop may have clipped.
  Which layers a slot watches is the source's choice: the greenhouse takes the last before it and the first behind it, a
  probe the last of those that its module's output is made of, and the first that reads it.
- `declared` lists what the source can measure in this run, as TYPE.FIELD: every metric, and every field below that may
  be null. What is sent and not declared is refused.
- Coverage is the share that was measured of what was declared, each entry counted once. A table without rows counts as
  the rows that the others imply, not measured: `connects` as one less than there are layers, `tunes` as one per layer,
  `activations` likewise, `feeds` and `influences` as one per activation, `seeds` and `monitors` as one per living seed,
  others as one. At most {CRITICAL_AT_MOST:.0%} is CRITICAL; less than {WARNING_BELOW:.0%}, or at most
  {CRITICAL_AT_MOST:.0%} of some kind of node or edge, a WARNING. What a run does not have, such as activation
  functions, its source does not declare.
- Unknown fields are refused. Where nothing else is said numbers go up to {LARGEST_NUMBER:g}, whole numbers up to
  {LARGEST_WHOLE_NUMBER:,}.
"""


def page() -> str:
    """The page: a table per message, and the keys that can be declared."""
    schema = SystemState.model_json_schema()
    definitions = {SystemState.__name__: schema, **schema["$defs"]}
    keys = "".join(f"- `{key}`\n" for key in KEYS)
    sections = [_section(name, definitions[name]) for name in _in_order(definitions)]
    return "\n".join([OPENING, *sections, f"## Keys that can be declared\n\n{keys}"]).replace("``", "`")


def schema_text() -> str:
    """The JSON schema."""
    return json.dumps(SystemState.model_json_schema(), ensure_ascii=False, indent=1) + "\n"


def _in_order(definitions: dict[str, Any]) -> Iterator[str]:
    """The messages, each after the one that has it."""
    waiting = [SystemState.__name__]
    for name in waiting:  # which grows meanwhile
        yield name
        found = dict.fromkeys(_references(definitions[name]["properties"]))
        waiting.extend(reference for reference in found if reference not in waiting)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from _references(item)


def _section(name: str, definition: dict[str, Any]) -> str:
    description = " ".join(definition["description"].split())
    kind = _KINDS.get(name)
    rows = [
        _row(field, content, f"{kind}.{field}", field in definition.get("required", ()))
        for field, content in definition["properties"].items()
    ]
    if name == "SystemState":
        metrics = definition["properties"]["metrics"]["properties"]
        rows += [_row(f"metrics.{metric}", content, f"metrics.{metric}") for metric, content in metrics.items()]
    return "\n".join([f"## {name}\n", f"{description}\n", "| field | value | what it is |", "|---|---|---|", *rows, ""])


def _row(name: str, content: dict[str, Any], key: str, required: bool = False) -> str:
    kind = _kind(content) + (", required" if required else "")
    unread = " *Not read.*" if key in UNREAD else ""
    return f"| `{name}` | {kind} | {content.get('description', '')}{unread} |"


def _kind(content: dict[str, Any]) -> str:
    """A value in words."""
    if "anyOf" in content:
        value, _null = content["anyOf"]
        entry = value.get("items", {})
        return f"column of: {_kind(entry['anyOf'][0])}" if "anyOf" in entry else f"{_kind(value)}, or null"
    if "$ref" in content:
        (name,) = _references(content)
        return f"[{name}](#{name.lower()})"
    if "const" in content:
        return f"{content['const']}"
    if "enum" in content:
        return f"one of {', '.join(content['enum'])}"
    if content["type"] == "array":
        return f"list of: {_kind(content['items'])}"
    if content["type"] in ("number", "integer"):
        return _range("whole number" if content["type"] == "integer" else "number", content)
    return {"string": "text", "boolean": "true or false", "object": "numbers by name, see below"}[content["type"]]


def _range(kind: str, content: dict[str, Any]) -> str:
    """A number in words; the limits that all have are not said."""
    least, most = content["minimum"], content.get("maximum", LARGEST_WHOLE_NUMBER)
    words = [kind]
    if least > -LARGEST_NUMBER:
        words.append(f"from {least:g}")
    if most < LARGEST_WHOLE_NUMBER:
        words.append(f"to {most:g}")
    return " ".join(words)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / PAGE_FILE).write_text(page())
    (directory / SCHEMA_FILE).write_text(schema_text())
