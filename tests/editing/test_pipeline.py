"""The pipeline: seeds, batches, sizes, callbacks, output types, errors, and that unedited pixels stay unchanged."""

import copy
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from reasonbrain.config.loading import load_config, presets
from reasonbrain.config.schema import EditConfig
from reasonbrain.editing.core import Core, change_mask
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.registry import SLOTS
from reasonbrain.utils.images import to_tensor


@pytest.fixture(scope="module")
def pipe(model, settings):
    pipe = ReasonBrainPipeline.from_model(model, settings())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seed(n=0):
    return torch.Generator().manual_seed(n)


def pixels(image):
    return np.asarray(image).astype(int)


def noise_picture(width, height):
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_one_picture(pipe, records):
    out = pipe(records[0].source, records[0].instruction, objects=[records[0].objects], generator=seed())
    assert isinstance(pipe, DiffusionPipeline)
    assert out.images[0].size == (64, 64) and out.images[0].mode == "RGB"
    assert out.objects == [records[0].objects] and out.reasoning is None
    assert out.regions[0].shape == (64, 64)
    assert out.focus[0].shape == (4, 4) and out.focus[0].sum() == pytest.approx(1)


def test_the_seed_and_the_instruction_decide(pipe, records):
    def edit(n, instruction):
        return pixels(pipe(records[0].source, instruction, generator=seed(n), preserve=False).images[0])

    first = edit(1, "melt it")
    assert (edit(1, "melt it") == first).all()
    assert (edit(2, "melt it") != first).mean() > 0.1
    assert (edit(1, "what if the sun burnt the whole village down?") != first).mean() > 0.01


@pytest.mark.parametrize("preserve", [True, False])
def test_same_seed_same_picture_alone_or_in_a_batch(pipe, records, preserve):
    sources, texts = [r.source for r in records], [r.instruction for r in records]
    batch = pipe(sources, texts, generator=seed(5), preserve=preserve).images
    listed = pipe(sources, texts, generator=[seed(5) for _ in records], preserve=preserve).images
    for i in range(3):
        alone = pixels(pipe(sources[i], texts[i], generator=seed(5), preserve=preserve).images[0])
        assert np.abs(pixels(batch[i]) - alone).max() <= 1
        assert np.abs(pixels(listed[i]) - alone).max() <= 1


def test_one_generator_per_picture(pipe, records):
    source, text = records[0].source, "melt it"
    out = pipe([source] * 2, text, generator=[seed(1), seed(2)], preserve=False).images
    for i in range(2):
        alone = pipe(source, text, generator=seed(i + 1), preserve=False).images[0]
        assert np.abs(pixels(out[i]) - pixels(alone)).max() <= 1
    assert (pixels(out[0]) != pixels(out[1])).mean() > 0.1


def test_mixed_sizes_in_one_call(pipe):
    """Multiples of 8 or not, smaller or larger than edit.size: each result has the size and position of its source."""
    sizes = [(64, 64), (50, 37), (64, 64), (130, 90), (1, 1), (37, 50), (200, 9)]
    pictures = [noise_picture(*s) for s in sizes]
    out = pipe(pictures, "melt it", generator=seed(3))
    assert [i.size for i in out.images] == sizes
    for i in (1, 2, 3):
        alone = pipe(pictures[i], "melt it", generator=seed(3)).images[0]
        assert np.abs(pixels(alone) - pixels(out.images[i])).max() <= 1


def scaled(tensor, *size):
    return torch.nn.functional.interpolate(tensor, size, mode="bicubic", antialias=True).clamp(0, 1)


