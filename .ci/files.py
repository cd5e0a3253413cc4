"""Checks the committed files: ``python .ci/files.py``.

Links in Markdown lead to existing files and headings, paths of the repository named in Markdown exist, no file is
large, except the weights of the embedded default, and no two test files have one name, which pytest would not import.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 1_000_000  # bytes
WEIGHTS = "configs/tiny/"
HISTORY = ("docs/log.md", "CHANGELOG.md")  # these may name files that no longer exist
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w./-])(?:reasonbrain|modules|train|eval|configs|docs|tests)/[\w./-]*\w\.\w+")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def faults(names: list[str]) -> Iterator[str]:
    """Yields one line per fault in the files ``names``, which are relative to the root of the repository."""
    tests: dict[str, str] = {}
    for test in (name for name in names if Path(name).match("test_*.py")):
        if (other := tests.setdefault(Path(test).name, test)) != test:
            yield f"{test}: has the name of {other}"
    for path in map(ROOT.joinpath, names):
        name = path.relative_to(ROOT)
        if path.stat().st_size > LARGEST and not str(name).startswith(WEIGHTS):
            yield f"{name}: {path.stat().st_size} bytes; at most {LARGEST} are allowed outside {WEIGHTS}"
        if path.suffix != ".md":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for link in LINK.findall(line):
                file, _, anchor = link.partition("#")
                target = path.parent / file if file else path
                if re.match(r"\w+:", link):
                    continue
                if not target.exists():
                    yield f"{name}:{number}: link to '{link}', which does not exist"
                elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                    yield f"{name}:{number}: link to '{link}', but {target.name} has no such heading"
            for named in () if str(name) in HISTORY else NAMED.findall(LINK.sub("]", line)):
                if not (ROOT / named).exists():
                    yield f"{name}:{number}: names '{named}', which does not exist"


if __name__ == "__main__":
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = list(faults([name for name in tracked.split("\0") if (ROOT / name).is_file()]))
    print("\n".join(found), end="\n" if found else "")
    raise SystemExit(bool(found))
