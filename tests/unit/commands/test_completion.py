"""Completion in a real shell, and the help that it is made from."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import shutil
import subprocess

import pytest

from twn_lightning import cli, config
from twn_lightning.cli import VERBS
from twn_lightning.commands.completion import completion_script, setting_keys, verb_words

BASH, ZSH = shutil.which("bash"), shutil.which("zsh")
EXAMPLE = re.compile(r"^ +(twn .+?)(?:  +[(#].*)?$", re.MULTILINE)

script = functools.cache(completion_script)


def completed(line: str) -> list[str]:
    """What bash offers at the end of a line, asked as readline asks: words end at "=" as well."""
    words = [word for part in line.split(" ") for word in re.split("(=)", part) if word or part == ""]
    asked = f"""
    {script("bash")}
    COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
    COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}
    COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
    $(complete -p twn | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert BASH is not None
    done = subprocess.run([BASH, "--norc", "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs() -> None:
    assert completed("twn ev") == ["evaluate"]
    assert set(completed("twn ")) == {*VERBS, "--help", "--version"}


def test_flags_of_the_verb() -> None:
    assert completed("twn train --re") == ["--resume"]
    assert completed("twn embed --max-") == ["--max-frames", "--max-pixels", "--max-new-tokens"]
    assert completed("twn doctor --max-") == []


def test_groups_options_and_keys() -> None:
    assert completed("twn train exper") == ["experiment="]
    assert completed("twn train seed=1 gate.pri") == ["gate.price="]
    assert completed("twn evaluate model=qwen3vl_") == ["qwen3vl_2b", "qwen3vl_4b", "qwen3vl_8b"]
    assert set(completed("twn train experiment=")) == set(config.groups()["experiment"])
    assert "mmeb_nano/all" in completed("twn evaluate task=mmeb_nano/a")


def test_verbs_without_overrides_offer_none() -> None:
    assert completed("twn report exper") == []


def test_keys_of_every_stage_are_offered() -> None:
    assert {"stage.cot_weight", "stage.completions_per_prompt", "gate.price", "seed"} <= set(setting_keys())


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
def test_zsh_defines_the_same() -> None:
    asked = f"""
    compadd() {{ while [[ $1 != -- ]]; do shift; done; shift; print -l -- "$@"; }}
    compdef() {{ :; }}
    _files() {{ :; }}
    {script("zsh")}
    words=(twn train model=); CURRENT=3; _twn
    print '==='
    words=(twn train --); CURRENT=3; _twn
    print '==='
    words=(twn config gate); CURRENT=3; _twn
    """
    assert ZSH is not None
    done = subprocess.run([ZSH, "-f", "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    options, flags, keys = (part.split() for part in done.stdout.split("==="))
    assert done.stderr == ""
    assert {"model=qwen3vl_4b", "experiment=nano_sft"} <= set(options)
    assert flags == verb_words("train").flags
    assert {"gate.price=", "experiment="} <= set(keys)


def test_the_verb_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script("bash")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_has_examples_that_parse(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Every example names a verb that exists, with flags that its help lists and keys that the configuration has."""
    assert run_help(verb) == 0
    examples = EXAMPLE.findall(capfd.readouterr().out)
    assert any(shlex.split(example)[1] == verb for example in examples), f"twn {verb} --help shows no example of it"
    keys, groups = set(setting_keys()), config.groups()
    for example in examples:
        words = shlex.split(example, comments=True)
        assert words[1] in VERBS, example
        if words[1] in ("bench", "search"):  # their flags belong to a benchmark, or to a verb within
            continue
        known = verb_words(words[1])
        for word in words[2:]:
            name = word.split("=", 1)[0]
            if word.startswith("--"):
                assert name in known.flags, f"{example}: twn {words[1]} has no {name}"
            elif known.overrides and re.match(r"[a-z][\w./]*=", word):
                assert name in keys or name in groups or name.startswith("hydra") or name in ("gpus", "batch"), example


def run_help(verb: str) -> int:
    """`twn VERB --help` as the command line runs it, and its exit code."""
    try:
        return importlib.import_module(f"twn_lightning.commands.{verb}").main(["--help"]) or 0
    except SystemExit as ended:
        return int(ended.code or 0)
