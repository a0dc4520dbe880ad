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


NO_SLURM = "NO SLURM TESTS HERE"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud what a machine could not test, also where skip reasons are not asked for."""
    reasons = {str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if NO_SLURM in reason):
        terminalreporter.write_line(reason[reason.index(NO_SLURM) :].rstrip("')"), yellow=True, bold=True)
