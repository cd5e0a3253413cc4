"""The reference pages in docs/ are up to date with the code."""

import runpy
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs/reference"


@pytest.fixture(scope="module")
def pages():
    return runpy.run_path(str(REFERENCE / "generate.py"))["PAGES"]


@pytest.mark.parametrize("name", ["configuration.md", "plugins.md", "commands.md"])
def test_a_page_is_up_to_date(pages, name):
    assert pages[name]() == (REFERENCE / name).read_text(encoding="utf-8"), "run `make reference`"
