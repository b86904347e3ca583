"""The registry of checks: switches, severities, warnings in status.json, and the page that lists them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from twn_lightning import checks
from twn_lightning.cli import main
from twn_lightning.doctor import checks_page
from twn_lightning.errors import CheckError, ConfigError, DataError
from twn_lightning.run import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"


def test_an_error_ends_the_run_and_names_its_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckError, match=r"rank 1 is late \[check ranks_agree; TWN_CHECKS=-ranks_agree switches"):
        checks.report("ranks_agree", "rank 1 is late")
    with pytest.raises(DataError, match="two protocols"):
        checks.report("mixed_protocols", "two protocols", DataError)
    monkeypatch.setenv("TWN_CHECKS", "-tie_rate, -ranks_agree")
    assert not checks.is_on("ranks_agree")
    checks.report("ranks_agree", "rank 1 is late")


def test_a_warning_is_logged_once_a_run_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path)
    run.status("RUNNING")
    with caplog.at_level(logging.WARNING, "twn_lightning.checks"), checks.recording(run):
        checks.report("loss_spike", "step 30: 9.0")
        checks.report("loss_spike", "step 31: 9.5")
        checks.report("tie_rate", "task 'T0': 12 %")
    assert len(caplog.messages) == 2
    run.status("COMPLETED")
    warnings = run.read_status()["warnings"]
    assert list(warnings) == ["loss_spike", "tie_rate"]
    assert warnings["loss_spike"].startswith("step 30: 9.0 [check loss_spike;")


def test_switched_off_warnings_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWN_CHECKS", "-loss_spike")
    with checks.recording(RunFolder(tmp_path)):
        checks.report("loss_spike", "step 30: 9.0")
    assert caplog.messages == []
    assert not (tmp_path / "status.json").exists()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("-los_spike", "did you mean 'loss_spike'"),
        ("loss_spike", "TWN_CHECKS=-loss_spike switches"),
        ("-non_finite", "cannot be switched off"),
    ],
)
def test_wrong_switches_are_refused_before_work_begins(
    entries: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWN_CHECKS", entries)
    with pytest.raises(ConfigError, match=expected), checks.recording(RunFolder(tmp_path)):
        pytest.fail("the work began")


def test_the_page_lists_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--checks"]) == 0
    assert capsys.readouterr().out == checks_page() == PAGE.read_text(encoding="utf-8"), (
        "write it again with `twn doctor --checks > docs/checks.md`"
    )
    assert all(f"| `{name}` |" in checks_page() for name in checks.CHECKS)