@pytest.mark.parametrize("sides", [(50, 37), (130, 90)])
def test_an_edit_is_computed_at_a_size_of_training_and_scaled_back(pipe, sides):
    """An edit that decodes the source's own latents gives the source's reconstruction, without a shift."""
    picture = noise_picture(*sides)
    latents = pipe.diffusion.encode(scaled(to_tensor([picture]), 56, 72))
    expected = scaled(pipe.diffusion.decode(latents), *sides[::-1])[0]
    out = pipe(picture, "melt it", preserve=False, output_type="pt", callback_on_step_end=replace(latents)).images[0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def replace(latents):
    """A callback that replaces the latents of every step by these."""
    from reasonbrain.modules.diffusion.flux import pack

    return lambda pipe, i, t, known: {"latents": pack(latents)}


def test_callback_on_step_end(pipe, records):
    seen = []

    def look(p, step, timestep, known):
        seen.append((p is pipe, step, float(timestep), known["latents"].shape))
        return {}

    pipe([records[0].source] * 2, "melt it", num_inference_steps=4, callback_on_step_end=look, generator=seed())
    assert [s[:2] for s in seen] == [(True, i) for i in range(4)]
    assert seen[0][2] == 1000 and seen[0][3] == (2, 64, 16)


def test_output_types(pipe, records):
    def edit(kind):
        return pipe(records[0].source, "melt it", generator=seed(), output_type=kind).images[0]

    pil, array, tensor = edit("pil"), edit("np"), edit("pt")
    assert isinstance(pil, Image.Image) and array.shape == (64, 64, 3) and tensor.shape == (3, 64, 64)
    assert np.array_equal(array, tensor.permute(1, 2, 0).numpy()) and 0 <= array.min() and array.max() <= 1
    assert np.array_equal(pixels(pil), (array * 255).round())


def test_paths_and_arrays(pipe, records, tmp_path):
    source = records[0].source
    source.save(tmp_path / "in.png")
    results = [
        pipe(image, "melt it", generator=seed()).images[0].tobytes()
        for image in (source, tmp_path / "in.png", str(tmp_path / "in.png"), np.asarray(source), [source])
    ]
    assert len(set(results)) == 1


def test_preserve_keeps_the_sources_own_pixels(pipe, records):
    """The latents of one corner change. Elsewhere the result equals the source bit for bit."""
    source = records[0].source
    tensor = to_tensor([source])
    latents = pipe.diffusion.encode(tensor)
    unchanged = pipe.diffusion.decode(latents)
    latents[..., 12:, 12:] *= -1
    kept, plain = (
        pipe(source, "melt it", preserve=p, callback_on_step_end=replace(latents), output_type="pt").images[0]
        for p in (True, False)
    )
    change = (plain - unchanged[0]).abs().amax(0)
    near = torch.nn.functional.max_pool2d(change[None], 5, 1, 2)[0]
    far, inside = near < 0.03, change > 0.08
    assert 0.1 < far.float().mean() < 0.99 and inside.any()
    assert torch.equal(kept[:, far], tensor[0][:, far]) and (plain != tensor[0])[:, far].float().mean() > 0.9
    torch.testing.assert_close(kept[:, inside], plain[:, inside], rtol=0, atol=0.5)


def test_a_change_mask_covers_the_change_and_cancels_the_autoencoder():
    source = torch.rand(1, 3, 20, 20) * 0.4
    edited = source.clone() + 0.02  # a haze that is no edit
    edited[..., 5:9, 5:9] += 0.5
    mask = change_mask(edited, source, EditConfig())
    assert mask.shape == (1, 1, 20, 20)
    assert (mask[..., 4:10, 4:10] > 0.3).all() and (mask[..., 5:9, 5:9] == 1).all()
    mask[..., 3:11, 3:11] = 0
    assert (mask == 0).all()


def test_a_change_mask_of_a_photograph_covers_the_change_and_not_the_texture_drawn_anew():
    """1024 pixels. Compared pixel by pixel, 60 and 89 % of the mask would not be 0."""
    source = torch.rand(1, 3, 1024, 768) * 0.4 + 0.2
    drawn = source + torch.randn(source.shape) * 0.03
    assert (change_mask(drawn, source, EditConfig()) == 0).all()
    drawn[..., 400:600, 300:500] += 0.2
    mask = change_mask(drawn, source, EditConfig())
    assert mask.shape == (1, 1, 1024, 768) and (mask[..., 410:590, 310:490] == 1).all()
    mask[..., 360:640, 260:540] = 0
    assert (mask == 0).all()


def test_a_change_mask_does_not_depend_on_the_size():
    edited, source = torch.rand(2, 1, 3, 64, 80)
    small = change_mask(edited, source, EditConfig())
    large = change_mask(*(x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (edited, source)), EditConfig())
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 4), small, atol=0.1, rtol=0)


