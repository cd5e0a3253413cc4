"""Settings of the fuzz tests. In CI they draw the same few examples each time; with FUZZ=N new ones, N of a kind."""

import os
import tempfile
from pathlib import Path

import pytest
from hostile import TALLY
from hypothesis import HealthCheck, Phase, settings

from reasonbrain.utils import endpoint

# deadline: milliseconds for an example. A failing one is not made smaller, which would take minutes.
CHECKS = {"suppress_health_check": list(HealthCheck), "deadline": 20_000, "phases": [Phase.generate]}
settings.register_profile("ci", derandomize=True, database=None, **CHECKS)
settings.register_profile("new", database=None, print_blob=True, **CHECKS)
settings.load_profile("new" if os.environ.get("FUZZ") else "ci")


@pytest.fixture(scope="session", autouse=True)
def warm():
    """What takes seconds the first time. The package datasets copies what it reads into a cache."""
    import datasets

    import reasonbrain.editing.batch.executors
    import reasonbrain.eval.evaluation.evaluate  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        yield


@pytest.fixture
def box(tmp_path, monkeypatch):
    """An empty current folder with an empty folder ``out``. No endpoint is asked twice."""
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("FUZZ"):
        terminalreporter.write_line(f"{TALLY.total()} commands with hostile inputs; by exit code: {dict(TALLY)}")
