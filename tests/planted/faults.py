"""The faults of faults.txt, whose first lines explain its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """A change of a file that tests should notice."""

    name: str
    file: str
    tests: str  # words for pytest: files, and options such as -k
    old: str
    new: str


def read(path: Path) -> list[Fault]:
    """The faults in a file. Raises ValueError, naming the line, for one that is not in the format."""
    found: list[Fault] = []
    parts: dict[str, list[str]] = {}
    file = tests = head = ""

    def end() -> None:
        if head:
            name, _, own = (part.strip() for part in head.partition("|"))
            found.append(Fault(name, file, own or tests, "\n".join(parts["-"]), "\n".join(parts["+"])))

    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), "@"], 1):
        kind, rest = line[:1], line[2:]
        if kind in ("@", "="):
            end()
            head, parts = rest if kind == "=" else "", {"-": [], "+": []}
            if kind == "@":
                file, _, tests = (part.strip() for part in rest.partition("|"))
        elif kind in ("-", "+") and head:
            parts[kind].append(rest)
        elif kind not in ("", "#"):
            raise ValueError(f"{path.name} line {number}: it begins with none of @ = - + #")
    names = [fault.name for fault in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path.name}: {', '.join(sorted(twice))} occur twice")
    return found


FAULTS = read(Path(__file__).with_name("faults.txt"))
