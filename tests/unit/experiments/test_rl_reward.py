"""Study 5 on made runs of stage 3 and made evaluations whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from experiments.rl_reward import collect as rl_reward
from experiments.rl_reward.figure import draw
from experiments.rl_reward.gates import ARMS, read_arms
from experiments.rl_reward.runs import BASE, read_run, read_variants
from experiments.studies.study import read_block, write_study
from twn_lightning.errors import DataError
from twn_lightning.json_object import write_json
from twn_lightning.reporting.decisions import COLUMNS
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, RLSettings, Settings
from twn_lightning.stages.rewards import HeldOutReward
from twn_lightning.stages.rollouts import append_rows

COUNT = 600
SEEDS = (0, 1, 2)
BASE_STAGE = RLSettings(prompts_per_step=64, min_live_groups=8)
CHANGES: dict[str, dict[str, Any]] = {
    "rank alone": {"gap_weight": 0.0},
    "no KL": {"kl": 0.0},
    "groups of 4": {"prompts_per_step": 128, "completions_per_prompt": 4, "min_live_groups": 16},
}


def held_out(share_right: float, seed: int, tokens: int) -> list[HeldOutReward]:
    """A third takes no step and is right; of the others the first ones are. The last query's CoT is malformed."""
    rows = []
    for query in np.random.default_rng(seed).permutation(COUNT):
        steps = int(query) % 3 * 2
        hit = float(steps == 0 or query < share_right * COUNT)
        rows.append(
            HeldOutReward(
                task="made",
                query_key=f"made/{query:04d}",
                steps=steps,
                reward=7.0,
                reward_format=float(query != COUNT - 1),
                reward_rank=hit,
                reward_gap=0.2 * hit,
                hit_discriminative=float(steps == 0),
                hit_generative=hit,
                tokens=tokens,
                malformed=bool(query == COUNT - 1),
            )
        )
    return rows


def made_run(folder: Path, seed: int, share_after: float, stage: RLSettings = BASE_STAGE) -> Path:
    """Right on half of the queries that take steps before, on `share_after` of them after; CoTs get shorter."""
    run = RunFolder(folder)
    run.create(Settings(seed=seed, stage=stage))
    append_rows(run.held_out, 0, held_out(0.5, seed, tokens=20))
    append_rows(run.held_out, 60, held_out(share_after, 10 + seed, tokens=18))
    for step in range(1, 11):  # the last tenth is one step
        run.log(step, {"rl/live_groups": stage.prompts_per_step / 4, "rl/kl": 0.1 * step})
    return folder


def made_evaluation(folder: Path, seed: int, hit_generative: float, thinks: float) -> Path:
    """Nothing is right without a CoT; the gate thinks on a share of the queries that need one, and on no other."""
    share_N = np.arange(COUNT) / COUNT
    columns: dict[str, Any] = {
        "query_key": [f"made/{row:04d}" for row in range(COUNT)],
        "kind": ["steps"] * COUNT,
        "steps": np.full(COUNT, 3),
        "probability": np.where(share_N < thinks, 0.9, 0.1),
        "think": share_N < thinks,
        "hit_discriminative": np.zeros(COUNT),
        "hit_generative": (share_N < hit_generative).astype(float),
        "gain": np.ones(COUNT),
        "tokens": np.full(COUNT, 10),
        "query_length": np.full(COUNT, 5),
        "margin": share_N,
        "malformed": np.zeros(COUNT, dtype=bool),
        "task": ["made"] * COUNT,
    }
    rest = {name: ["" if "loss" not in name else 0.0] * COUNT for name in COLUMNS if name not in columns}
    RunFolder(folder).create(Settings(seed=seed, adapters=AdapterSettings(init_from=f"{folder}/adapters")))
    pq.write_table(pa.table({**columns, **rest}), folder / "gate_decisions.parquet")
    write_json(folder / "summary.json", {"threshold": 0.5})
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base gains a fifth of the queries, rank alone nothing, the other variants as much as the base."""
    root = tmp_path_factory.mktemp("rl")
    for seed in SEEDS:
        made_run(root / "short" / str(seed) / "base", seed, 0.7)
        made_run(root / "full" / str(seed) / "base", seed, 0.5)
        for name, changes in CHANGES.items():
            share = 0.5 if name == "rank alone" else 0.7
            made_run(root / "short" / str(seed) / name, seed, share, replace(BASE_STAGE, **changes))
        made_evaluation(root / "before" / str(seed), seed, 0.5, thinks=0.6)
        made_evaluation(root / "old gate" / str(seed), seed, 0.7, thinks=0.6)
        made_evaluation(root / "refit" / str(seed), seed, 0.7, thinks=0.7)
    return root


def collected(root: Path) -> tuple[dict[str, Any], list[Any]]:
    evaluations = {arm: sorted((root / arm).iterdir()) for arm in ARMS}
    return rl_reward.collect(rl_reward.rl_folders([root / "short"]), rl_reward.rl_folders([root / "full"]), evaluations)


def test_the_study_finds_what_was_made(root: Path) -> None:
    numbers, claims = collected(root)
    assert list(numbers["variants"]) == [BASE, "rank alone", "groups of 4", "no KL"]
    assert {claim.id: claim.verdict for claim in claims} == {
        "reward_rises": "holds",
        "generative_rises": "holds",
        "discriminative_keeps": "holds",
        "cots_keep_their_length": "holds",
        "full_rises": "does not hold here",
        "base against rank alone": "holds",
        "base against groups of 4": "holds",
        "base against no KL": "holds",
        "adaptive_rises": "holds",
        "refit_pays": "holds",
        "refit_tokens": "does not hold here",
    }
    base = numbers["variants"][BASE]
    assert base["metrics"]["hit_generative"]["change"]["mean"] == pytest.approx(0.2 * 2 / 3, abs=1e-3)
    assert base["metrics"]["tokens"]["change"]["mean"] == -2
    assert base["kl"] == pytest.approx(1.0)
    assert base["live_share"] == pytest.approx(0.25)
    assert numbers["variants"]["rank alone"]["metrics"]["hit_generative"]["minus_base"]["mean"] < -0.1
    assert numbers["by_steps"]["short"]["0"]["change"]["mean"] == 0
    assert numbers["by_steps"]["short"]["4 and more"]["change"]["mean"] == pytest.approx(0.2, abs=0.01)
    assert numbers["gates"]["refit"]["token_share"]["mean"] == pytest.approx(0.7)


def test_rewards_are_those_of_the_default_weights_whatever_a_run_was_rewarded_for(root: Path) -> None:
    """The recorded reward, 7, is that of the run's own weights."""
    run = read_run(root / "short" / "0" / "rank alone")
    right, last = int(0.3 * COUNT) + 1, COUNT - 1
    assert run.key_N[right] == f"made/{right:04d}"
    assert run.values["before", "hit_generative"][right] == 1
    assert run.values["before", "reward"][right] == pytest.approx(0.1 + 0.5 + 0.1)
    assert run.values["before", "malformed"][last] == 1
    assert run.values["before", "reward"][last] == 0


