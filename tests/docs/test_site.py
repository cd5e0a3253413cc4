"""The documentation site builds in strict mode from docs/ alone, and its pages load nothing from other hosts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

needs_zensical = pytest.mark.skipif(sys.version_info < (3, 11), reason="zensical needs Python 3.11")


@pytest.fixture
def project(tmp_path):
    """A folder with the files that the site is built from."""
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "reasonbrain").symlink_to(ROOT / "reasonbrain")
    for file in DOCS.rglob("*"):
        if file.is_file():
            copy = tmp_path / "docs" / file.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return tmp_path


def build(project):
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)


@needs_zensical
def test_the_site_builds_and_loads_nothing_from_other_hosts(project):
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    site = project / "site"
    for page in PAGES:
        html = (site / page.relative_to(DOCS).with_suffix(".html")).read_text()
        loaded = re.findall(r'<(?:script|img)[^>]* src="?([^" >]+)', html) + re.findall(
            r'<link[^>]* href="?([^" >]+)', html
        )
        assert loaded and not [url for url in loaded if "//" in url], page
    api = (site / "reference/api.html").read_text()
    assert 'id="reasonbrain.editing.pipeline.ReasonBrainPipeline.__call__"' in api
    assert 'id="reasonbrain.plugin.Plugin"' in api


@needs_zensical
@pytest.mark.parametrize("planted", ["[nowhere](nowhere.md)", "[here](data.md#nowhere)", "::: reasonbrain.nowhere"])
def test_a_broken_reference_fails(project, planted):
    with (project / "docs/index.md").open("a") as file:
        file.write(f"\n{planted}\n")
    assert build(project).returncode != 0


def test_every_page_is_in_the_navigation():
    """Strict mode does not check this."""

    def listed(node):
        for entry in node:
            (below,) = entry.values()
            yield from [below] if isinstance(below, str) else listed(below)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(listed(nav)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)
