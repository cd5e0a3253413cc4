"""Third-party packages that add plug-ins, installed for one test beside the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1.0"
[project.entry-points."{group}"]
"{point}" = "{module}"
"""


def install(folder: Path, module: str, code: str, point: str, group: str = "reasonbrain.modules") -> Path:
    """Installs a package of one module with one entry point; returns the folder to be put on PYTHONPATH."""
    source, target = folder / "source", folder / "site"
    source.mkdir()
    (source / f"{module}.py").write_text(code)
    name = module.replace("_", "-")
    (source / "pyproject.toml").write_text(PROJECT.format(name=name, group=group, point=point, module=module))
    pip = ["pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([sys.executable, "-m", *pip], check=True, capture_output=True, timeout=60)
    return target


def run_with(target: Path, code: str, *args: object, timeout: int = 60) -> str:
    """Standard output of a Python process that finds the package."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(target), "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
