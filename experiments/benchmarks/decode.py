"""CoT decoding: ours, with unmerged LoRA and with a merged copy, against Hugging Face's `generate`, taken in turn.

    python -m experiments.benchmarks.decode              # on a GPU the shape of Qwen3-VL-4B in bf16, else a small one
    python -m experiments.benchmarks.decode --rounds 3 --no-compile

Every way writes the same number of tokens for the same prompts of 322 tokens. Tokens per second are of decoding alone,
which for `generate` begins with the first token. Writes decode_cuda.json or decode_cpu.json after each part.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.decoders import (
    NANO_TOKENS,
    Decoders,
    build_decoders,
    generate,
    nano_decoders,
    peer_generate,
)
from experiments.benchmarks.pairs import Timing, in_turn, speedup, write_result
from twn_lightning.backbone.decoding import Decoded, decode_cots
from twn_lightning.backbone.decoding_engine import DecodingEngine, DecodingWay, decoding_with, make_engine
from twn_lightning.backbone.interface import ReasonerState

PEER, PEER_STATIC = "transformers", "transformers, static cache and compile"
READING = "ours, reading"
BARS = {"ours, unmerged": 2600.0, "ours, merged copy": 4000.0}
"""Required tokens per second on an H100: Qwen3-VL-4B's shape, 32 prompts."""
CPU_BAR = 1.5
"""Required ratio to `generate` on a CPU."""
DRIFT = 0.02
"""Mean difference allowed between the log-probabilities of decoding and those of reading the CoT in one pass."""


