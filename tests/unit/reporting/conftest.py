"""Seeded, made-up gate decisions in the shape that an evaluation writes: thinking pays beyond 0 steps."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from twn_lightning.json_object import write_json
from twn_lightning.reporting import build_summary, write_summary

STAGES = {
    "sft": {"metric": "val/hit@1_generative", "before": 0.021, "after": 0.958, "seconds": 121.4},
    "rl": {"metric": "val/reward", "before": 0.861, "after": 0.884, "seconds": 48.0},
    "gate": {"metric": "val/auroc", "before": 0.5, "after": 0.981, "seconds": 9.3},
}
RATIOS = {"nano": 0.141, "qwen3vl_4b": 0.049, "qwen3vl_8b": 0.032}
COT = "<think> red 3 right, blue 7 down; start at row 1, go right, go down </think><answer> blue 7 </answer>"


def make_decisions(count: int = 600, seed: int = 0, images: int = 60) -> pa.Table:
    """`count` decisions; the first `images` carry a picture."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(count) < 0.5, 0, rng.integers(1, 9, count))
    hit_d = rng.random(count) < np.where(steps == 0, 0.95, 0.15)
    hit_g = rng.random(count) < np.where(steps == 0, 0.95, 0.97 - 0.01 * steps)
    tokens = np.where(steps == 0, 15, 16 + steps) + rng.integers(0, 3, count)
    loss_d, loss_g = (np.where(hit, 0.1, 4.0) * rng.gamma(4, 0.25, count) for hit in (hit_d, hit_g))
    gain = loss_d - loss_g - 0.5 * tokens / tokens.mean()
    probability = 1 / (1 + np.exp(-np.clip(gain + rng.normal(0, 1, count) + np.where(steps > 0, 1.5, -1.5), -6, 6)))
    answers = [f"{colour} {digit}" for colour in ("red", "blue", "green") for digit in range(10)]
    return pa.table(
        {
            "query_key": [f"q{i}" for i in range(count)],
            "task": [("nano/read", "nano/exit")[i % 2] if s == 0 else "nano/follow" for i, s in enumerate(steps)],
            "side": ["query"] * count,
            "steps": pa.array(steps.tolist(), pa.int64()),
            "probability": probability,
            "think": probability > 0.5,
            "hit_discriminative": hit_d.astype(float),
            "hit_generative": hit_g.astype(float),
            "loss_discriminative": loss_d,
            "loss_generative": loss_g,
            "gain": gain,
            "tokens": tokens,
            "prompt_tokens": [40] * count,
            "query_length": rng.integers(6, 14, count),
            "margin": rng.random(count),
            "malformed": rng.random(count) < 0.01,
            "query_text": [f"start at row {i % 3 + 1} and follow {s} arrows" for i, s in enumerate(steps)],
            "cot": [COT] * count,
            "positive": [answers[i % 30] for i in range(count)],
            "top1_discriminative": [answers[(i + (not hit)) % 30] for i, hit in enumerate(hit_d)],
            "top1_generative": [answers[(i + (not hit)) % 30] for i, hit in enumerate(hit_g)],
            "image_png": pa.array([_picture(rng) if i < images else None for i in range(count)], pa.binary()),
        }
    )


def _picture(rng: np.random.Generator) -> bytes:
    cells = rng.integers(40, 255, (3, 3, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    buffer = io.BytesIO()
    Image.fromarray(cells).save(buffer, format="PNG")
    return buffer.getvalue()


def make_scores(table: pa.Table) -> dict[str, Any]:
    """Router scores with the attributes of gate.routers.RouterScore."""
    hit_d, hit_g, tokens, think, margin = (
        np.asarray(table.column(name).to_pylist())
        for name in ("hit_discriminative", "hit_generative", "tokens", "think", "margin")
    )
    shuffled = np.random.default_rng(1).permutation(think)
    choices = {
        "never": np.zeros_like(think),
        "always": np.ones_like(think),
        "adaptive": think,
        "random": shuffled,
        "margin": margin < think.mean(),
        "query_length": np.roll(think, 7),
        "oracle": (hit_d < 0.5) & (hit_g > 0.5),
    }
    scores = {}
    for name, choice in choices.items():
        hits = np.where(choice, hit_g, hit_d)
        half = 1.96 * hits.std() / np.sqrt(len(hits))
        ci95 = (float(max(0, hits.mean() - half)), float(min(1, hits.mean() + half)))
        scores[name] = SimpleNamespace(
            hit_at_1=hits.mean(),
            tokens_per_query=(tokens * choice).mean(),
            think_rate=choice.mean(),
            ci95=ci95,
            hits=hits,
        )
    return scores


def make_summary(table: pa.Table) -> dict[str, Any]:
    return build_summary(
        table,
        suite="nano",
        stages=STAGES,
        added_parameter_ratio=RATIOS,
        router_scores=make_scores(table),
        gate={"auroc": 0.98, "ece": 0.021},
        seconds=231.5,
    )


@pytest.fixture(scope="session")
def decisions() -> pa.Table:
    return make_decisions()


@pytest.fixture
def summary(decisions: pa.Table) -> dict[str, Any]:
    return make_summary(decisions)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; with a table it is an evaluated one."""

    def make(name: str, table: pa.Table | None = None, status: str = "COMPLETED") -> Path:
        folder = tmp_path / "outputs" / name
        environment = {
            "command": ["/somewhere/bin/twn", "train", f"stage={name}", "name=my demo"],
            "git": {"revision": "0123abc", "dirty": False},
            "versions": {"python": "3.12", "torch": "2.13"},
            "hardware": {"cores": 2, "devices": []},
        }
        write_json(folder / "env.json", environment)
        write_json(folder / "status.json", {"status": status, "error": None})
        if table is not None:
            pq.write_table(table, folder / "gate_decisions.parquet")
            write_summary(make_summary(table), folder / "summary.json")
        return folder

    return make
