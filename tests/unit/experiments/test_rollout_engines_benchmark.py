"""The comparison of rollout engines on a small shape, with a stand-in for vLLM."""

from __future__ import annotations

import json

from experiments.benchmarks import random_qwen3vl, rollout_engines
from tests.support import fake_vllm
from twn_lightning.backbone.parameters import LanguageModelShape

SMALL = LanguageModelShape(64, 2, 4, 2, 16, 96, 512, True)


def test_both_engines_pass(monkeypatch, tmp_path, capsys):
    fake_vllm.install(monkeypatch)
    monkeypatch.setitem(random_qwen3vl.SIZES, "midsize", SMALL)
    monkeypatch.setattr("sys.argv", ["rollout_engines", "--prompts", "3", "--device", "cpu", "--out", str(tmp_path)])
    assert rollout_engines.main() == 0
    assert "no failure" in capsys.readouterr().out
    result = json.loads((tmp_path / "rollout_engines_float32_cpu.json").read_text())
    for engine in ("builtin", "vllm"):
        for version in ("version 0", "version 1"):
            found = result[engine][version]
            assert found["its adapter"]["mean"] < 1e-5
            assert found["the weights before"]["mean"] > 0.1
            assert found["distinct completions"] == 3 * rollout_engines.COMPLETIONS


def test_a_failure_is_named():
    good = {"its adapter": {"mean": 0.0}, "the weights before": {"mean": 1.0}, "visual tokens": 0}
    assert rollout_engines.failures({"version 0": good}, 1e-3) == []
    bad = {"its adapter": {"mean": 0.5}, "the weights before": {"mean": 0.0}, "visual tokens": 2}
    found = rollout_engines.failures({"version 1": bad}, 1e-3)
    assert len(found) == 3
    assert all(message.startswith("version 1") for message in found)
