"""`python -m build` makes a wheel that contains every file and edits without the repository."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDERS = {"reasonbrain": "reasonbrain"} | {n: f"reasonbrain/{n}" for n in ("modules", "train", "eval", "configs")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the source distribution, as published ones are."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    assert len(list(out.glob("*.tar.gz"))) == 1
    return wheel


@pytest.mark.long
def test_the_wheel_contains_every_file_and_no_other(wheel):
    expected = set()
    for source, installed in FOLDERS.items():
        files = [f.relative_to(ROOT / source) for f in (ROOT / source).rglob("*") if f.is_file()]
        expected |= {f"{installed}/{f}" for f in files if "__pycache__" not in f.parts}
    archive = zipfile.ZipFile(wheel)
    held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


@pytest.mark.long
def test_its_description_has_only_external_links(wheel):
    """A package index shows README.md without the files of the repository."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(name).decode()
    assert "# ReasonBrain" in text
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []


@pytest.mark.long
def test_it_edits_in_an_environment_of_its_own(wheel, tmp_path):
    """It uses the dependencies of this interpreter, so nothing is downloaded. The repository is not on the path."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    names = {re.match(r"[\w-]+", r)[0] for r in requires("reasonbrain")}
    found = {str(distribution(n).locate_file("")) for n in names if installed(n)}
    (site / "dependencies.pth").write_text("\n".join(sorted(found)))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    where = "import sys, reasonbrain; print(reasonbrain.__file__, *sys.path, *sys.meta_path, sep='\\n')"
    said = subprocess.run([python, "-c", where], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *paths = said.stdout.splitlines()
    assert first == str(site / "reasonbrain" / "__init__.py")
    assert str(ROOT) not in paths and not any("__editable__" in p for p in paths)

    sample = ROOT / "docs" / "samples" / "ice.png"
    command = [python.with_name("reasonbrain"), "edit", sample, "What if it melted?", "-o", "out.png"]
    done = subprocess.run([*command, "--panel", "panel.png"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    edited, source = Image.open(tmp_path / "out.png"), Image.open(sample)
    assert edited.size == source.size and edited.tobytes() != source.convert("RGB").tobytes()
    assert (tmp_path / "panel.png").exists()


def installed(name):
    try:
        return bool(distribution(name))
    except ImportError:
        return False
