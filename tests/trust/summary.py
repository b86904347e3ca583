"""What the fragments of a suite amount to: a suite's part of experiments/trust.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

Fragments = Mapping[str, dict[str, Any]]
"""By name, as `records.record` wrote them."""

ENDS = ("survived", "lost", "silent")
"""Of an injected fault; see `outcomes`."""


def summarise_faults(fragments: Fragments) -> dict[str, Any]:
    """How many injected faults ended how, by the work that they disturbed and their kind."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for fault in (content for name, content in fragments.items() if name.startswith("fault-")):
        counts.setdefault(fault["work"], {}).setdefault(fault["kind"], Counter())[fault["outcome"]] += 1
    by_work = {
        work: {kind: {end: ends[end] for end in ENDS} for kind, ends in sorted(kinds.items())}
        for work, kinds in sorted(counts.items())
    }
    every = [ends for kinds in by_work.values() for ends in kinds.values()]
    return {
        "injected": sum(sum(ends.values()) for ends in every),
        **{end: sum(ends[end] for ends in every) for end in ENDS},
        "by_work": by_work,
    }


def summarise_fuzz(fragments: Fragments) -> dict[str, Any]:
    """The cases by outcome and surface; whatever is neither a named error nor a right answer is lost or silent."""
    content = fragments.get("fuzz", {"cases": 0, "outcomes": {}, "surfaces": {}})
    outcomes = content["outcomes"]
    return {
        "cases": content["cases"],
        "lost": sum(outcomes.get(name, 0) for name in ("crash", "hang", "leak")),
        "silent": outcomes.get("silent", 0),
        "outcomes": outcomes,
        "surfaces": content["surfaces"],
    }


def summarise_load(fragments: Fragments) -> dict[str, Any]:
    """What the clients met, by what they asked; an answer that is another client's is silent."""
    targets = {name.removeprefix("load-"): value for name, value in fragments.items() if name.startswith("load-")}
    return {
        "lost": sum(target["lost"] for target in targets.values()),
        "silent": sum(target["mixed_up"] for target in targets.values()),
        "targets": targets,
    }


def summarise_soak(fragments: Fragments) -> dict[str, Any]:
    """The slope of memory; work that goes on for hours is lost where memory runs out."""
    memory = fragments.get("soak")
    return {"lost": int(memory is None or not memory["met"]), "silent": 0, "memory": memory}


SUMMARIES: dict[str, Callable[[Fragments], dict[str, Any]]] = {
    "faults": summarise_faults,
    "fuzz": summarise_fuzz,
    "load": summarise_load,
    "soak": summarise_soak,
}


def losses(suites: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """`lost` and `silent` over suites."""
    return {name: sum(suite[name] for suite in suites.values()) for name in ("lost", "silent")}
