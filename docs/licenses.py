"""Writes docs/licenses.md, the licences of what is shipped and installed: ``make lock``.

A licence is what a package's own metadata says: its SPDX expression, or else its classifiers, or else the first line of
its licence field; or it is the MIT licence by the words of its licence file.
"""

import re
from importlib.metadata import PackageNotFoundError, files, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Licences

Made by `make lock`. ReasonBrain, with the weights of its embedded default, is under the
[Apache License 2.0](https://www.apache.org/licenses/LICENSE-2.0). Published models, such as FLUX.1 and Qwen2.5-VL, are
not part of it: they are downloaded under licences of their own.

What `requirements.lock` installs:

| package | version | licence by its metadata |
|---|---|---|
"""


def locked() -> list[tuple[str, str]]:
    """The packages in requirements.lock, and their versions. Some have several, for different versions of Python."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([\w.]+)", lines, re.MULTILINE)


def licence(name: str) -> str:
    """The licence of an installed package."""
    try:
        of = metadata(name)
    except PackageNotFoundError:
        return "(not needed on the platform that made this list)"
    classified = [c.rpartition(" :: ")[2] for c in of.get_all("Classifier") or () if c.startswith("License :: ")]
    text = next(iter((of.get("License") or "").strip().splitlines()), "")
    found = of.get("License-Expression") or " and ".join(c for c in classified if c != "OSI Approved") or text
    if not found and any("Permission is hereby granted, free of charge" in t for t in licence_files(name)):
        found = "MIT"
    return found.replace("|", "\\|") or "(not stated)"


def licence_files(name: str) -> list[str]:
    """The texts of the licence files of an installed package."""
    found = [f for f in files(name) or () if ".dist-info/licenses/" in str(f)]
    return [f.read_text(encoding="utf-8") for f in found]


def page() -> str:
    """The text of docs/licenses.md."""
    return HEAD + "".join(f"| {name} | {version} | {licence(name)} |\n" for name, version in locked())


if __name__ == "__main__":
    (ROOT / "docs" / "licenses.md").write_text(page(), encoding="utf-8")
