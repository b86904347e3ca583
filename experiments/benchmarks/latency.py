"""Latency of one query at batch 1: the gate decides whether to think, against always thinking.

    python -m experiments.benchmarks.latency             # nano and a small random model; on a GPU nano and Qwen3-VL-4B
    python -m experiments.benchmarks.latency --easy 0.5 --queries 80

Both sides get the item and give an embedding; rendering, tokenising and patches are part of it. Ours is `encode` in
adaptive mode. The peer is how UME-R1 evaluates: Hugging Face's `generate` writes a CoT, then prompt and CoT are read
again, with the image, under the embedding adapter. nano has its trained adapters and gate, and queries of which the
share `--easy` needs no step of reasoning; the random model has a random gate, whose threshold sends that share past.
A percentile is over queries, each with the median of its rounds. Writes latency_cuda.json or latency_cpu.json.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.decoders import NANO_TOKENS, build_decoders, cots_until, generate, reencode
from experiments.benchmarks.pairs import Timing, in_turn, write_result
from experiments.benchmarks.random_qwen3vl import MERGE, PATCH
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.data.sources import get_source
from twn_lightning.evaluation.encoders.twn import load_trained
from twn_lightning.gate import RoutingGate
from twn_lightning.settings import DataSettings, InterfaceSettings
from twn_lightning.types import EmbeddingMode, Item, Media

OURS, PEER = "ours, adaptive", "transformers, always"
BAR = 3.0
"""Required ratio of the medians."""
SAMPLES = 1000
"""Bootstrap resamples of the queries."""


@dataclass
class Server:
    """Both sides of one model, and its queries."""

    ours: DualLoRABackbone
    gate: RoutingGate
    threshold: float
    peer: DualLoRABackbone
    items: list[Item]
    tokens: int
    """Cap of a CoT; the random model writes as many."""

    def adaptive(self, item: Item) -> Encoded:
        """Ours."""
        return encode(
            self.ours,
            [item],
            EmbeddingMode.ADAPTIVE,
            gate=self.gate,
            threshold=self.threshold,
            max_new_tokens=self.tokens,
        )

    def written(self, item: Item) -> Tensor:
        """The peer's CoT (1, T)."""
        with self.peer.adapters.pin("reasoning"):
            return generate(self.peer.model, self.prompt(item), self.tokens, processor=self.peer.processor).ids_BT

    def always(self, item: Item) -> Tensor:
        """The peer's embedding (1, D)."""
        written = cots_until(self.written(item), self.peer.model.generation_config.eos_token_id)
        return reencode(self.peer, self.prompt(item), written)

    def prompt(self, item: Item) -> Any:
        return self.peer.processor([item]).to(self.peer.device)

    def outputs(self) -> dict[str, Any]:
        """Whether the CoTs of the queries that think are those that the peer writes, up to its end of turn."""
        think, same = [], []
        for item in self.items:
            found = self.adaptive(item)
            think.append(bool(found.think_N[0]))
            if think[-1]:
                theirs = self.peer.processor.tokenizer.decode(self.written(item)[0], skip_special_tokens=False)
                same.append(theirs.startswith(found.cot_texts[0] or ""))
        return {"think": think, "cots_as_generate": float(np.mean(same)) if same else None}


def nano_server(queries: int, easy: float, device: torch.device) -> Server:
    """The packaged adapters and gate, on test queries of the grid world."""
    ours, gate, threshold = load_trained(device=str(device))
    assert gate is not None, "the packaged adapters have a gate"
    peer, _, _ = load_trained(device=str(device))
    peer.interface = InterfaceSettings("reencode")
    peer.adapters.fuse_linears(False)
    peer.model.generation_config.eos_token_id = peer.processor.eot_id
    pairs = get_source("nano", DataSettings()).pairs("test", 10 * queries)
    count = round(easy * queries)
    plain = [pair.query for pair in pairs if not pair.steps][:count]
    hard = [pair.query for pair in pairs if pair.steps][: queries - count]
    return Server(ours, gate, threshold, peer, plain + hard, NANO_TOKENS)


