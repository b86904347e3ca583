"""Rows of the table of speed, read from the results of the benchmarks: what was measured, its bar, equal outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.registry import BENCHMARKS, Device
from twn_lightning.metrics.statistics import bootstrap_mean

Result = Mapping[str, Any]
SAME = 1e-4
"""Of 1 - cosine, between two fp32 computations of one embedding; and `SAME_BF16` between two in bf16."""
SAME_BF16 = 0.02
RANKS_DIFFER = 1e-5
"""Largest difference allowed between the losses of one rank and of several."""


@dataclass(frozen=True)
class Row:
    """One measured number.

    Args:
        benchmark: row of the table of speed.
        case: model and way.
        value: the number, with its 95 % interval where rounds give one.
        low: of the interval.
        high: of the interval.
        unit: `x` for a ratio to the peer, or what a number of its own is in.
        bar: what is asked of it; None: nothing.
        at_most: the bar is an upper one, as for memory.
        agree: whether ours and the peer had equal outputs.
    """

    benchmark: str
    case: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    bar: float | None = None
    at_most: bool = False
    agree: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the number is on the right side of its bar; None without one."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    @property
    def measured(self) -> str:
        """The number as tables show it: `3.15 x [2.09, 3.20]`."""
        digits = 0 if self.value >= 100 else 2
        interval = "" if self.low is None else f" [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"
        return f"{self.value:,.{digits}f} {self.unit}".rstrip() + interval

    @property
    def bar_text(self) -> str:
        """The bar as tables show it: `>= 3 x`."""
        if self.bar is None:
            return "none here"
        return f"{'<=' if self.at_most else '>='} {self.bar:,g} {self.unit}".rstrip()

    @property
    def verdict(self) -> str:
        """`yes`, `no`, an empty word without a bar, or what matters more than any of them."""
        if not self.agree:
            return "wrong: outputs differ"
        return {None: "", True: "yes", False: "no"}[self.met]


def rows_of(name: str, result: Result) -> list[Row]:
    """What a result of a benchmark says.

    Args:
        name: of the benchmark, as in the registry.
        result: the content of its file.

    Returns:
        Its rows; none of the parts that failed while they were measured.
    """
    reader = READERS.get(name)
    return [] if reader is None else list(reader(result))


def read_rows(name: str, device: Device, folder: Path) -> list[Row] | None:
    """The rows of a result file; None where there is no such file."""
    path = folder / BENCHMARKS[name].result(device)
    return rows_of(name, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _ratio(benchmark: str, case: str, speedup: Mapping[str, float] | None, **more: Any) -> Iterator[Row]:
    if speedup is not None:
        yield Row(benchmark, case, speedup["ratio"], speedup["low"], speedup["high"], **more)


def _think(result: Result) -> Iterator[Row]:
    if "nano" in result:
        yield from _think(result["nano"])
    outputs, exact = result["outputs"], result["dtype"] == "torch.float32"
    agree = outputs.get("least_cosine_to_one_pass", 0) > 1 - (SAME if exact else SAME_BF16)
    agree = agree and (not exact or outputs["tokens_as_generate"] == 1)
    case = f"{result['model']}, {result['rows']} prompts, CoTs of {result['tokens']:.0f} tokens"
    for name, ways in (("adaptive_encode", {"": "", "_merged": ", merged copy"}), ("embed_after_think", {"": ""})):
        bar = result[name]["bar"]
        for way, shown in ways.items():
            yield from _ratio(name, case + shown, result[name].get(f"speedup{way}"), bar=bar, agree=agree)


def _decode(result: Result) -> Iterator[Row]:
    bars, small = result["bars"], result["small_equality"]
    agree = all(
        small.get(way, {}).get("tokens_equal", False) and small[way]["log_prob_difference"] < 1e-5
        for way in ("fused", "merged")
    ) and all(found["log_prob_drift_mean"] <= bars["log_prob_drift_mean"] for found in result["outputs"].values())
    parts = {f"{result['model']}, {result['rows']} prompts": result}
    if "times_generate" in result.get("nano", {}):
        parts = {f"nano, {result['nano']['rows']} prompts": result["nano"], **parts}
    for model, part in parts.items():
        for way in ("unmerged", "merged copy"):
            rate, case = part["rates"][f"ours, {way}"], f"{model}, {way}"
            if "tokens_per_second" in bars:
                bar, interval = bars["tokens_per_second"][f"ours, {way}"], bootstrap_mean(rate["rounds"])
                found = rate["tokens_per_second"], interval.low, interval.high
                yield Row("decode", case, *found, unit="tokens/s", bar=bar, agree=agree)
            else:
                times = part["times_generate"][f"ours, {way}"]
                yield from _ratio("decode", case, times, bar=bars["times_generate"], agree=agree)


def _vision(result: Result) -> Iterator[Row]:
    for case, found in result["cases"].items():
        if "error" not in found:
            case = f"{result['model']}, {case} patches" if " x " in case else f"{result['model']}, {case} images"
            yield from _ratio("vision", case, found["speedup"], bar=found["bar"], agree=found["outputs_agree"])


def _sft_step(result: Result) -> Iterator[Row]:
    bars = result["bars"]
    for part, speed, memory in (
        ("without cached representations", None, "memory_without_grad_cache"),
        ("with cached representations", "speedup_over_grad_cache", "memory_with_grad_cache"),
    ):
        found = result[part]
        ours = found["ways"]["ours"]
        case = f"{result['model']}, {found['batch']} pairs, peer {part.replace('representations', 'gradients')}"
        if speed is not None and "speedup" in ours:
            yield from _ratio(
                "sft_step", f"{case}: items/s", ours["speedup"], bar=bars[speed], agree=found["outputs_agree"]
            )
        if "memory_ratio" in ours:
            limit = {"bar": bars[memory], "at_most": True, "agree": found["outputs_agree"]}
            yield Row("sft_step", f"{case}: memory", ours["memory_ratio"], **limit)


def _train_step(result: Result) -> Iterator[Row]:
    for rows, ways in result["rows"].items():
        for way, found in ways.items():
            mfu = found.get(way, {}).get("mfu")
            if mfu is not None:
                bar, case = 100 * result["bar_mfu"], f"{result['model']}, {rows} rows, {way.removeprefix('ours, ')}"
                yield Row("train_mfu", case, 100 * mfu, unit="% MFU", bar=bar, agree=result["outputs_agree"])


def _latency(result: Result) -> Iterator[Row]:
    for model, found in result.items():
        if isinstance(found, Mapping) and "speedup_p95" in found:
            agree = found["outputs"]["cots_as_generate"] in (None, 1.0)
            case = f"{model}, {found['queries']} queries, {found['think_rate']:.0%} think"
            yield from _ratio("latency", f"{case}: p50", found["speedup"], bar=result["bar"], agree=agree)
            yield from _ratio("latency", f"{case}: p95", found["speedup_p95"], agree=agree)


def _grpo_step(result: Result) -> Iterator[Row]:
    numbers = [result[name] for name in ("prompts", "completions_per_prompt", "tokens")]
    yield from _single(
        "grpo_step", "{}, {} prompts x {} completions of {} tokens".format(result["model"], *numbers), result
    )


def _loader(result: Result) -> Iterator[Row]:
    step = result["step_seconds"] / result["loading_seconds"]
    case = f"{result['workers']} workers, a step of {step:.2g} times loading a batch"
    yield from _single("loader", f"{case} (at most {result['bound_here']:.2g} x here)", result)


def _suite(result: Result) -> Iterator[Row]:
    yield from _single("suite", f"{result['model']}, {result['queries']:,} queries", result)


def _single(benchmark: str, case: str, result: Result) -> Iterator[Row]:
    yield from _ratio(benchmark, case, result["speedup"], bar=result["bar"], agree=result["outputs_agree"])


def _growth(result: Result) -> Iterator[Row]:
    for axis, series in result["series"].items():
        sizes = ", ".join(f"{size:,}" for size in series["sizes"])
        for kind in ("time", "memory"):
            if kind in series:
                found = series[kind]
                numbers = found["exponent"], found["low"], found["high"]
                case, agree = f"{kind} of {series['work']} ({sizes})", series.get("loss_difference", 0) < RANKS_DIFFER
                yield Row(axis, case, *numbers, unit="", bar=found["bar"], at_most=True, agree=agree)


def _fsdp2_stages(result: Result) -> Iterator[Row]:
    for stage, found in result["stages"].items():
        if "error" not in found:
            memory = found["peak_memory_gb"]
            case = f"{result['model']}, stage {stage}, one rank" + (f", {memory:.0f} GB" if memory else "")
            yield Row("fsdp2_stages", case, found["rows_per_second"], unit="rows/s")


READERS: dict[str, Callable[[Result], Iterator[Row]]] = {
    "think": _think,
    "decode": _decode,
    "vision": _vision,
    "sft_step": _sft_step,
    "train_step": _train_step,
    "grpo_step": _grpo_step,
    "loader": _loader,
    "latency": _latency,
    "suite": _suite,
    "growth": _growth,
    "fsdp2_stages": _fsdp2_stages,
}
