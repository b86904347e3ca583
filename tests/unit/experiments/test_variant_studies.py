"""Studies of how stage 1 is trained, on made models whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.interface import collect as interface
from experiments.interface.gradients import draw_cosines, gradient_claims, gradient_numbers, gradient_table
from experiments.queries_and_ranks import collect as queries_and_ranks
from experiments.studies.variant_views import draw_differences
from experiments.studies.variants import read_variants, variant_numbers
from tests.support.study_runs import WITHOUT_COT, decisions, write_model
from tests.support.variant_models import COUNT, DUAL, SEEDS, interface_models, is_rectangular, trained, with_seeds
from twn_lightning.errors import DataError
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, LoraSettings, Settings, SFTSettings


def test_models_are_grouped_by_how_they_were_trained_and_paired_by_seed(tmp_path: Path) -> None:
    folders = interface_models(tmp_path)
    variants = read_variants(folders[::-1], interface.name_of, interface.VARIED)
    duals = {"kv_detached", "kv_joint", "reencode", "kv_detached, prefix none"}
    assert set(variants) == {*duals, "one LoRA, kv_detached", "one LoRA, kv_joint"}
    for variant in variants.values():
        assert variant.size == (len(SEEDS), COUNT)
        assert [settings.seed for settings in variant.settings] == list(SEEDS)
        assert (variant.evaluations[0].key_N == variants["kv_detached"].evaluations[1].key_N).all()
    detached, joint = variants["kv_detached"], variants["kv_joint"]
    assert (detached.quality("discriminative") == joint.quality("discriminative")).all()
    assert (detached.quality("generative") >= joint.quality("generative")).all()
    assert detached.late_mean("train/loss_cot") == pytest.approx(np.full((len(SEEDS), 1), 0.05))
    assert detached.metric("val/answer_accuracy") == pytest.approx(np.full((len(SEEDS), 1), 0.95))
    with pytest.raises(DataError, match="has no val/other"):
        detached.metric("val/other")
    with pytest.raises(DataError, match=r"logged no train/other in the last 10 % of its 100 steps"):
        detached.late_mean("train/other")


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first, second = with_seeds(tmp_path / "a", lambda f, s: write_model(f, trained(seed=s), decisions(s, COUNT)))
    joint = write_model(tmp_path / "joint", trained("kv_joint"), decisions(0, COUNT))

    def read(*folders: Path) -> Any:
        return read_variants(folders, interface.name_of, interface.VARIED)

    with pytest.raises(DataError, match=r"different seeds.*'kv_detached': \[0, 1\], 'kv_joint': \[0\]"):
        read(first, second, joint)
    again = write_model(tmp_path / "again", trained(), decisions(5, COUNT))
    with pytest.raises(DataError, match="both kv_detached with seed 0"):
        read(first, again)
    slower = replace(trained("kv_joint"), stage=SFTSettings(learning_rate=1e-5, conflict_every_steps=10))
    with pytest.raises(DataError, match=r"stage.learning_rate=1e-05 instead of 0.002, unlike"):
        read(first, write_model(tmp_path / "slower", slower, decisions(0, COUNT)))
    measured = replace(trained("kv_joint"), stage=SFTSettings(conflict_every_steps=10))
    assert len(read(first, write_model(tmp_path / "measured", measured, decisions(0, COUNT)))) == 2
    with pytest.raises(DataError, match=r"no run folder at .*nothing/sft, .*nothing/evaluate"):
        read(first, tmp_path / "nothing")
    with pytest.raises(DataError, match="no model is kv_joint"):
        variant_numbers(read(first), "kv_joint")


def test_interface_study_finds_what_was_made(tmp_path: Path) -> None:
    results, claims = interface.collect(interface_models(tmp_path))
    verdicts = {claim.id: claim.verdict for claim in claims}
    assert set(verdicts) == {*interface.CLAIMS, "cot_loss", "cot_answers"} - {"reader_against_writer"}
    assert verdicts["detached_above"] == verdicts["cot_loss"] == verdicts["cot_answers"] == "holds"
    assert verdicts["shared_detached_above"] == "does not hold here", "the two are alike"
    assert verdicts["prefix_none"] == "holds"
    assert next(iter(results["variants"])) == "kv_detached"
    joint = results["variants"]["kv_joint"]["groups"]
    assert list(joint) == ["all", "direct", "lookalike", "1 to 3 steps", "4 and more steps"]
    assert joint["all"]["discriminative"]["minus_base"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert joint["all"]["generative"]["minus_base"]["mean"] == pytest.approx(-0.05, abs=0.03)
    text = interface.table(results)
    assert is_rectangular(text)
    assert f"| kv_joint | {results['variants']['kv_joint']['parameters']['added']:,} |" in text
    assert "| kv_detached | 0.0500 [0.0500, 0.0500] | 95.0 [95.0, 95.0] |" in text
    figure = draw_differences(results["variants"])
    assert len(figure.axes) == 5
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(results["variants"])[1:]


def measured_run(folder: Path, cosines: list[float] | None, steps: tuple[int, ...]) -> RunFolder:
    run = RunFolder(folder).create(Settings())
    for index, step in enumerate(steps):
        values = {"conflict/norm_cot": 2.0, "conflict/norm_contrastive": 0.0 if cosines is None else 1.0}
        run.log(step, values if cosines is None else values | {"conflict/cosine": cosines[index]})
        run.log(step, {"train/loss_cot": 1.0})
    return run


def test_the_cosine_over_training(tmp_path: Path) -> None:
    steps = (1, 10, 20)
    joint = gradient_numbers(
        [
            measured_run(tmp_path / str(seed), cosines, steps)
            for seed, cosines in enumerate(([-0.1, -0.2, -0.3], [-0.3, -0.2, -0.1]))
        ]
    )
    assert joint is not None
    assert joint["steps"] == [1, 10, 20]
    assert joint["cosine"]["mean"] == pytest.approx(-0.2)
    assert joint["share_negative"]["mean"] == 1
    assert joint["thirds"][2]["mean"] == pytest.approx(-0.2)
    assert joint["cosine_by_step"] == pytest.approx([-0.2, -0.2, -0.2])
    detached = gradient_numbers([measured_run(tmp_path / "detached", None, steps)])
    assert detached is not None
    assert detached["cosine"] is None
    gradients = {"kv_joint": joint, "kv_detached": detached}
    (claim,) = gradient_claims(gradients)
    assert claim.verdict == "holds"
    text = gradient_table(gradients)
    assert is_rectangular(text)
    assert "| kv_joint | -0.200 [" in text
    assert "| kv_detached | a gradient is 0 |" in text
    assert len(draw_cosines(gradients).axes[0].lines) == 2, "one variant, and the zero"


def test_runs_that_measured_no_gradients_or_elsewhere(tmp_path: Path) -> None:
    plain = RunFolder(tmp_path / "plain").create(Settings())
    plain.log(1, {"train/loss_cot": 1.0})
    assert gradient_numbers([plain]) is None
    runs = [measured_run(tmp_path / str(last), [0.1, 0.1], (1, last)) for last in (10, 20)]
    with pytest.raises(DataError, match="at different steps"):
        gradient_numbers(runs)
    with pytest.raises(DataError, match=r"2, 0 measurements"):
        gradient_numbers([runs[0], plain])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "base"),
        ({"num_queries": 1}, "K 1"),
        ({"pooling": "last"}, "last query"),
        ({"query_attention": "bidirectional"}, "bidirectional"),
        ({"reasoning": LoraSettings(8, 16), "embedding": LoraSettings(40, 80)}, "rank 8 + 40"),
        ({"num_queries": 4, "pooling": "last"}, "K 4, last query"),
    ],
)
def test_variants_of_queries_and_ranks_have_names(changes: dict[str, Any], name: str) -> None:
    assert queries_and_ranks.name_of(trained(adapters=replace(DUAL, **changes))) == name


def test_queries_and_ranks_study_finds_what_was_made(tmp_path: Path) -> None:
    def models(name: str, adapters: AdapterSettings, without: dict[str, float]) -> list[Path]:
        return with_seeds(
            tmp_path / name,
            lambda folder, seed: write_model(
                folder, trained(adapters=adapters, seed=seed), decisions(seed, COUNT, without=without)
            ),
        )

    worse = {kind: rate - 0.1 for kind, rate in WITHOUT_COT.items()}
    swapped = replace(DUAL, reasoning=LoraSettings(32, 64), embedding=LoraSettings(16, 32))
    folders = [
        *models("one", replace(DUAL, num_queries=1), worse),
        *models("base", DUAL, WITHOUT_COT),
        *models("swapped", swapped, WITHOUT_COT),
    ]
    results, claims = queries_and_ranks.collect(folders)
    verdicts = {claim.id: claim.verdict for claim in claims}
    assert verdicts == {
        "one_query, discriminative": "does not hold here",
        "one_query, generative": "holds",
        "rank_32_16, discriminative": "holds",
        "rank_32_16, generative": "holds",
    }
    added = {name: row["parameters"]["added"] for name, row in results["variants"].items()}
    assert list(added) == ["base", "K 1", "rank 32 + 16"]
    assert added["base"] == added["rank 32 + 16"] == added["K 1"] + 7 * 160, "a query is a vector of nano's width"
    text = queries_and_ranks.table(results)
    assert is_rectangular(text)
    assert "| base | 584,960 |" in text
