"""The outcomes of all surfaces are written when the last case is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trust.fuzz.cases import record_outcomes


@pytest.fixture(scope="session", autouse=True)
def _recorded() -> Iterator[None]:
    yield
    record_outcomes()
