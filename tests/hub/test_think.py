"""The presets that edit a photograph without training, with their own hub ids, against a hub whose models are small."""

import json
import re
import shlex
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import save_editor, save_qwen3_vl
from thinker import SAID, SENTENCE, Thinker

README = Path(__file__).parents[2] / "README.md"
KLEIN, KONTEXT = "black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.1-Kontext-dev"
QWEN = "Qwen/Qwen-Image-Edit-2511"
EDITORS = {"think_klein": KLEIN, "think_qwen_edit": QWEN, "think_kontext": KONTEXT}
SMALL = ["model.diffusion.pixels=9216", "edit.steps=1"]  # enough to run on a CPU
CARD = "---\nlicense: other\nlicense_name: for-tests\nlicense_link: https://example.org/LICENSE\n---\n# A model\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("editors")
    for repository in EDITORS.values():
        save_editor(repository, root / repository)
    (root / KONTEXT / "README.md").write_text(CARD)
    torch.manual_seed(0)
    save_qwen3_vl(root / "Qwen/Qwen3-VL-4B-Instruct")
    return {name: root / name for name in (*EDITORS.values(), "Qwen/Qwen3-VL-4B-Instruct")}


def of_readme(preset):
    """README's command for a photograph, with another preset."""
    words = re.search(r"^reasonbrain (edit photo.jpg .*)$", README.read_text(), re.MULTILINE)[1]
    return [preset if word == "think_klein" else word for word in shlex.split(words)]


def check(found):
    for words, (code, said, error) in found:
        assert code == 0, (words, said, error)


@pytest.mark.long
@pytest.mark.parametrize("preset", EDITORS)
def test_a_photograph_without_anything_but_the_hub(preset, hub, published, run, tmp_path):
    """`edit`, `batch` and `eval`, then `edit` offline from the cache. The tiny MLLM says nothing readable."""
    hub.repositories = published
    layouts.save(layouts.picture(1, (90, 60)), tmp_path / "photo.jpg")
    layouts.magicbrush(tmp_path / "mb")
    quick = [*SMALL, "model.thinking.words=4", "model.thinking.retries=0"]
    edit = [*of_readme(preset), *quick]
    commands = [[*edit, "--panel", "panel.png"]]
    if preset == "think_klein":
        (tmp_path / "photos").mkdir()
        layouts.save(layouts.picture(2), tmp_path / "photos" / "1.png")
        commands.append(["batch", "photos", "--instruction", "Melt it.", "--config", preset, "-o", "batch", *quick])
        evaluate = ["eval", "--benchmark", "magicbrush", "--data", "mb", "--config", preset, "-o", "report", *quick]
        commands.append([*evaluate, "--metric", "L1", "--limit", "1"])
    check(zip(commands, run(commands), strict=True))
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (90, 60) and "no readable answer" in image.text["note"]
        first = np.asarray(image)
    again = [["again.png" if word == "out.png" else word for word in edit]]
    before = hub.requests.total()
    check(zip(again, run(again, offline=True), strict=True))
    assert hub.requests.total() == before
    assert (np.asarray(Image.open(tmp_path / "again.png")) == first).all()


@pytest.mark.long
@pytest.mark.parametrize("preset", EDITORS)
def test_a_thinker_behind_a_server(preset, hub, published, run, tmp_path):
    hub.repositories = published
    layouts.save(layouts.picture(1, (90, 60)), tmp_path / "photo.jpg")
    with Thinker(lambda *_: json.dumps(SAID)) as server:
        more = [f"model.mllm.url={server.url}", "model.mllm.answers=answers", *SMALL]
        commands = [["edit", "photo.jpg", "Melt it.", "--config", f"{preset}_endpoint", "-o", "out.png", *more]]
        check(zip(commands, run(commands), strict=True))
        assert len(server.asked) == 1
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (90, 60) and image.text["reasoning"] == SENTENCE


@pytest.mark.long
def test_the_licence_is_printed_before_the_first_download(hub, published, run, tmp_path):
    """Once, and also where the download is then refused."""
    hub.repositories = published
    (first, second) = run([["edit", "no.jpg", "x", "--config", "think_kontext", "-o", "a.png"]] * 2)
    assert first[0] == second[0] == 2  # the photograph is missed before anything is downloaded
    layouts.save(layouts.picture(1), tmp_path / "photo.jpg")
    hub.breaks = {(KONTEXT, "transformer/diffusion_pytorch_model.safetensors")}
    edit = ["edit", "photo.jpg", "x", "--config", "think_kontext", "-o", "a.png", *SMALL]
    first, second = run([edit, edit])
    told = f"downloading '{KONTEXT}'; its licence: for-tests, https://example.org/LICENSE"
    assert first[0] == 2 and told in first[1] and f"model.diffusion.pretrained '{KONTEXT}'" in first[1], first
    assert second[0] == 2 and told not in second[1]