def test_preserve_is_off_where_it_was_not_tuned():
    assert [name for name in presets() if load_config(name).edit.preserve] == ["tiny"]


def test_large_pictures_are_edited_small_and_keep_their_detail(pipe):
    """130 x 90 with edit.size 64: unchanged regions keep the source's full-size pixels."""
    picture = noise_picture(130, 90)
    latents = pipe.diffusion.encode(scaled(to_tensor([picture]), 56, 72))
    out = pipe(picture, "melt it", callback_on_step_end=replace(latents)).images[0]
    assert out.tobytes() == picture.tobytes()


def test_the_condition_is_computed_once_per_edit(pipe, records):
    calls, hooks = Counter(), []
    modules = {s: getattr(pipe, s.replace(".", "_")) for s in SLOTS[:-1]}
    modules |= {"language": pipe.mllm.model.model.language_model, "visual": pipe.mllm.model.model.visual}
    modules |= {"transformer": pipe.diffusion.transformer, "image_term": pipe.diffusion.image_term}
    modules |= {"encoder": pipe.diffusion.vae.encoder, "vision": pipe.encoders.clip.vision_model}
    for name, module in modules.items():
        hooks.append(module.register_forward_hook(lambda *_, name=name: calls.update([name])))
    pipe([records[0].source] * 2, "melt it", num_inference_steps=5, generator=seed())
    for hook in hooks:
        hook.remove()
    assert calls.pop("transformer") == 5
    assert calls == dict.fromkeys(modules.keys() - {"transformer"}, 1)


def test_an_instruction_that_is_too_long_for_the_text_encoder_is_not_cut_silently(pipe, records, caplog):
    source = records[0].source
    pipe([source] * 2, "melt the candle and " * 40 + "freeze the lake", generator=seed())
    (line,) = [r.getMessage() for r in caplog.records if "truncates" in r.getMessage()]
    assert "it does not read: " in line
    caplog.clear()
    pipe(source, "melt it", generator=seed())
    assert not any("truncates" in r.getMessage() for r in caplog.records)


def test_reasoning_is_returned_on_request(pipe, records):
    out = pipe([r.source for r in records], [r.instruction for r in records], reasoning=True, generator=seed())
    assert len(out.reasoning) == 3 and all(isinstance(s, str) and s for s in out.reasoning)


def test_no_gradient_is_kept_and_settings_stay(pipe, records):
    before = pipe.settings.edit.steps
    out = pipe(records[0].source, "melt it", num_inference_steps=1, generator=seed(), output_type="pt")
    assert not out.images[0].requires_grad and pipe.settings.edit.steps == before


def test_diffusers_attributes(model, settings, records):
    pipe = ReasonBrainPipeline.from_model(model, settings()).to("cpu")
    assert pipe.device.type == "cpu" and set(pipe.components) == {*(s.replace(".", "_") for s in SLOTS), "settings"}


def test_what_is_said_and_found_belongs_to_its_row_whatever_the_sizes(pipe, monkeypatch):
    monkeypatch.setattr(pipe.mllm, "reason", lambda inputs: [f"said of {text}" for text in inputs.instructions])
    pictures, texts = [noise_picture(*s) for s in ((64, 64), (48, 64), (64, 64), (48, 64))], ["a", "b", "c", "d"]
    out = pipe(pictures, texts, objects=[[text] for text in texts], reasoning=True)
    assert out.reasoning == [f"said of {text}" for text in texts] and out.objects == [[text] for text in texts]
    assert [regions.shape for regions in out.regions] == [(64, 64), (72, 56)] * 2


