"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stage_runs import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tiny model and a set for each stage."""
    folder: Path = tmp_path_factory.mktemp("workshop")
    return Workshop.make(folder)