def test_the_page_and_the_figure_show_every_variant(root: Path, tmp_path: Path) -> None:
    numbers, claims = collected(root)
    readme = tmp_path / "README.md"
    readme.write_text("**Question.** ?\n\n```\ntwn train\n```\n\n<!-- results -->\n<!-- /results -->\n")
    write_study(tmp_path, numbers, claims, rl_reward.table)
    draw(numbers, tmp_path / "variants.svg")
    page, figure = read_block(readme, "results"), (tmp_path / "variants.svg").read_text()
    for name in (BASE, *CHANGES, "base, from a full stage 1"):
        assert f"| {name} |" in page
        assert f">{name}</text>" in figure
    parts = [part for part in page.split("\n\n") if part.startswith("|")]
    assert len(parts) == 3
    assert all(len({line.count("|") for line in part.splitlines()}) == 1 for part in parts)


def test_runs_that_do_not_fit_each_other_are_refused(root: Path, tmp_path: Path) -> None:
    base = [root / "short" / str(seed) / BASE for seed in SEEDS]
    other = [made_run(tmp_path / f"kl{seed}", seed, 0.7, replace(BASE_STAGE, kl=0.5)) for seed in SEEDS]
    with pytest.raises(DataError, match=r"'kl=0.5' has runs of the seeds \[0\]: .* each of \[0, 1, 2\]"):
        read_variants([*base, other[0]])
    with pytest.raises(DataError, match=r"'base' has runs of the seeds \[0, 0, 1, 2\]"):
        read_variants([*base, base[0]])
    with pytest.raises(DataError, match=r"unknown variants \['kl=0.5'\]"):
        rl_reward.named_variants([*base, *other])
    fewer = made_run(tmp_path / "fewer", 3, 0.7)
    rows = pq.read_table(fewer / "held_out.parquet")
    pq.write_table(rows.filter(pc.field("query_key") < "made/0100"), fewer / "held_out.parquet")
    with pytest.raises(DataError, match=r"\(100 queries\) and .* \(600\) were validated on different queries"):
        read_variants([*base, fewer])
    with pytest.raises(DataError, match="no run of stage 3"):
        read_variants([])
    with pytest.raises(DataError, match="name run folders of stage=rl"):
        read_run(tmp_path)


def test_a_run_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create(Settings(stage=BASE_STAGE))
    append_rows(run.held_out, 0, held_out(0.5, 0, 20))
    with pytest.raises(DataError, match="of step 0 only"):
        read_run(tmp_path)


def test_arms_of_different_seeds_are_refused(root: Path) -> None:
    folders = {arm: sorted((root / arm).iterdir()) for arm in ARMS}
    with pytest.raises(DataError, match="'refit' has 2 evaluations"):
        read_arms({**folders, "refit": folders["refit"][:2]})