class Benchmark:
    """The ways of decoding one batch.

    Args:
        decoders: models and prompts.
        tokens: the cap; with random weights every CoT is as long.
    """

    def __init__(self, decoders: Decoders, tokens: int):
        self.decoders, self.tokens = decoders, tokens
        self.state: ReasonerState = self.read()
        mask_BT = self.decode("plain").cots.mask_BT
        self.steps, self.mean_length = mask_BT.shape[1], float(mask_BT.sum(1).float().mean())
        self.after_first: dict[str, list[float]] = defaultdict(list)
        """Seconds that each call of `generate` took behind the first token."""

    @torch.no_grad()
    def read(self) -> ReasonerState:
        return self.decoders.ours.reason(self.decoders.prompts)

    def decode(self, way: DecodingWay | DecodingEngine) -> Decoded:
        with decoding_with(self.decoders.ours, way):
            return decode_cots(self.decoders.ours, self.state, max_new_tokens=self.tokens)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Ours, what it takes to read the prompts, and `generate`, which does both."""
        ours = self.decoders.ours
        merged, fused = make_engine(ours, "merged"), make_engine(ours, "fused")
        found: dict[str, Callable[[], Any]] = {
            "ours, unmerged": lambda: self.decode(fused),
            "ours, merged copy": lambda: self.decode(merged),
            "ours, plain": lambda: self.decode("plain"),
            PEER: lambda: self.generate(PEER),
            READING: self.read,
        }
        if self.decoders.merged_peer is not None:
            found[f"{PEER}, merged"] = lambda: self.generate(f"{PEER}, merged")
        if ours.device.type == "cuda":
            unrecorded = make_engine(ours, "fused", recorded=False)
            found["ours, unmerged, no graphs"] = lambda: self.decode(unrecorded)
        return found

    def static_ways(self) -> dict[str, Callable[[], Any]]:
        """`generate` with a static cache, which compiles on a GPU; minutes at the first call."""
        return {name: partial(self.generate, name) for name in (PEER_STATIC, f"{PEER_STATIC}, merged")}

    def generate(self, name: str) -> None:
        """One of Hugging Face's ways, whose name says which."""
        static, decoders = name.startswith(PEER_STATIC), self.decoders
        if "merged" in name:
            processor = decoders.ours.processor
            found = generate(decoders.merged_peer, decoders.prompts, self.tokens, processor=processor, static=static)
        else:
            found = peer_generate(decoders, self.tokens, static)
        self.after_first[name].append(found.seconds_after_first)

    # --- outputs -----------------------------------------------------------------------------------------------------

    def outputs(self) -> dict[str, Any]:
        """What each way of ours wrote, against one pass over the same tokens and against `generate`."""
        theirs = peer_generate(self.decoders, self.tokens).ids_BT
        return {way: self.compared(self.decode(way), theirs) for way in ("plain", "fused", "merged")}

    @torch.no_grad()
    def compared(self, decoded: Decoded, theirs_BT: Tensor) -> dict[str, Any]:
        """Drift of the log-probabilities of a decoded CoT, and the share of tokens that `generate` writes too."""
        read = self.decoders.ours.reason(self.decoders.prompts, decoded.cots, want_logits=True)
        assert read.cot_logits_BTV is not None
        drift, mask_BT = [], decoded.cots.mask_BT.bool()
        for row, logits_TV in enumerate(read.cot_logits_BTV):
            log_probs_T = logits_TV[:-1].float().log_softmax(-1).gather(1, decoded.cots.ids_BT[row][:, None])[:, 0]
            drift.append((log_probs_T - decoded.log_probs_BT[row]).abs()[mask_BT[row]])
        drift_N = torch.cat(drift)
        shared = min(theirs_BT.shape[1], decoded.cots.ids_BT.shape[1])
        same_BT = theirs_BT[:, :shared] == decoded.cots.ids_BT[:, :shared]
        return {
            "log_prob_drift_mean": float(drift_N.mean()),
            "log_prob_drift_max": float(drift_N.max()),
            "tokens_written": int(mask_BT.sum()),
            "tokens_as_generate": float(same_BT.float().mean()),
            "tokens_as_generate_up_to_a_first_difference": float(same_BT.long().cumprod(1).float().mean()),
        }

    def kernels(self) -> str:
        """Where the time of decoding goes: the profiler's table."""
        engine = make_engine(self.decoders.ours, "fused")
        self.decode(engine)
        cuda = self.decoders.ours.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
            self.decode(engine)
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        table: str = found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70)
        return table

    # --- numbers -----------------------------------------------------------------------------------------------------

    def rates(self, timings: dict[str, Timing]) -> dict[str, Any]:
        """Tokens per second of every way that writes, without and with reading the prompts."""
        rows = len(self.decoders.prompts)
        found: dict[str, Any] = {}
        for name, timing in timings.items():
            if timing.error or name == READING:
                continue
            seconds, whole, missing = timing.seconds, timing.median, 0
            if name in self.after_first:
                seconds, missing = self.after_first[name][-len(timing.seconds) :], 1
            else:
                whole += timings[READING].median
            written = rows * (self.mean_length - missing)
            found[name] = {
                "tokens_per_second": written / median(seconds),
                "rounds": [written / value for value in seconds],
                "with_reading": rows * self.mean_length / whole,
                "milliseconds_per_step": 1000 * median(seconds) / (self.steps - missing),
            }
        return found


def small_equality(device: torch.device) -> dict[str, Any]:
    """In fp32 and a small shape every way writes the same tokens, with the same log-probabilities, as `generate`."""
    bench = Benchmark(build_decoders("midsize", device, torch.float32, 8, merged_peer=False), 24)
    theirs = peer_generate(bench.decoders, bench.tokens).ids_BT
    plain = bench.decode("plain")
    found: dict[str, Any] = {"plain_as_generate": torch.equal(plain.cots.ids_BT, theirs)}
    for way in ("fused", "merged"):
        decoded = bench.decode(way)
        again = bench.decode(way)
        found[way] = {
            "tokens_equal": torch.equal(decoded.cots.ids_BT, plain.cots.ids_BT),
            "log_prob_difference": float((decoded.log_probs_BT - plain.log_probs_BT).abs().max()),
            "repeatable": torch.equal(decoded.cots.ids_BT, again.cots.ids_BT),
        }
    found["sampled_tokens_equal"] = torch.equal(sample(bench, "plain"), sample(bench, "fused"))
    return found


def nano(rows: int, rounds: int) -> dict[str, Any]:
    """Trained adapters on a CPU, whose CoTs end at different lengths: ours drops the rows that are done."""
    bench = Benchmark(nano_decoders(rows), NANO_TOKENS)
    timings = in_turn(bench.ways(), "cpu", rounds=rounds)
    return {
        "rows": rows,
        "mean_length": bench.mean_length,
        "longest": bench.steps,
        "rates": (rates := bench.rates(timings)),
        "times_generate": times_generate(rates),
        "timings": {name: timing.record() for name, timing in timings.items()},
    }


