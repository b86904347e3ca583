"""Rollouts by prompt: groups, what varies within them, and the change on validation queries."""

from __future__ import annotations

from pathlib import Path

import pytest

from twn_lightning.errors import DataError
from twn_lightning.reporting.rollouts import held_out_table, load_rollouts, rollouts_table, spread_table
from twn_lightning.run import RunFolder
from twn_lightning.stages.rewards import HeldOutReward
from twn_lightning.stages.rollouts import RolloutRow, append_rows


def completion(key: str, reward: float, tokens: int = 10, closed: bool = True) -> RolloutRow:
    return RolloutRow("nano/follow", key, f"ask {key}", "red 3", f"<think> {reward} </think>", reward, 1.0, reward,
                      0.5, 0.0, tokens, closed)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two steps: one group that varies and one that does not, then one whose CoTs do not close."""
    run = RunFolder(tmp_path)
    append_rows(run.rollouts, 1, [completion("a", 0.2), completion("a", 0.8), *(completion("b", 0.5),) * 2])
    append_rows(run.rollouts, 2, [completion("a", 0.9, 30, closed=False), completion("a", 0.7, 10)])
    return run


def test_groups_are_the_prompts_of_a_step(run: RunFolder) -> None:
    groups = load_rollouts(run.path)
    assert [(group.step, group.query_text) for group in groups] == [(1, "ask a"), (1, "ask b"), (2, "ask a")]
    assert [group.spread for group in groups] == pytest.approx([0.6, 0.0, 0.2])
    assert groups[0].values("reward").tolist() == [0.8, 0.2]


def test_steps_have_their_means(run: RunFolder) -> None:
    first, second = rollouts_table(load_rollouts(run.path)).rows
    assert first[:4] == ["1", "2", "1", "0.500"]
    assert second == ["2", "1", "1", "0.800", "1.000", "0.800", "0.500", "20.0", "50.0\N{NO-BREAK SPACE}%"]


def test_what_a_group_shares_has_no_spread_within(run: RunFolder) -> None:
    rows = {row[0]: row[1:] for row in spread_table(load_rollouts(run.path)).rows}
    assert rows["reward_format"] == ["1.000", "0.000", "0.000"]
    # Variances within the groups are .09, 0 and .01; the groups' means are .5, .5 and .8.
    assert rows["reward"] == ["0.600", "0.141", "0.183"]


def test_held_out_changes_are_paired(run: RunFolder) -> None:
    for step, reward in ((0, 0.5), (6, 0.75)):
        rows = [
            HeldOutReward("nano", f"q{i}", 1, reward + 0.1 * i, 1.0, reward, 0.0, 0.0, 1.0, 9, False) for i in range(3)
        ]
        append_rows(run.held_out, step, rows)
    table = held_out_table(run.path)
    assert table.header[1:3] == ["Step 0", "Step 6"]
    assert table.rows[0] == ["reward", "0.6000", "0.8500", "+0.2500", "+0.2500 to +0.2500"]


def test_a_run_without_rollouts_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only stage `rl` samples completions"):
        load_rollouts(tmp_path)
    with pytest.raises(DataError, match="a finished stage `rl` has two"):
        held_out_table(tmp_path)


def test_a_broken_file_is_named(run: RunFolder) -> None:
    run.rollouts.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="is not readable parquet"):
        load_rollouts(run.path)
