"""`.ci/files.py` on a repository with broken links, stale names, a large file and two tests of one name."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = """# A page: of `code`
[good](docs/b.md#two-words) [self](#a-page-of-code) [web](https://example.org/x.md) `train/real.py`
[gone](docs/c.md)
![gone](docs/c.png) and [no heading](docs/b.md#three)
see `train/gone.py` and eval/gone/too.py, but not data/train/gone.py
"""


def test_each_fault_is_named(tmp_path):
    for name, text in {
        "README.md": PAGE,
        "docs/b.md": "## Two words\n[up](../README.md)",
        "docs/log.md": "train/gone.py was renamed",
        "train/real.py": "",
        "tests/a/test_x.py": "",
        "tests/b/test_x.py": "",
        "large.bin": "x" * 1_000_001,
        "configs/tiny/weights.bin": "x" * 1_000_001,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)

    done = subprocess.run([sys.executable, ".ci/files.py"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 1 and done.stdout.splitlines() == [
        "tests/b/test_x.py: has the name of tests/a/test_x.py",
        "README.md:3: link to 'docs/c.md', which does not exist",
        "README.md:4: link to 'docs/c.png', which does not exist",
        "README.md:4: link to 'docs/b.md#three', but b.md has no such heading",
        "README.md:5: names 'train/gone.py', which does not exist",
        "README.md:5: names 'eval/gone/too.py', which does not exist",
        "large.bin: 1000001 bytes; at most 1000000 are allowed outside configs/tiny/",
    ]
