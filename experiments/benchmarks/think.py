"""Thinking where it is needed, over one cache: adaptive encoding and pass E against generating and reading again.

    python -m experiments.benchmarks.think    # on a GPU the shape of Qwen3-VL-4B in bf16, else nano and a small model

The peer is how UME-R1 evaluates: Hugging Face's `generate` writes a CoT for every prompt, then prompt and CoT are read
again, with the images, under the embedding adapter. Ours reads a prompt once, asks the gate, thinks for some prompts,
and runs the queries over the cache. Weights, adapters and prompts are the same. nano has its trained adapters and gate,
and CoTs that end where they do; a model of random weights writes `--tokens` for every second prompt. Writes
think_cuda.json or think_cpu.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.decode import attempt
from experiments.benchmarks.decoders import (
    NANO_TOKENS,
    Decoders,
    build_decoders,
    cots_until,
    nano_decoders,
    peer_generate,
    reencode,
)
from experiments.benchmarks.pairs import Timing, in_turn, speedup, write_result
from twn_lightning.backbone.decoding import Decoded, decode_cots
from twn_lightning.backbone.decoding_engine import DecodingEngine, decoding_with, make_engine
from twn_lightning.backbone.vision import visual_inputs
from twn_lightning.evaluation.encoders.twn import load_trained
from twn_lightning.gate import RoutingGate
from twn_lightning.types import CotBatch

ADAPTIVE, ADAPTIVE_MERGED, ALWAYS = "ours, adaptive", "ours, adaptive, merged copy", "transformers, always"
PASS_E, REENCODE = "pass E on the cache", "prompt, CoT and queries read again"
VISION, READING, DISCRIMINATIVE, DECODING = "vision tower", "prompts read", "pass E, discriminative", "CoTs decoded"
"""Parts of ours. The vision tower is within the reading of prompts; the decoding is that of the prompts that think."""
BARS = {
    "cuda": {"adaptive_encode": 6.0, "embed_after_think": 4.0},
    "cpu": {"adaptive_encode": 3.0, "embed_after_think": 4.0},
}
"""Required ratios; on a GPU, of an H100."""


class Benchmark:
    """The ways of embedding one batch, of which half needs thought.

    Args:
        decoders: models and prompts.
        tokens: the cap of a CoT; random weights write as many.
        gate: a trained one with its threshold; None: an untrained one is asked, and every second prompt thinks.
    """

    def __init__(self, decoders: Decoders, tokens: int, gate: tuple[RoutingGate, float] | None = None):
        self.decoders, self.tokens = decoders, tokens
        ours = decoders.ours
        self.gate, self.threshold = gate or (RoutingGate(2 * ours.hidden_size).to(ours.device).eval(), None)
        self.everyone = list(range(len(decoders.prompts)))
        self.decoded = self.think(self.everyone)

    @torch.no_grad()
    def think(self, rows: list[int]) -> Decoded:
        """CoTs of some prompts."""
        ours = self.decoders.ours
        return decode_cots(ours, ours.reason(self.decoders.prompts).select(rows), max_new_tokens=self.tokens)

    @torch.no_grad()
    def adaptive(self, engine: DecodingEngine, rows: list[int] | None = None) -> Tensor:
        """Embeddings (B, D): every prompt is read and embedded, some rows think and are embedded with their CoT."""
        ours = self.decoders.ours
        state = ours.reason(self.decoders.prompts)
        found = ours.embed(state, ["discriminative"]).discriminative_BD
        assert found is not None
        if rows is None:
            rows = self.routed(self.gate(ours.gate_features(state, found)).sigmoid())
        with decoding_with(ours, engine):
            decoded = decode_cots(ours, state.select(rows), max_new_tokens=self.tokens)
        generative = ours.embed(decoded.state, ["generative"]).generative_BD
        assert generative is not None
        found[rows] = generative
        return found

    def routed(self, p_think_B: Tensor) -> list[int]:
        """The rows that think."""
        if self.threshold is None:
            return self.everyone[::2]
        return (p_think_B > self.threshold).nonzero()[:, 0].tolist()

    def always(self) -> Tensor:
        """The peer's embeddings (B, D)."""
        return reencode(self.decoders.peer, self.decoders.prompts, self.generated())

    def generated(self) -> CotBatch:
        """The peer's CoTs, up to its end of turn."""
        ids_BT = peer_generate(self.decoders, self.tokens).ids_BT
        return cots_until(ids_BT, self.decoders.peer.model.generation_config.eos_token_id)

    @torch.no_grad()
    def pass_e(self) -> Tensor:
        found = self.decoders.ours.embed(self.decoded.state, ["generative"]).generative_BD
        assert found is not None
        return found

    def reencode(self) -> Tensor:
        return reencode(self.decoders.peer, self.decoders.prompts, self.decoded.cots)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Adaptive and always thinking, ours with both decoders, and the embedding of CoTs that are there."""
        fused, merged = (make_engine(self.decoders.ours, way) for way in ("fused", "merged"))
        return {
            ADAPTIVE: lambda: self.adaptive(fused),
            ADAPTIVE_MERGED: lambda: self.adaptive(merged),
            "ours, always": lambda: self.adaptive(fused, self.everyone),
            ALWAYS: self.always,
            PASS_E: self.pass_e,
            REENCODE: self.reencode,
        }

    @torch.no_grad()
    def parts(self) -> dict[str, Callable[[], Any]]:
        """What adaptive encoding consists of, besides pass E over the CoTs."""
        ours, prompts = self.decoders.ours, self.decoders.prompts
        state = ours.reason(prompts)
        found = ours.embed(state, ["discriminative"]).discriminative_BD
        assert found is not None
        rows = self.routed(self.gate(ours.gate_features(state, found)).sigmoid())
        return {
            VISION: torch.no_grad()(lambda: visual_inputs(ours.model.model.visual, prompts)),
            READING: torch.no_grad()(lambda: ours.reason(prompts)),
            DISCRIMINATIVE: torch.no_grad()(lambda: ours.embed(state, ["discriminative"])),
            DECODING: lambda: decode_cots(ours, state.select(rows), max_new_tokens=self.tokens),
        }

    def outputs(self) -> dict[str, Any]:
        """What the two sides make of the same prompts: tokens, and the cosine of an embedding to one made again.

        The interfaces differ (the cache of the reasoner, or the embedder's own reading), so embeddings are compared
        within ours: over the grown cache against over the cache of one pass over prompt and CoT.
        """
        ours, cots = self.decoders.ours, self.decoded.cots
        with torch.no_grad():
            forced = ours.embed(ours.reason(self.decoders.prompts, cots), ["generative"]).generative_BD
        assert forced is not None
        same = written = 0
        for own_T, their_T in zip(_rows(cots), _rows(self.generated()), strict=True):
            shared = min(len(own_T), len(their_T))
            same += int((own_T[:shared] == their_T[:shared]).sum())
            written += max(len(own_T), len(their_T))
        return {
            "tokens_as_generate": same / written,
            "least_cosine_to_one_pass": float((self.pass_e() * forced).sum(-1).min()),
        }


def _rows(cots: CotBatch) -> list[Tensor]:
    """The tokens of each CoT, without padding."""
    return [ids_T[mask_T.bool()] for ids_T, mask_T in zip(cots.ids_BT, cots.mask_BT, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", help="qwen3vl_4b on a GPU, midsize on a CPU by default")
    parser.add_argument("--rows", type=int, default=32, help="prompts; nano gets eight times as many")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    size, dtype = args.size or ("qwen3vl_4b" if cuda else "midsize"), torch.bfloat16 if cuda else torch.float32
    result: dict[str, Any] = {"command": " ".join(["python -m experiments.benchmarks.think", *sys.argv[1:]])}
    if not cuda:
        result["nano"] = {"model": "nano", "dtype": str(dtype), **measure(nano_benchmark(8 * args.rows), args.rounds)}
    bench = Benchmark(build_decoders(size, device, dtype, args.rows, merged_peer=False), args.tokens)
    result |= {"model": size, "dtype": str(dtype), **measure(bench, args.rounds)}
    write_result(f"think_{device.type}", result, args.out)
    for part in [result] if cuda else [result["nano"], result]:
        for name in ("model", "adaptive_encode", "embed_after_think", "items_per_second", "outputs"):
            print(f"{name}: {part[name]}")


def nano_benchmark(rows: int) -> Benchmark:
    """Trained adapters and their gate on test queries of the grid world, half of which need no step of reasoning."""
    _, gate, threshold = load_trained()
    assert gate is not None, "the packaged adapters have a gate"
    return Benchmark(nano_decoders(rows), NANO_TOKENS, (gate, threshold))


def measure(bench: Benchmark, rounds: int) -> dict[str, Any]:
    """Outputs, timings, and what they amount to."""
    device, rows = bench.decoders.ours.device.type, len(bench.decoders.prompts)
    result: dict[str, Any] = {"rows": rows, "tokens": float(bench.decoded.cots.lengths_B.float().mean())}
    attempt(result, "outputs", bench.outputs)
    timings = in_turn({**bench.ways(), **bench.parts()}, device, rounds=rounds)
    result |= ratios(timings, device, rows)
    result["timings"] = {name: timing.record() for name, timing in timings.items()}
    return result


def ratios(timings: dict[str, Timing], device: str, rows: int) -> dict[str, Any]:
    """The two rows of the table of speed, and items per second of every way."""
    pairs = {"adaptive_encode": (ALWAYS, ADAPTIVE), "embed_after_think": (REENCODE, PASS_E)}
    found: dict[str, Any] = {
        name: {"speedup": speedup(timings[peer], timings[ours]), "bar": BARS[device][name]}
        for name, (peer, ours) in pairs.items()
    }
    found["adaptive_encode"]["speedup_merged"] = speedup(timings[ALWAYS], timings[ADAPTIVE_MERGED])
    found["items_per_second"] = {name: rows / t.median for name, t in timings.items() if not t.error}
    return found


if __name__ == "__main__":
    main()
