"""Pretraining of the offline world's backbones: losses, schedule, a run of two steps, and what is exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.data.nano import world
from twn_lightning.data.nano.backbones import SHAPES, new_backbone
from twn_lightning.data.nano.curriculum import sample_rows
from twn_lightning.data.nano.pretrain import CARD, RECORD, PretrainSettings, backward, learning_rate_at, main
from twn_lightning.data.nano.teacher_forcing import response_loss, speed_up_vision
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.errors import ConfigError
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings

SMALL = ["--steps", "2", "--batch-size", "2", "--device", "cpu", "--validation-rows", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The work folder of a run of two steps at the size of micro, and its export."""
    work = tmp_path_factory.mktemp("pretraining")
    main(["--size", "micro", "--curriculum", "grids", *SMALL, "--work", str(work)])
    main([*SMALL, "--work", str(work), "--export", str(work / "exported")])
    return work, work / "exported"


def test_rows_drawn_ahead_are_the_same(run: tuple[Path, Path], tmp_path: Path) -> None:
    main(["--size", "micro", "--curriculum", "grids", *SMALL, "--num-workers", "2", "--work", str(tmp_path)])
    here, ahead = (json.loads((work / "log.jsonl").read_text()) for work in (run[0], tmp_path))
    assert {**here, "seconds": 0} == {**ahead, "seconds": 0}


def test_pretraining_learns_from_both_halves() -> None:
    model, processor = new_backbone("nano", 0)
    losses, correct, mask = response_loss(model, processor, sample_rows(np.random.default_rng(0), 4), "cpu")
    assert losses.shape == (4,)
    assert losses.mean().item() == pytest.approx(np.log(len(build_tokenizer())), abs=0.5)  # untrained: chance
    assert int(correct.sum()) <= int(mask.sum())


def test_the_learning_rate_falls_at_the_end() -> None:
    settings = PretrainSettings(steps=1000)
    assert learning_rate_at(0, settings) < 0.05 * settings.learning_rate
    assert learning_rate_at(500, settings) == settings.learning_rate == learning_rate_at(740, settings)
    assert learning_rate_at(999, settings) < 0.05 * settings.learning_rate


def test_gradients_are_the_same_with_all_images_at_once() -> None:
    rows = sample_rows(np.random.default_rng(0), 8)

    def gradients(fast: bool) -> dict[str, torch.Tensor]:
        model, processor = new_backbone("nano", 0)
        if fast:
            speed_up_vision(model)
        backward(model, processor, rows, 1 / len(rows), "cpu")
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    plain, fast = gradients(False), gradients(True)
    assert any("visual.pos_embed" in name for name in plain)
    assert plain.keys() == fast.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fast[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_run_logs_and_records_what_made_it(run: tuple[Path, Path]) -> None:
    work, exported = run
    (last,) = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert last["step"] == 2
    assert {"caption", "cot", "picture", "caption_grid", "cot_3", "cot_NanoQA", "seconds"} <= last.keys()
    record = json.loads((exported / RECORD).read_text())
    assert (record["size"], record["curriculum"], record["steps"]) == ("micro", "grids", 2)
    assert record["parameters"] == sum(p.numel() for p in new_backbone("micro", 0)[0].parameters())
    assert record["validation_rows"] == 2
    assert "cores" in record["machine"]


def test_an_export_has_the_files_of_the_packaged_backbone(run: tuple[Path, Path]) -> None:
    _, exported = run
    own = {path.name for path in PACKAGED["nano"].iterdir() if path.is_file() and path.suffix != ".npz"}
    assert {path.name for path in exported.iterdir()} == own - {"INGREDIENTS.md"}


def test_an_export_loads_as_a_backbone_and_holds_the_trained_weights(run: tuple[Path, Path]) -> None:
    work, exported = run
    model = ModelSettings(name="micro", path=str(exported))
    backbone = load_backbone(model, AdapterSettings(), InterfaceSettings())
    assert (backbone.hidden_size, backbone.model.config.text_config.num_hidden_layers) == (256, SHAPES["micro"].layers)
    trained = torch.load(work / "checkpoint.pt", weights_only=True)["model"]["model.language_model.norm.weight"]
    kept = dict(backbone.model.named_parameters())["model.language_model.norm.weight"]
    torch.testing.assert_close(kept, trained.half().float())
    prompts = backbone.processor([world.picture_candidate("red 7", "train", 0)])
    assert backbone.reason(prompts).last_hidden_BD.shape == (1, 256)


def test_the_card_says_what_was_measured(run: tuple[Path, Path]) -> None:
    _, exported = run
    card, record = (exported / CARD).read_text(), json.loads((exported / RECORD).read_text())
    assert card.startswith("---\nlicense: apache-2.0")
    assert f"{record['parameters']:,} parameters (6 layers of 256" in card
    assert f"| grids | 2 | 2 | 32 | 0.002 | {record['seconds']:,} | {record['machine']} |" in card
    for name, share in record["validation"].items():
        assert f"| {name.replace('_', ' ')} | {share:.3f} |" in card


def test_a_card_that_is_there_is_kept(run: tuple[Path, Path], tmp_path: Path) -> None:
    work, _ = run
    (tmp_path / CARD).write_text("by hand")
    main([*SMALL, "--work", str(work), "--export", str(tmp_path)])
    assert (tmp_path / CARD).read_text() == "by hand"


def test_a_second_curriculum_starts_from_an_export(run: tuple[Path, Path], tmp_path: Path) -> None:
    _, exported = run
    main(["--size", "micro", *SMALL, "--init-from", str(exported), "--work", str(tmp_path)])
    main([*SMALL, "--work", str(tmp_path), "--export", str(tmp_path / "exported")])
    record = json.loads((tmp_path / "exported" / RECORD).read_text())
    assert (record["curriculum"], record["initialised_from"]["curriculum"]) == ("mmeb_nano", "grids")
    lines = (tmp_path / "exported" / CARD).read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if "| 2 | 2 | 32 |" in line] == ["| grids", "| mmeb_nano"]


def test_another_size_cannot_be_continued(run: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its backbone is 256 wide, the one to train 160"):
        main(["--size", "nano", *SMALL, "--init-from", str(run[1]), "--work", str(tmp_path)])
