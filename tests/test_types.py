"""``make lint`` checks types across folders: planted faulty calls between them are reported with their lines."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLANTED = {  # a file, and a faulty use of another folder
    "train/loop.py": "from reasonbrain.train.engine import Engine as E\n\n\ndef f(x: E) -> None:\n    x.no_such(1, 2)",
    "modules/frce/regions.py": "from reasonbrain.errors import UserError as E\n\nplanted: int = E('a message')",
    "eval/benchmarking/bench.py": "from reasonbrain.train.loop import peak_memory as f\n\nplanted = f(1, 2, 3)",
    "reasonbrain/cli/train.py": "from reasonbrain.train import no_such_module as m",
    "reasonbrain/errors.py": "import reasonbrain.modules.no_such_module as m",
}


def test_faulty_calls_between_folders_are_refused(tmp_path):
    for folder in ("reasonbrain", "modules", "train", "eval", "configs", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (ROOT / ".mypy_cache").exists():  # of `make lint`; without it this takes half a minute longer
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    expected = set()
    for name, words in PLANTED.items():
        path = tmp_path / name
        source = f"{path.read_text()}\n{words}\n"
        path.write_text(source)
        expected.add(f"{name}:{len(source.splitlines())}")

    done = subprocess.run([sys.executable, ".ci/types.py"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 1, done.stderr
    assert set(re.findall(r"^(\S+:\d+): error", done.stdout, re.MULTILINE)) == expected, done.stdout
