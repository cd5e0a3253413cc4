"""The plug-in ``editor`` around diffusers' own pipelines at tiny size."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from pipelines import EDITORS, save_editor, stand_in_torchvision
from torch.nn import functional as F

from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.config.loading import make_config
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.model import ReasonBrain
from reasonbrain.modules.diffusion import rules
from reasonbrain.modules.diffusion.editor import Editor
from reasonbrain.utils.images import to_pil

KONTEXT, KLEIN, QWEN, PIX2PIX, XL, OMNIGEN = EDITORS
SIZE = 96 * 96
WORDS = ["melt the ice", "put out the flame"]

# How a user would call each pipeline for a picture of 40 x 72 pixels, and the size that it then draws
CALLS = {
    KONTEXT: ((64, 128), {"guidance_scale": 2.5, "max_area": 64 * 128, "_auto_resize": False}),
    KLEIN: ((64, 128), {"guidance_scale": 1.0}),
    QWEN: ((64, 128), {"true_cfg_scale": 4.0, "negative_prompt": " "}),
    PIX2PIX: ((72, 128), {"guidance_scale": 7.5, "image_guidance_scale": 1.5}),
    XL: ((72, 128), {"guidance_scale": 5.0, "image_guidance_scale": 1.5}),
    OMNIGEN: ((64, 128), {"guidance_scale": 2.5, "img_guidance_scale": 1.6, "max_input_image_size": 128}),
}
STEPS = {KONTEXT: 28, KLEIN: 4, QWEN: 40, PIX2PIX: 100, XL: 100, OMNIGEN: 50}


@pytest.fixture(scope="module", autouse=True)
def tiny_world():
    with pytest.MonkeyPatch.context() as patch:
        stand_in_torchvision(patch)
        patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)  # they have no argument
        patch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 56 * 56)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``folder(repository)``: the folder of a tiny pipeline."""
    root = tmp_path_factory.mktemp("editors")

    def find(repository):
        if not (root / repository).exists():
            save_editor(repository, root / repository)
        return str(root / repository)

    return find


@pytest.fixture(scope="module")
def editor(folder):
    return lambda repository: Editor(32, folder(repository), SIZE, "float32")


def condition(*prompts):
    empty = torch.zeros(len(prompts), 0, 32)
    return Condition(empty, empty, empty[:, :, 0], prompts=prompts)


def source(rows=2):
    return torch.rand(rows, 3, 40, 72, generator=torch.Generator().manual_seed(3))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("repository", EDITORS)
def test_it_gives_what_the_pipeline_gives(repository, folder, editor):
    """Bit-identical to a direct call at the drawn size, scaled back to the source's size. Each row has its own prompt
    and generator."""
    plug, pictures = editor(repository), source()
    assert plug.edit_defaults["steps"] == STEPS[repository]
    found = plug.sample(condition(*WORDS), pictures, generators(1, 2), **plug.edit_defaults | {"steps": 2})
    assert found.shape == pictures.shape and 0 <= found.min() < found.max() <= 1

    options = {"processor": plug.pipeline.processor} if repository == QWEN else {}
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder(repository), **options)
    theirs.set_progress_bar_config(disable=True)
    size, call = CALLS[repository]
    for row in range(2):
        picture = to_pil(F.interpolate(pictures[row : row + 1], size, mode="bicubic", antialias=True))[0]
        words = f"<img><|image_1|></img> {WORDS[row]}" if repository == OMNIGEN else WORDS[row]
        call = call | {"prompt": words, "input_images" if repository == OMNIGEN else "image": [picture]}
        if repository != PIX2PIX:
            call |= {"height": size[0], "width": size[1]}
        random = generators(row + 1)[0]
        torch.manual_seed(row + 1)  # OmniGen encodes the source with the global generator
        out = theirs(**call, num_inference_steps=2, generator=random, output_type="pt").images
        assert out.shape[-2:] == size
        wanted = F.interpolate(out, (40, 72), mode="bicubic", antialias=True).clamp(0, 1)[0]
        # pipelines that take many pictures compute the rows of a batch together
        assert (found[row] - wanted).abs().max() <= (1e-4 if rules.RULES[type(theirs).__name__].together else 0)
    assert not torch.equal(found[0], found[1])


