"""No kernel is fetched from a hub unless the user asks for it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("asked", "found"), [("", "False"), ("1", "True")])
def test_the_package_kernels_is_used_by_those_who_ask(asked, found, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("open('mark', 'w')\ndef get_kernel(*_, **__): raise OSError\n")
    program = "import importlib.util, reasonbrain; print(importlib.util.find_spec('kernels') is not None)"
    program += "" if asked else "; import bitsandbytes"  # which uses the package, if there is one, on some CPUs
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "USE_HUB_KERNELS": asked}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == found
    assert not (tmp_path / "mark").exists()
