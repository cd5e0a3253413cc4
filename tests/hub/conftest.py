"""A hub with tiny models in the repositories that the presets name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import layouts
import pytest
from published import REPOSITORIES, save_as_published
from server import Hub

DRIVER = """
import json, sys
from click.testing import CliRunner
from reasonbrain.cli import main
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    said = done.output if done.exit_code else ""
    print("RAN " + json.dumps([done.exit_code, said, repr(done.exception) if done.exit_code else ""]), flush=True)
"""


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    for repository in REPOSITORIES:
        (root / repository).mkdir(parents=True)
        save_as_published(repository, root / repository)
    return {repository: root / repository for repository in REPOSITORIES}


@pytest.fixture
def hub(folders):
    with Hub(folders) as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """``run([[word, ...], ...])``: exit code and output of commands, one after the other in one process that uses the
    hub, with ``tmp_path`` as its working directory."""
    layouts.manifest(tmp_path / "data")

    def call(commands: list[list[str]], offline: bool = False) -> list[tuple[int, str, str]]:
        env = os.environ | hub.environment(tmp_path / "home", offline) | {"OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", DRIVER, json.dumps(commands)]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
        found = [tuple(json.loads(line[4:])) for line in done.stdout.splitlines() if line.startswith("RAN ")]
        assert len(found) == len(commands), done.stderr[-3000:]
        return found

    return call
