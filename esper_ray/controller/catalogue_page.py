"""docs/catalogue.md, from the catalogue as it ships; ``python -m benchmarks.catalogue`` writes it."""

from __future__ import annotations

from collections.abc import Iterator

from esper_ray.controller.catalogue import Entry, make_catalogue, shipped_outcomes
from esper_ray.controller.outcomes import HARM, PRIOR_RISK, PRIOR_SEEDS, End, RecordedOutcomes
from esper_ray.controller.thresholds import Thresholds

PAGE_FILE = "catalogue.md"
WIDTHS = (8, 32, 128)
"""Of the slots whose parameters are shown."""
OPENING = f"""\
# The catalogue of blueprints

<!-- written by: bash studies/catalogue.sh -->

What the controller knows of every kind of seed before one is planted. Where a blueprint grows and what it costs come
from the blueprints themselves, its risk from what became of such seeds in recorded episodes.

- **Risk** is the expected harm of blending one more seed in: (Σ harm · seeds + {PRIOR_SEEDS} · {PRIOR_RISK:g}) / (seeds
  + {PRIOR_SEEDS}), over the seeds that were blended in. A seed's harm is {HARM[End.ROLLED_BACK]:g} if it was rolled
  back, else {HARM[End.REGRESSED]:g} if it regressed, else {HARM[End.PRUNED]:g} if it was pruned, else 0. So a blueprint
  of which nothing is on record has the risk {PRIOR_RISK:g}, and a few episodes say neither 0 nor 1.
- **Rolled back**: the governor stopped the host while the seed was blended in and not permanent, or within 5 epochs of
  a decision by which the host relied on it (ADVANCE, SET_ALPHA_TARGET, FOSSILIZE, GROW_INTERNAL). **Regressed**: the
  validation loss rose by more than 0.15 within 5 epochs of such a decision. **Pruned**: taken out again. A seed that
  was never blended in can have done nothing, and does not count.
- What a loss would have done without the seed nobody knows: some of what counts against a blueprint is the host's own.
- **Tier** is what the risk table makes of the risk, as it comes: CRITICAL from {Thresholds.blueprint_risk_pauses:g} on,
  WARNING from {Thresholds.blueprint_risk_slows:g} on, INFO below. The controller masks a blueprint of tier CRITICAL,
  one with a CRITICAL hazard, and a quarantined one, before anybody chooses; with tier WARNING or a HIGH hazard, what
  adds such a seed becomes OPTIMIZER.

A file of one's own adds what nobody can measure, by blueprint; every field may be left out:

```json
{{
  "conv_heavy": {{
    "quarantined": "out of memory on our cards",
    "hazards": [{{"name": "slow", "severity": "HIGH", "what": "doubles the time of a step at width 512"}}],
    "blending_methods": ["linear", "cosine"]
  }}
}}
```

A hazard below HIGH is only told. The file is read anew every half minute.
"""


def page() -> str:
    """The page: what is on record, and a table of the blueprints."""
    recorded = shipped_outcomes()
    entries = list(make_catalogue(recorded, {}).values())
    return "\n".join([OPENING, *_blueprints(entries), *_hazards(entries), *_record(recorded)])


def _blueprints(entries: list[Entry]) -> Iterator[str]:
    widths = ", ".join(map(str, WIDTHS))
    yield "## Risks\n"
    yield _line("blueprint", "tier", "risk", "blended in", *HARM, End.UNSEEN)
    yield "|---" * (5 + len(HARM)) + "|"
    for entry in entries:
        ends = (str(getattr(entry.outcomes, end)) for end in (*HARM, End.UNSEEN))
        yield _line(entry.name, entry.tier.name, f"{entry.risk:.2f}", str(entry.outcomes.blended), *ends)
    yield "\n## Where they grow\n"
    yield f"Parameters as they germinate, without a gate, at widths of {widths}. All blending methods are allowed.\n"
    yield _line("blueprint", "slots", "parameters")
    yield "|---|---|---|"
    for entry in entries:
        for kind in entry.kinds:
            yield _line(entry.name, f"{kind.name}s", ", ".join(f"{entry.parameters(kind, w):,}" for w in WIDTHS))


def _hazards(entries: list[Entry]) -> Iterator[str]:
    yield "\n## Hazards\n"
    yield _line("blueprint", "hazard", "severity", "what happens")
    yield "|---|---|---|---|"
    for entry in entries:
        for hazard in entry.hazards:
            yield _line(entry.name, hazard.name, hazard.severity.name, hazard.what)


def _record(recorded: RecordedOutcomes) -> Iterator[str]:
    yield "\n## What is on record\n"
    yield _line("world", "who decided", "episodes")
    yield "|---|---|---|"
    for source in recorded.sources:
        yield _line(source.world, source.policy, str(source.episodes))
    yield f"\nCounted by `{recorded.command}` at commit {recorded.commit}; SHA-256 of the record {recorded.record}.\n"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
