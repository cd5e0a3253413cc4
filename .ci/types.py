"""Type-checks the package as it is installed: ``python .ci/types.py``.

``modules/``, ``train/``, ``eval/`` and ``configs/`` are installed as ``reasonbrain.modules`` and so on. A type checker
that reads the repository finds no ``reasonbrain.train`` and checks no call into it. So build/typed/reasonbrain gets
links with the installed names, and mypy checks that tree. In its messages, paths are those of the repository.
"""

import re
import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "typed" / "reasonbrain"
MAPPED = ("modules", "train", "eval", "configs")


def lay_out() -> None:
    """Creates the links in TREE anew."""
    TREE.mkdir(parents=True, exist_ok=True)
    for link in TREE.iterdir():
        link.unlink()
    for source in [*(ROOT / "reasonbrain").iterdir(), *(ROOT / top for top in MAPPED)]:
        (TREE / source.name).symlink_to(source)


if __name__ == "__main__":
    lay_out()
    found, failure, code = api.run(["--config-file", str(ROOT / "pyproject.toml"), *sys.argv[1:]])
    found = re.sub(rf"^\S*build/typed/reasonbrain/({'|'.join(MAPPED)})/", r"\1/", found, flags=re.MULTILINE)
    print(re.sub(r"^\S*build/typed/", "", found, flags=re.MULTILINE), end="")
    print(failure, end="", file=sys.stderr)
    raise SystemExit(code)