def sample(bench: Benchmark, way: DecodingWay) -> Tensor:
    generator = torch.Generator(bench.decoders.ours.device).manual_seed(3)
    with decoding_with(bench.decoders.ours, way):
        return decode_cots(
            bench.decoders.ours, bench.state, max_new_tokens=bench.tokens, temperature=1.0, generator=generator
        ).cots.ids_BT


def attempt(results: dict[str, Any], name: str, part: Callable[[], Any]) -> Any:
    """Run one part and keep what it found, or its error: the other parts' results stay."""
    began = time.perf_counter()
    try:
        results[name] = part()
    except Exception as error:
        traceback.print_exc()
        results[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return results[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", help="qwen3vl_4b on a GPU, midsize on a CPU by default")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out transformers' static cache and compile")
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    size, dtype = args.size or ("qwen3vl_4b" if cuda else "midsize"), torch.bfloat16 if cuda else torch.float32
    results: dict[str, Any] = {
        "command": " ".join(["python -m experiments.benchmarks.decode", *sys.argv[1:]]),
        "model": size,
        "dtype": str(dtype),
        "rows": args.rows,
        "tokens": args.tokens,
        "bars": {
            "log_prob_drift_mean": DRIFT,
            **({"tokens_per_second": BARS} if cuda else {"times_generate": CPU_BAR}),
        },
    }
    attempt(results, "small_equality", lambda: small_equality(device))
    if not cuda:
        attempt(results, "nano", lambda: nano(8 * args.rows, args.rounds))
    bench = Benchmark(build_decoders(size, device, dtype, args.rows), args.tokens)
    attempt(results, "outputs", bench.outputs)
    print(attempt(results, "kernels", bench.kernels))
    timings: dict[str, Timing] = {}

    def timed(ways: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        timings.update(in_turn(ways, device, rounds=args.rounds))
        return {name: timing.record() for name, timing in timings.items()}

    parts: dict[str, Callable[[], Any]] = {
        "timings": lambda: timed(bench.ways()),
        "timings_static": lambda: timed(bench.static_ways()),
    }
    if args.no_compile or not cuda:
        del parts["timings_static"]
    for name, part in parts.items():
        attempt(results, name, part)
        summarise(results, bench, timings)
        write_result(f"decode_{device.type}", results, args.out)
        print("\n".join(table(results)), flush=True)


def summarise(results: dict[str, Any], bench: Benchmark, timings: dict[str, Timing]) -> None:
    """Rates, and ratios to `generate`."""
    results["rates"] = bench.rates(timings)
    results["times_generate"] = times_generate(results["rates"])


def times_generate(rates: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second over those of `generate` with a dynamic cache and unmerged LoRA, with intervals."""
    seconds = {name: Timing([1 / value for value in rate["rounds"]]) for name, rate in rates.items()}
    return {name: speedup(seconds[PEER], own) for name, own in seconds.items() if PEER in rates}


def ratio_text(ratio: dict[str, float] | None) -> str:
    """A ratio for the terminal."""
    return "" if ratio is None else f"{ratio['ratio']:5.2f} x"


def table(results: dict[str, Any]) -> list[str]:
    """What to read first."""
    lines = [f"{results['model']}, {results['rows']} prompts x {results['tokens']} tokens; bars {results['bars']}"]
    lines.append(f"fp32, small shape: {results['small_equality']}")
    for way, found in results["outputs"].items():
        lines.append(f"outputs, {way}: {found}")
    for model, rates in (("nano", results.get("nano", {}).get("rates", {})), (results["model"], results["rates"])):
        ratios = times_generate(rates)
        lines += [
            f"{model}, {name:<52} {rate['tokens_per_second']:8,.0f} tok/s, {rate['with_reading']:8,.0f} with reading, "
            f"{rate['milliseconds_per_step']:6.2f} ms a step, {ratio_text(ratios.get(name))} generate"
            for name, rate in rates.items()
        ]
    return lines


if __name__ == "__main__":
    main()
