"""The folders that README maps and the keys that the documents name exist. (Links and paths: .ci/files.py.)"""

import re
from pathlib import Path

from reasonbrain.config.reference import settings
from reasonbrain.registry import plugin, plugin_parameters, plugins

ROOT = Path(__file__).parents[2]
LOG = {ROOT / "docs/log.md", ROOT / "CHANGELOG.md"}  # what they name is of its time
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "docs/slurm.sh"} - LOG)


def test_the_map_of_the_folders_is_true():
    """Each entry of README's tree exists in the folder that its indentation implies."""
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1].splitlines()[1:]
    above = [ROOT]
    for line in tree:
        names = line.strip().split("  ")[0]
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r",? ", names):
            assert (above[depth] / name).exists(), line
        above[depth + 1 :] = [above[depth] / names]


def test_every_key_is_there():
    known = [s.key for s in settings()]
    known += [f"data.{key}" for info in plugins("data") for key in plugin_parameters(plugin("data", info.name))]
    for document in DOCUMENTS:
        for key in re.findall(r"(?<![\w.])(?:model|edit|data|train)(?:\.[a-z_0-9]+)+(?==)", document.read_text()):
            assert any(key == k or key.startswith(f"{k}.") for k in known), (document, key)
