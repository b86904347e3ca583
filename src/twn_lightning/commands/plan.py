"""`twn plan`: memory, tokens a second and hours of the three stages and of MMEB-V2, before anything runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from twn_lightning.benchmark.protocol import get_protocol
from twn_lightning.benchmark.registry import all_tasks
from twn_lightning.commands import parser
from twn_lightning.commands.plan_stages import settings_of_stages
from twn_lightning.commands.tables import table_console
from twn_lightning.errors import ConfigError
from twn_lightning.planning import (
    Device,
    Items,
    StagePlan,
    SuitePlan,
    device_named,
    items_of,
    model_shape,
    plan_stage,
    plan_suite,
    usual_device,
    what_fits,
)
from twn_lightning.planning.constants import GIB
from twn_lightning.settings import Settings, SFTSettings

LENGTHS = {
    "text_tokens": "text of a query's prompt",
    "visual_tokens": "image of a query",
    "candidate_text_tokens": "text of a candidate's prompt",
    "candidate_visual_tokens": "images of candidates, on average over those without",
    "cot_tokens": "mean CoT",
}


def main(arguments: list[str]) -> None:
    """Print the plan."""
    options = parser(
        "plan",
        "Predict memory of a GPU, tokens/s, hours and GPU-hours of the three stages and of MMEB-V2's 78 tasks.",
        """twn plan model=qwen3vl_8b gpus=64 batch=1024
        twn plan experiment=qwen3vl_4b_sft
        twn plan model=qwen3vl_4b gpus=1 batch=256 interface.activation_checkpointing=true --cot-tokens 150
        twn plan model=nano --json""",
    )
    options.add_argument(
        "overrides",
        nargs="*",
        help="group=option and key=value; gpus=N stands for trainer.devices and trainer.num_nodes, batch=N for stage "
        "1's stage.batch_size. A stage.KEY goes to the stages that have it",
    )
    options.add_argument("--device", help="h100 or cpu (default: h100 for Qwen3-VL, cpu for the small backbones)")
    for name, purpose in LENGTHS.items():
        options.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="N", help=f"tokens: {purpose}")
    options.add_argument("--think-rate", type=float, default=0.5, metavar="SHARE", help="of adaptive (default .5)")
    options.add_argument("--json", action="store_true", help="every number, nothing else")
    chosen = options.parse_intermixed_args(arguments)
    lengths = _lengths(chosen)
    asked = device_named(chosen.device) if chosen.device else None

    stages, notes = settings_of_stages(chosen.overrides)
    first = stages[0]
    device = asked or usual_device(first.model)
    if device.name == "cpu":
        stages = [replace(s, trainer=replace(s.trainer, accelerator="cpu")) for s in stages]
    items = replace(items_of(first.model), **lengths)
    shape = model_shape(first.model)
    plans = [plan_stage(shape, settings, device, items) for settings in stages]
    notes += [note for settings in stages for note in _stage_notes(settings, what_fits(shape, settings, device, items))]
    protocol = get_protocol("vlm2vec" if first.task.protocol == "nano" else first.task.protocol)
    suite = plan_suite(shape, stages[0], device, items, all_tasks(), protocol, chosen.think_rate)
    if chosen.json:
        print(json.dumps(_record(first, device, items, plans, suite, notes), indent=2))
        return
    console = table_console()
    title = f"{first.model.name}: {shape.parameters / 1e9:.3g} B parameters, {device.description}"
    console.print(_stage_table(plans, device, title), highlight=False)
    console.print(_memory_table(plans, device), highlight=False)
    console.print(_suite_table(suite, device, chosen.think_rate), highlight=False)
    _print_basis(console, device, items, notes)


def _stage_notes(settings: Settings, fitting: Sequence[str]) -> list[str]:
    """How often stage 1 reads its pairs, and what would make a stage fit."""
    stage, notes = settings.stage, []
    if isinstance(stage, SFTSettings):
        pairs = stage.batch_size * stage.max_steps
        share = pairs / settings.data.train_pairs
        notes.append(f"sft: {pairs:,} pairs in {stage.max_steps:,} steps, {share:.2f} passes over data.train_pairs")
    if fitting:
        notes.append(f"{stage.name}: too much for the memory; {' or '.join(fitting)} would fit")
    return notes


def _lengths(chosen: argparse.Namespace) -> dict[str, float]:
    """The lengths that were given.

    Raises:
        ConfigError: one that no item can have, or a share beyond 1.
    """
    given = {name: getattr(chosen, name) for name in LENGTHS if getattr(chosen, name) is not None}
    least = {name: 1.0 if name == "cot_tokens" else 0.0 for name in given}
    problems = [
        f"--{name.replace('_', '-')} must be at least {least[name]:g} tokens, not {value:g}"
        for name, value in given.items()
        if value < least[name]
    ]
    if not 0 <= chosen.think_rate <= 1:
        problems.append(f"--think-rate is a share of the queries, from 0 to 1, not {chosen.think_rate}")
    if problems:
        raise ConfigError(problems)
    return given


# --- output ---------------------------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in ("Stage", "Router") else "right", no_wrap=True)
    return table


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def _stage_table(plans: Sequence[StagePlan], device: Device, title: str) -> Table:
    unit = device.unit
    columns = ["Stage", f"{unit}s", "Steps", "s/step", "Tokens/s", "Hours", f"{unit}-hours", f"GiB a {unit}"]
    table = _table(title, [*columns, "Checkpointing", "GiB otherwise"])
    for plan in plans:
        size = _gib(plan.memory.total)
        table.add_row(
            plan.stage,
            str(plan.devices),
            f"{plan.steps:,.0f}",
            f"{plan.seconds_per_step:,.3g}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.hours:,.3g}",
            f"{plan.device_hours:,.3g}",
            size if plan.memory.fits(device) else f"[red]{size}, too much[/red]",
            "on" if plan.checkpointing else "off",
            _gib(plan.memory_otherwise.total),
        )
    hours, device_hours = sum(plan.hours for plan in plans), sum(plan.device_hours for plan in plans)
    table.add_row("all", "", "", "", "", f"{hours:,.3g}", f"{device_hours:,.3g}")
    return table


def _memory_table(plans: Sequence[StagePlan], device: Device) -> Table:
    names = list(dict.fromkeys(name for plan in plans for name in plan.memory.parts))
    table = _table(f"GiB of a {device.unit} at the peak, of {device.memory_gib:g}", ["Stage", *names])
    for plan in plans:
        sizes = [_gib(plan.memory.parts[name]) if name in plan.memory.parts else "" for name in names]
        table.add_row(plan.stage, *sizes)
    return table


def _suite_table(suite: SuitePlan, device: Device, think_rate: float) -> Table:
    counts = f"{suite.queries:,} queries, {suite.candidates:,} candidates"
    title = f"Hours for MMEB-V2, {device.unit}s: {suite.devices}; {counts}"
    columns = list(suite.hours["never"])
    table = _table(title, ["Router", *columns, f"{device.unit}-hours", "all, cache filled by never"])
    for router, hours in suite.hours.items():
        name = f"{router}, {think_rate:.0%} think" if router == "adaptive" else router
        cached = "" if router == "never" else f"{suite.hours_with_cache[router]:.3g}"
        row = [f"{hours[column]:.3g}" for column in columns]
        table.add_row(name, *row, f"{hours['all'] * suite.devices:.3g}", cached)
    return table


def _print_basis(console: Console, device: Device, items: Items, notes: Sequence[str]) -> None:
    """What the numbers rest on."""
    console.print("What this rests on", style="bold")
    longest = f"{items.cot_tokens:g} of CoT (the longest of a batch {items.padded_cot:g})"
    lengths = f"a query has {items.prompt_tokens:g} tokens ({items.visual_tokens:g} visual) and {longest}"
    candidates = f"a candidate {items.candidate_tokens:g}; hard negatives per pair: {items.hard_negatives:g}"
    lines = [
        *notes,
        f"Assumed: {lengths}; {candidates}. Flags change the lengths.",
        "Assumed for MMEB-V2: images as long as a query's, videos of the protocol's frames, pages that fill its pixel "
        "budget; the queries of a task share its candidates, except in video QA and moment retrieval.",
        "Left out: optimizer steps, waiting for data, validation, checkpoints, the gate's own training.",
        *device.sources,
    ]
    for line in lines:
        console.print(f"- {line}", highlight=False, markup=False)


def _record(
    settings: Settings, device: Device, items: Items, plans: Sequence[StagePlan], suite: SuitePlan, notes: list[str]
) -> dict[str, Any]:
    """Everything as plain values, memory in GiB."""
    stages = {}
    for plan in plans:
        record = asdict(plan) | {"device_hours": plan.device_hours, "fits": plan.memory.fits(device)}
        record["memory"] = {name: size / GIB for name, size in plan.memory.parts.items()}
        record["memory_gib"] = plan.memory.total / GIB
        record["kept_cache_share"] = plan.memory.kept_share
        record["memory_otherwise"] = plan.memory_otherwise.total / GIB
        stages[plan.stage] = record
    return {
        "model": settings.model.name,
        "device": asdict(device),
        "items": asdict(items),
        "stages": stages,
        "mmeb_v2": asdict(suite),
        "notes": notes,
    }