def random_server(size: str, queries: int, easy: float, side: int, tokens: int, device: torch.device) -> Server:
    """Random weights and a random gate; images of `side` x `side` visual tokens."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoders = build_decoders(size, device, dtype, 1, merged_peer=False)
    gate = RoutingGate(2 * decoders.ours.hidden_size).to(device).eval()
    nn.init.normal_(gate.outer.weight)
    pixels = side * PATCH * MERGE
    rng = np.random.default_rng(0)
    items = [
        Item(str(i), "Find what the picture shows.", f"number {i}", (Media("image", image),))
        for i, image in enumerate(rng.integers(0, 256, (queries, pixels, pixels, 3), dtype=np.uint8))
    ]
    server = Server(decoders.ours, gate, 1.0, decoders.peer, items, tokens)
    features = torch.cat([server.adaptive(item).features_NF for item in items]).to(device)
    gate.standardise_from(features)
    with torch.no_grad():
        server.threshold = float(gate(features).sigmoid().quantile(easy))
    return server


def measure(server: Server, rounds: int) -> dict[str, Any]:
    """Latencies of all queries on both sides, and what they amount to."""
    device = server.ours.device
    outputs = server.outputs()  # warms both sides up
    latencies: dict[str, list[float]] = {OURS: [], PEER: []}
    for item in server.items:
        ways = {OURS: lambda item=item: server.adaptive(item), PEER: lambda item=item: server.always(item)}
        for name, timing in in_turn(ways, device, rounds=rounds, warmups=0).items():
            latencies[name].append(timing.median)
    think_Q = np.array(outputs.pop("think"))
    found = {name: np.array(values) for name, values in latencies.items()}
    return {
        "queries": len(server.items),
        "think_rate": float(think_Q.mean()),
        "tokens_at_most": server.tokens,
        "outputs": outputs,
        "speedup": percentile_ratio(found, 50),
        "speedup_p95": percentile_ratio(found, 95),
        "milliseconds": {name: summary(values_Q, think_Q) for name, values_Q in found.items()},
        "timings": {name: Timing(values).record() for name, values in latencies.items()},
    }


def percentile_ratio(latencies: dict[str, np.ndarray], percentile: float) -> dict[str, float]:
    """The peer's percentile over ours, with a 95 % bootstrap interval over queries."""
    both_2Q = np.stack([latencies[PEER], latencies[OURS]])
    queries = both_2Q.shape[1]
    rows_SQ = np.random.default_rng(0).integers(queries, size=(SAMPLES, queries))
    peer_S, ours_S = np.percentile(both_2Q[:, rows_SQ], percentile, axis=-1)
    low, high = np.quantile(peer_S / ours_S, [0.025, 0.975])
    peer, ours = np.percentile(both_2Q, percentile, axis=-1)
    return {"ratio": float(peer / ours), "low": float(low), "high": float(high)}


def summary(seconds_Q: np.ndarray, think_Q: np.ndarray) -> dict[str, float | None]:
    """Percentiles, and the medians of the queries that ours thinks about and of the others."""
    parts = {"median_thinking": seconds_Q[think_Q], "median_not_thinking": seconds_Q[~think_Q]}
    p50, p95 = np.percentile(seconds_Q, [50, 95])
    found = {"p50": p50, "p95": p95, "mean": seconds_Q.mean()}
    found |= {name: np.median(part) if len(part) else None for name, part in parts.items()}
    return {name: None if value is None else 1000 * float(value) for name, value in found.items()}


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="qwen3vl_4b" if cuda else "midsize", help="of the random model")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--easy", type=float, default=0.6, help="share of the queries that need no thought")
    parser.add_argument("--side", type=int, default=16 if cuda else 8, help="visual tokens along an image's side")
    parser.add_argument("--tokens", type=int, default=128 if cuda else 64, help="of the random model's CoTs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    result: dict[str, Any] = {"easy": args.easy, "bar": BAR}
    result["nano"] = measure(nano_server(args.queries, args.easy, device), args.rounds)
    server = random_server(args.size, args.queries, args.easy, args.side, args.tokens, device)
    result[args.size] = measure(server, args.rounds)
    write_result(f"latency_{device.type}", result, args.out)
    for model in ("nano", args.size):
        print(f"{model}: {result[model]['speedup']}, milliseconds {result[model]['milliseconds']}")


if __name__ == "__main__":
    main()
