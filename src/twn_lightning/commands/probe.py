"""`twn probe`: what is behind the scores of trained adapters: CoTs, modes of the two sides, the gate, gradients."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from twn_lightning import config
from twn_lightning.checks import recording
from twn_lightning.commands import parser
from twn_lightning.commands.tables import table_console
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.mode_matrix import REUSES
from twn_lightning.probe import (
    RECORDED_SPLITS,
    probe_cot,
    probe_gate,
    probe_gradients,
    probe_modes,
    probe_prefixes,
)
from twn_lightning.run import recorded, run_folder_for
from twn_lightning.settings import Settings
from twn_lightning.train import device_for
from twn_lightning.types import EmbeddingMode


def main(arguments: list[str]) -> None:
    """Run one probe, print its scores, say where they are."""
    options = parser(
        "probe",
        "cot: does the chain of thought matter? prefixes: what do its first tokens give? modes: query modes against "
        "candidate modes. gate: what can a gate learn from? gradients: do the two losses of stage 1 conflict on the "
        "weights they share?",
        """twn probe cot adapters.init_from=outputs/gate/nano_gate/RUN/adapters data.test_pairs=2000
        twn probe prefixes adapters.init_from=outputs/gate/nano_gate/RUN/adapters --stride 4
        twn probe modes adapters.init_from=outputs/gate/nano_gate/RUN/adapters
        twn probe gate data=mmeb_nano adapters.init_from=outputs/sft/mmeb_nano_sft/RUN/adapters
        twn probe gradients adapters.init_from=outputs/sft/nano_kv_joint/RUN/adapters interface=kv_joint --batches 50
        twn probe gradients experiment=nano_shared interface=kv_joint     (fresh adapters)""",
    )
    options.add_argument("what", choices=PROBES, help="which probe")
    options.add_argument("overrides", nargs="*", help="group=option and key=value")
    options.add_argument("--batches", type=int, default=20, help="train batches of `gradients` (default 20)")
    options.add_argument("--stride", type=int, default=4, help="CoT tokens between two rankings (default 4)")
    chosen = options.parse_intermixed_args(arguments)
    for flag in ("batches", "stride"):
        if getattr(chosen, flag) < 1:
            raise ConfigError(f"--{flag} was {getattr(chosen, flag)}: it must be at least 1")
    settings = config.load_settings(chosen.overrides, on_this_machine=True)
    run = run_folder_for(settings, kind=f"probe_{chosen.what}")
    run.require_new().create(settings, chosen.overrides)
    probe = PROBES[chosen.what]
    with recorded(run), recording(run), Progress() as progress:
        bar = progress.add_task(probe.unit, total=probe.total(settings, chosen))
        scores = probe.run(
            settings,
            run,
            **{flag: getattr(chosen, flag) for flag in probe.flags},
            device=str(device_for(settings.trainer)),
            progress=lambda done: progress.advance(bar, done),
        )
    console = table_console()
    console.print(probe.table(scores))
    console.print(f"results: {run.path}", markup=False, highlight=False, soft_wrap=True)


def _table(*names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _cot_table(scores: Mapping[str, Any]) -> Table:
    table = _table("CoT", "Queries", "hit@1", "Minus own", "Cosine to own", "Tokens", "Follows the other")
    for name, found in scores["all"].items():
        follows = _percent(found["follows"]) if "follows" in found else ""
        table.add_row(
            name,
            str(found["queries"]),
            _percent(found["hit@1"]),
            _percent(found["minus_own"]),
            f"{found['cosine_to_own']:.3f}",
            f"{found['tokens']:.1f}",
            follows,
        )
    return table


def _prefix_table(scores: Mapping[str, Any]) -> Table:
    table = _table("CoT tokens read", "hit@1", "Tokens a query")
    for cut, hit, tokens in zip(scores["cuts"], scores["hit@1"], scores["tokens_per_query"], strict=True):
        table.add_row(str(cut), f"{100 * hit:.1f}", f"{tokens:.1f}")
    return table


def _mode_table(scores: Mapping[str, Any]) -> Table:
    """A row per pair of modes."""
    table = _table("Query, candidate", "hit@1", "Tokens a query", "A candidate", *(f"At {reuse} x" for reuse in REUSES))
    table.caption = "At r x: tokens a query with those of the index shared out, r queries per candidate of the index."
    for query, candidate in product((mode.value for mode in EmbeddingMode), repeat=2):
        found = scores["all"].get(f"{query}/{candidate}")
        if found is not None:
            costs = (found["tokens_per_query"], found["tokens_per_candidate"], *found["tokens_at_reuse"].values())
            table.add_row(f"{query}, {candidate}", _percent(found["hit@1"]), *(f"{cost:.1f}" for cost in costs))
    if scores["gate_trained_on"] == "query":
        table.caption += "\nThe gate was trained on queries: on candidates it decides by what it learnt there."
    return table


def _gate_table(scores: Mapping[str, Any]) -> Table:
    table = _table("Split", "Queries", "Never", "Always", "Tokens a CoT")
    for split in RECORDED_SPLITS:
        found = scores[split]
        never, always = (f"{100 * found[name]:.1f}" for name in ("never", "always"))
        table.add_row(split, str(found["queries"]), never, always, f"{found['tokens_per_cot']:.1f}")
    return table


def _gradient_table(scores: Mapping[str, Any]) -> Table:
    table = _table("Weights", "Cosine", "95 %")
    rows: Sequence[tuple[str, Any]] = [
        ("all shared", scores["cosine"]),
        *((f"layer {layer}", found) for layer, found in scores["by_layer"].items()),
        ("same loss, other batch: CoT", scores["agreement"]["cot"]),
        ("same loss, other batch: contrastive", scores["agreement"]["contrastive"]),
    ]
    for name, found in rows:
        if found is None:
            table.add_row(name, "contrastive gradient is 0", "")
        else:
            table.add_row(name, f"{found['mean']:.3f}", "{:.3f} to {:.3f}".format(*found["ci95"]))
    return table


def _percent(interval: Mapping[str, Any]) -> str:
    low, high = interval["ci95"]
    return f"{100 * interval['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _recorded_pairs(settings: Settings, _: argparse.Namespace) -> int:
    return sum(getattr(settings.data, f"{split}_pairs") for split in RECORDED_SPLITS)


@dataclass(frozen=True)
class _Probe:
    """How the verb runs a probe and shows what it found."""

    run: Callable[..., dict[str, Any]]
    table: Callable[[Mapping[str, Any]], Table]
    total: Callable[[Settings, argparse.Namespace], int]
    """What its progress counts to."""
    unit: str = "queries"
    flags: tuple[str, ...] = ()
    """Flags that are passed on."""


PROBES = {
    "cot": _Probe(probe_cot, _cot_table, lambda settings, _: settings.data.test_pairs),
    "prefixes": _Probe(probe_prefixes, _prefix_table, _recorded_pairs, flags=("stride",)),
    "modes": _Probe(probe_modes, _mode_table, lambda settings, _: settings.data.test_pairs),
    "gate": _Probe(probe_gate, _gate_table, _recorded_pairs),
    "gradients": _Probe(
        probe_gradients, _gradient_table, lambda _, chosen: int(chosen.batches), unit="batches", flags=("batches",)
    ),
}
