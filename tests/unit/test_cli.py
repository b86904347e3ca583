"""`twn`: help, unknown verbs, and errors as one message with an exit code instead of a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from twn_lightning import __version__, cli
from twn_lightning.errors import DataError
from twn_lightning.run import RunFolder
from twn_lightning.settings import RLSettings, Settings


def test_without_arguments_it_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    for verb, purpose in cli.VERBS.items():
        assert verb in printed
        assert purpose in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb_ends_in_examples(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main([verb, "--help"])
    except SystemExit as ended:
        code = ended.code
    assert code == 0
    printed = capfd.readouterr().out
    assert "examples:" in printed
    assert f"  twn {verb}" in printed.split("examples:")[1]


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_config_prints_yaml_that_starts_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "experiment=nano_rl", "stage.kl=0.1"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["stage"]["kl"] == 0.1
    assert printed["name"] == "nano_rl"


def test_config_lists_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--groups"]) == 0
    assert "qwen3vl_4b" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "evaluate", "config", "doctor"])
def test_every_problem_of_a_configuration_at_once(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "model=qwen3vl_5b", "stage.lr=1", "adapters.dropout=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("twn: 3 problems in the configuration:")
    assert "Traceback" not in error


def test_errors_are_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(verb: str, arguments: list[str]) -> int:
        raise DataError("row 3 has no image")

    monkeypatch.setattr(cli, "_run_verb", fail)
    assert cli.main(["preview"]) == 2
    assert capsys.readouterr().err == "twn: row 3 has no image\n"
    monkeypatch.setenv("TWN_DEBUG", "1")
    with pytest.raises(DataError):
        cli.main(["preview"])


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(verb: str, arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_verb", interrupt)
    assert cli.main(["train"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_preview_shows_rows_and_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preview", "--model", "tiny", "--count", "20", "--rows", "1"]) == 0
    printed = capsys.readouterr().out
    assert "nano/read" in printed
    assert "query CoT: mean" in printed
    assert "<|vision_start|><|image_pad|><|vision_end|>" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "trian"], "did you mean 'train'"),
        (["--source", "nanoo"], "did you mean 'nano'"),
        (["--count", "0"], "--count was 0"),
        (["--model", "tinny"], "did you mean 'tiny'"),
    ],
)
def test_preview_refuses(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preview", "--model", "tiny", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_doctor_estimates_memory(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "experiment=qwen3vl_4b_sft", "trainer.accelerator=auto", "--tokens", "100"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "caches" in printed
    assert "activations" in printed
    assert "can run here" in printed


def test_doctor_says_what_a_configuration_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "model.quantization=nf4", "trainer.accelerator=cpu"]) == 2
    assert "model.quantization=nf4 runs on CUDA only" in " ".join(capsys.readouterr().out.split())


def test_resume_needs_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_resume_refuses_a_run_of_another_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(tmp_path / "run").create(Settings(stage=RLSettings()))
    assert cli.main(["train", f"trainer.resume={tmp_path / 'run'}", "model=tiny"]) == 2
    error = capsys.readouterr().err
    assert "is a run of stage rl, this one is stage sft" in error
    assert "adapters.init_from" in error


def test_resume_refuses_a_checkpoint_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "trainer.resume=nowhere/last.ckpt", "model=tiny"]) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "twn_lightning", "confg"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("twn: unknown verb 'confg'")