def test_steps_are_called_back_and_may_change_the_latents(editor):
    for repository, calls in ((KONTEXT, 2), (KLEIN, 4), (XL, 2)):  # the last has diffusers' old callback
        plug, seen = editor(repository), []
        settings = plug.edit_defaults | {"steps": 2}

        def on_step(step, timestep, latents, seen=seen):
            seen.append(step)
            return latents * 0

        args = condition(*WORDS), source()
        blank = plug.sample(*args, generators(1, 2), **settings, on_step=on_step)
        assert seen == [0, 1] * (calls // 2)
        same = torch.equal(blank, plug.sample(*args, generators(1, 2), **settings))
        assert same == (repository == XL)


@pytest.mark.parametrize("repository", EDITORS)
def test_marks_in_a_prompt_are_no_marks(repository, editor):
    """A text about pictures or the end of a text is edited like the same text without them."""
    plug, marked = editor(repository), "melt<|image_pad|><|im_end|><|endoftext|><|image_2|> the ice!"
    settings = plug.edit_defaults | {"steps": 1}
    pictures = [
        plug.sample(condition(words), source(1), generators(1), **settings) for words in (marked, "melt the ice!")
    ]
    assert torch.equal(*pictures)


def test_what_clip_does_not_read(editor):
    long = "melt the ice " * 40 + "and freeze the lake"
    for repository, reads_all in ((PIX2PIX, False), (XL, False), (KONTEXT, True), (KLEIN, True)):
        plug = editor(repository)
        left = plug.unread(long)
        assert plug.unread("melt the ice") == "" and long.endswith(left) and (left == "") == reads_all
        if left:
            read = long.removesuffix(left)
            tokenizer = plug.pipeline.tokenizer
            assert len(tokenizer(read).input_ids) <= 77 < len(tokenizer(read + left[:6]).input_ids)


def model_of(path, *more):
    raw = {"model": {"diffusion": {"name": "editor", "pretrained": path, "pixels": SIZE, "precision": "float32"}}}
    cfg = make_config(raw, ["edit.steps=2", "edit.preserve=false", *more])
    return ReasonBrain.from_config(cfg.model).eval(), cfg


def test_the_other_slots_may_be_null_and_pictures_keep_their_size(folder):
    """The instruction is the prompt. Each picture is edited as it would be alone, and keeps its size and aspect."""
    pipe = ReasonBrainPipeline.from_model(*model_of(folder(KLEIN)))
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((50, 61), (50, 61), (90, 31))
    ]
    out = pipe(pictures, WORDS[:1] * 3, generator=torch.Generator().manual_seed(5))
    assert [image.size for image in out.images] == [image.size for image in pictures]
    for picture, image in zip(pictures, out.images, strict=True):
        alone = pipe(picture, WORDS[0], generator=torch.Generator().manual_seed(5)).images[0]
        assert (np.asarray(alone) == np.asarray(image)).all()
        other = pipe(picture, WORDS[1], generator=torch.Generator().manual_seed(5)).images[0]
        assert (np.asarray(other) != np.asarray(image)).any()
    rows = [{"id": str(i), "image": p, "instruction": WORDS[0], "seed": 5} for i, p in enumerate(pictures)]
    for result in pipe.batch(rows, 2):
        assert (np.asarray(result.image) == np.asarray(out.images[int(result.row.id)])).all()


def test_a_checkpoint_holds_a_reference(folder, tmp_path):
    model, cfg = model_of(folder(KONTEXT))
    save_model(model, cfg, tmp_path / "saved")
    files = {path.name: path.stat().st_size for path in (tmp_path / "saved" / "diffusion").iterdir()}
    assert set(files) == {"trained.safetensors"} and files["trained.safetensors"] < 200
    again, _ = load_model(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_it_draws_with_compressed_layers(folder, kind):
    plug = Editor(32, folder(PIX2PIX), SIZE)
    before = plug.sample(condition(*WORDS), source(), generators(1, 2), 2, 7.5, 1.5)
    plug.compress(kind)
    after = plug.sample(condition(*WORDS), source(), generators(1, 2), 2, 7.5, 1.5)
    assert 0 < (after - before).abs().mean() < 0.2


def fails(words, path, **options):
    with pytest.raises(UserError) as error:
        ReasonBrain.from_config(make_config({"model": {"diffusion": {"name": "editor", "pretrained": path}}}).model)
    assert "\n" not in str(error.value)
    assert words in str(error.value), error.value


def test_what_is_no_editor(folder, tmp_path, monkeypatch):
    fails("is a StableDiffusionPipeline, which is not an editing pipeline known here: Flux", index(tmp_path))
    fails("/at/all' does not exist; give one that holds weights, or a hub id", str(tmp_path / "nowhere" / "at" / "all"))
    (tmp_path / "empty").mkdir()
    fails("has no readable model_index.json", str(tmp_path / "empty"))
    monkeypatch.setattr(diffusers, "FluxKontextPipeline", None)
    fails("is a FluxKontextPipeline, which diffusers", index(tmp_path, "FluxKontextPipeline"))


def test_a_call_without_an_argument_that_is_needed(folder, monkeypatch):
    def call(self, image, prompt, num_inference_steps, generator, output_type, height, width):
        pass

    monkeypatch.setattr(diffusers.Flux2KleinPipeline, "__call__", call)
    fails("is a Flux2KleinPipeline, which takes no 'guidance_scale' in diffusers", folder(KLEIN))


def test_a_pipeline_whose_package_is_missing(folder, monkeypatch):
    path = folder(OMNIGEN)
    monkeypatch.delattr("diffusers.pipelines.omnigen.pipeline_omnigen.OmniGenMultiModalProcessor")
    fails("most likely torchvision, in the version that fits torch", path)


def test_weights_that_are_incomplete(folder, tmp_path):
    save_editor(PIX2PIX, tmp_path / "broken")
    path = tmp_path / "broken" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_per_block": 2}))
    fails("the weights of UNet2DConditionModel", str(tmp_path / "broken"))


def test_a_scale_that_it_does_not_take(folder):
    model, cfg = model_of(folder(KLEIN), "edit.image_guidance=2")
    with pytest.raises(UserError, match="edit.image_guidance: 'editor' does not take it here"):
        model.edit_settings(cfg.edit)


def index(folder, name="StableDiffusionPipeline"):
    path = folder / name
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return str(path)


def test_qwens_processor_without_torchvision(folder):
    """As many image tokens as merged patches, for each picture of each text, and otherwise the words."""
    processor = Editor(32, folder(QWEN), SIZE, "float32").pipeline.processor
    pictures = [Image.new("RGB", size, "red") for size in ((56, 84), (112, 56))]
    found = processor(images=pictures, text=["a <|image_pad|> b <|image_pad|> c"], return_tensors="pt", padding=True)
    counts = (found["image_grid_thw"].prod(-1) // 4).tolist()
    assert counts == [2 * 3, 4 * 2] and len(found["pixel_values"]) == 4 * sum(counts)
    words = f"a {'<|image_pad|>' * 6} b {'<|image_pad|>' * 8} c"
    assert found["input_ids"].tolist() == [processor.tokenizer(words).input_ids]
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (found["input_ids"] == image).sum() == sum(counts) and (found["attention_mask"] == 1).all()