def test_the_numbers_of_a_call_are_used(pipe, records, monkeypatch):
    """Numbers of any type; steps also as a whole number in a float."""
    used, draw = [], Core.draw
    monkeypatch.setattr(Core, "draw", lambda self, *args: used.append(args[3]) or draw(self, *args))
    pipe(records[0].source, "melt it", num_inference_steps=np.float64(2.0), guidance_scale=np.float32(4.5))
    assert (used[0].steps, used[0].guidance) == (2, 4.5)


def test_a_string_is_one_object(pipe, records):
    for given in ("ice cube", ["ice cube"], [["ice cube"]]):
        assert pipe(records[0].source, "melt it", objects=given).objects == [["ice cube"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"instruction": ""}, "empty"),
        ({"instruction": "  \n"}, "empty"),
        ({"instruction": ["a", "b"]}, "1 images, but 2 instructions"),
        ({"image": []}, "no image"),
        ({"num_inference_steps": 0}, "steps 0 is not from 1 to 1000"),
        ({"num_inference_steps": -3}, "-3"),
        ({"output_type": "jpeg"}, "pil, np, pt"),
        ({"objects": [["a"], ["b"]]}, "1 images, but 2 objects"),
        ({"generator": [seed(), seed()]}, "1 images, but 2 generators"),
        ({"generator": 7}, "generator 7 is not a torch.Generator, such as"),
        ({"generator": [np.int64(7)]}, "is not a torch.Generator"),
        ({"image": "gone.png"}, "gone.png"),
        ({"preserve": "false"}, "preserve 'false' is not True, False or None"),
        ({"num_inference_steps": 2.5}, "steps '2.5' is not a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan is not a finite number"),
        ({"instruction": "a\ud800"}, "valid Unicode"),
        ({"instruction": "a" * 10_001}, "10001 characters"),
        ({"objects": "a\ud800"}, "object .* valid Unicode"),
    ],
)
def test_invalid_arguments(pipe, records, arguments, said):
    with pytest.raises(UserError, match=said):
        pipe(**({"image": records[0].source, "instruction": "melt it"} | arguments))


@pytest.mark.parametrize("size", [0, -1, 1.5, "8"])
def test_a_batch_size_that_would_make_no_edit_is_an_error(pipe, size):
    with pytest.raises(UserError, match=f"batch_size {size!r} is not a whole number of at least 1"):
        list(pipe.batch([], size))


def test_an_encoded_picture_is_one_picture(pipe, records):
    records[0].source.save(file := BytesIO(), "PNG")
    one, other = (pipe(i, "melt it", generator=seed()).images[0] for i in (records[0].source, file.getvalue()))
    assert (pixels(one) == pixels(other)).all()


@pytest.mark.parametrize("override", ["data.size=128", "train.steps=3", "data={size: 128}"])
def test_an_override_that_changes_no_edit_is_an_error(override):
    with pytest.raises(UserError, match="override '.*': an edit depends on model.* and edit.* alone"):
        ReasonBrainPipeline.from_pretrained("tiny", ["edit.steps=1", override])


def test_a_diverged_model_is_refused(model, settings, records):
    """Without the check, a NaN in one weight would give a black picture."""
    broken = copy.deepcopy(model)
    next(broken.slot("diffusion").vae.decoder.parameters()).data.view(-1)[0] = float("nan")
    pipe = ReasonBrainPipeline.from_model(broken, settings())
    with pytest.raises(UserError, match="the edit is NaN or infinite: .*, or they overflow in float32"):
        pipe(records[0].source, "melt it")


def test_a_picture_larger_than_the_limit_is_refused(model, settings, records):
    pipe = ReasonBrainPipeline.from_model(model, settings("edit.max_pixels=4095"))
    with pytest.raises(UserError, match="64 x 64 pixels, more than edit.max_pixels=4095"):
        pipe(records[0].source, "melt it")
