"""Builds third-party packages and installs them for one test, outside the environment."""

import os
import subprocess
import sys


def install(folder, module, source, group, name, target):
    """Installs a package of one module, with the entry point ``name`` = ``target`` of ``group``, below ``folder``.
    Returns the environment in which a Python process finds it."""
    package, site = folder / "source", folder / "site"
    package.mkdir()
    (package / f"{module}.py").write_text(source)
    (package / "pyproject.toml").write_text(
        f"""
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"
        [project]
        name = "{module.replace("_", "-")}"
        version = "1.0"
        [project.entry-points."{group}"]
        "{name}" = "{target}"
        """
    )
    install = ["pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", site, package]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True, timeout=60)
    return {**os.environ, "PYTHONPATH": str(site), "TRANSFORMERS_VERBOSITY": "error"}


def run_with(env, code, *args, timeout=60):
    """Standard output of a Python process in ``env``."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout
