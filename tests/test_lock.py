"""requirements.lock pins what constraints.txt pins and all that setup.py names, by hash; docs/licenses.md lists it."""

import re
import runpy
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LICENCES = runpy.run_path(str(ROOT / "docs" / "licenses.py"))
AGAIN = "run `make lock`"


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def locked():
    return LICENCES["locked"]()


def test_every_requirement_is_locked(locked):
    needed = {name_of(r) for r in requires("reasonbrain") if not re.search(r"extra == .flash", r)}
    assert needed <= {name for name, _ in locked}, AGAIN
    built = re.search(r'requires = \["(\S+)==(\S+)"\]', (ROOT / "pyproject.toml").read_text())
    assert built.groups() in locked, AGAIN


def test_the_constraints_are_those_of_the_lock(locked):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if line[0] != "#" and "< " not in line]
    pins = [(name_of(pin), pin.partition("==")[2]) for pin in pins]
    names = {name for name, _ in locked}
    assert [pin for pin in pins if pin[0] in names and pin not in locked] == [], AGAIN


def test_every_file_has_a_hash_and_no_machine_is_named(locked):
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"^(?=[\w.-]+(?:\[[\w,-]+\])?==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert not re.search(r"://|^--|file:|@ ", re.sub(r"--hash=\S+", "", text), re.MULTILINE)


def test_the_list_of_licences_has_what_is_locked(locked):
    page = (ROOT / "docs" / "licenses.md").read_text()
    assert re.findall(r"^\| ([\w.-]+) \| ([\w.]+) \|", page, re.MULTILINE)[1:] == locked, AGAIN
