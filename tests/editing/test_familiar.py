"""Images that are nothing like the embedded default's world: a measured rule."""

import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.modules.data.reasonmini import make

PHOTOGRAPHS = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "moon", "page", "rocket")


def photograph(name):
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


@pytest.fixture(scope="module")
def pipe():
    return ReasonBrainPipeline.from_pretrained("tiny")


def test_at_most_one_of_a_hundred_of_its_own_images_is_unfamiliar(pipe):
    core, found = pipe.core(), []
    for split in ("test", "paraphrase", "compositional"):
        images = [make(split, i).source for i in range(70)]
        found += core.unfamiliar(core.sources(images, pipe.settings.edit), pipe.settings.edit)
    assert len(found) == 210 and sum(found) <= 2


def test_photographs_are_unfamiliar(pipe):
    core, edit = pipe.core(), pipe.settings.edit
    assert all(core.unfamiliar(core.sources([photograph(n)], edit), edit)[0] for n in PHOTOGRAPHS)
    edit.familiar, before = None, edit.familiar
    assert not core.unfamiliar(core.sources([photograph("coffee")], edit), edit)[0]
    edit.familiar = before


def test_edit_says_so_and_names_the_presets_for_photographs(tmp_path):
    photograph("coffee").save(tmp_path / "photo.png")
    said = {}
    for path in (tmp_path / "photo.png", "docs/samples/ice.png"):
        words = ["edit", str(path), "Melt it.", "-o", str(tmp_path / "out.png"), "--steps", "1"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0
        said[path] = done.stderr
    photo, drawing = said.values()
    assert "nothing like those that 'tiny' was trained on" in photo and "--config think_klein" in photo
    assert "nothing like" not in drawing
