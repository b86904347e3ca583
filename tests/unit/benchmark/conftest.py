"""One small mirror of the benchmark for all tests of this folder that only read it."""

from __future__ import annotations

import pytest

from tests.support.mmeb_fixtures import MirrorPaths, build_mirror


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> MirrorPaths:
    return build_mirror(tmp_path_factory.mktemp("mmeb"))
