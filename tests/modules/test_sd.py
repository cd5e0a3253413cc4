"""Diffusion ``sd``: starts as the plain UNet, edits and guides as diffusers' pipelines, and trains by their losses."""

import diffusers
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline
from pipelines import save_pix2pix, save_pix2pix_xl
from torch.nn import functional as F

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.modules.diffusion.sd import StableDiffusion, signal_shares
from reasonbrain.utils.images import to_pil

H, W = 8, 12  # of the latents
HIDDEN = 32  # channels of the first hidden map


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a tiny InstructPix2Pix, and one of a UNet without inputs for the source."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pix2pix")
    pipe = save_pix2pix(folder)
    plain = diffusers.UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 4})
    plain.save_pretrained(folder / "plain" / "unet")
    for part in ("vae", "scheduler"):
        getattr(pipe, part).save_pretrained(folder / "plain" / part)
    return folder


@pytest.fixture(scope="module")
def sd(published):
    """``sd(prediction_type="v_prediction", ...)``: the plug-in, with changes of its scheduler's config."""

    def one(name="", width=32, dropout=0.05, **changes):
        plug = StableDiffusion(width=width, pretrained=str(published / name), dropout=dropout).eval()
        plug.scheduler = type(plug.scheduler).from_config(plug.scheduler.config, **changes)
        return plug

    return one


@pytest.fixture(scope="module")
def known():
    """A condition and latents of a source and a target."""
    torch.manual_seed(3)
    condition = Condition(
        torch.randn(2, 3, 32), torch.randn(2, 4, 32), torch.zeros(2, 0), null=torch.randn(1, 7, 32).expand(2, -1, -1)
    )
    return condition, torch.randn(2, 4, H, W), torch.randn(2, 4, H, W)


def test_a_grown_unet_starts_as_the_plain_one(sd, published, known):
    plug, (condition, source, z) = sd("plain"), known
    plain = diffusers.UNet2DConditionModel.from_pretrained(published / "plain" / "unet").eval()
    assert plug.unet.conv_in.weight.shape[1] == 8 and (plug.unet.conv_in.weight[:, 4:] == 0).all()
    assert torch.equal(plug.unet.conv_in.bias, plain.conv_in.bias) and plain.conv_in.bias.abs().sum() > 0
    t = torch.tensor([3, 500])
    with torch.no_grad():
        found = plug.predict(z, t, plug.conditioning(condition, source))
        expected = plain(z, t, torch.cat([condition.visual, condition.textual], 1)).sample
    assert torch.equal(found, expected)


def edited(plug, pipe, picture, steps=4, **scales):
    """Latents of the plug-in and of diffusers' pipeline from the same noise, with a batch of two."""
    torch.manual_seed(5)
    source = torch.stack([picture, picture.flip(0)])
    words, none = (torch.randn(2, 7, 32) for _ in range(2))
    noise = torch.randn(2, 4, 8, 12)
    condition = Condition(words[:, :0], words, torch.zeros(2, 0), null=none)
    ours = plug.sample(condition, plug.encode(source), noise, steps, **scales)
    theirs = pipe(
        image=to_pil(source),
        prompt_embeds=words,
        negative_prompt_embeds=none,
        num_inference_steps=steps,
        guidance_scale=scales.get("guidance", 7.5),
        image_guidance_scale=scales.get("image_guidance", 1.5),
        latents=noise,
        output_type="latent",
    ).images
    return ours, theirs


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scales", [{}, {"guidance": 3.0, "image_guidance": 1.0}])
def test_edits_as_diffusers_does(sd, published, prediction, scales):
    plug = sd()
    plug.scheduler = diffusers.DDIMScheduler(prediction_type=prediction, beta_schedule="scaled_linear")
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        published, scheduler=plug.scheduler, text_encoder=None, tokenizer=None, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    picture = (torch.rand(3, 64, 96) * 255).round() / 255
    ours, theirs = edited(plug, pipe, picture, **scales)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.1


def test_ancestral_noise_depends_on_the_row_alone(sd, known):
    plug, (condition, source, noise) = sd(), known
    both = plug.sample(condition, source, noise, 3)
    alone = [
        plug.sample(condition._replace(**rows(condition, i)), source[i : i + 1], noise[i : i + 1], 3) for i in range(2)
    ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-2, atol=5e-3)  # guidance multiplies rounding errors
    assert not torch.allclose(both, plug.sample(condition, source, noise.flip(0), 3).flip(0))
    assert torch.equal(both, plug.sample(condition, source, noise, 3))


def rows(condition, i):
    return {name: getattr(condition, name)[i : i + 1] for name in ("visual", "textual", "pooled", "null")}


def test_xl_edits_as_diffusers_does(tmp_path):
    torch.manual_seed(0)
    save_pix2pix_xl(tmp_path)
    pipe = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(tmp_path, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    plug = StableDiffusion(width=64, pretrained=str(tmp_path)).eval()
    plug.scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    pipe.scheduler = plug.scheduler
    torch.manual_seed(5)
    words, none, pooled, noise = (
        torch.randn(1, 7, 64),
        torch.randn(1, 7, 64),
        torch.randn(1, 32),
        torch.randn(1, 4, H, W),
    )
    picture = (torch.rand(1, 3, 64, 96) * 255).round() / 255
    condition = Condition(words[:, :0], words, pooled, null=none)
    ours = plug.sample(condition, plug.encode(picture), noise, 3)
    theirs = pipe(
        image=to_pil(picture),
        prompt_embeds=words,
        negative_prompt_embeds=none,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        num_inference_steps=3,
        guidance_scale=7.5,
        height=64,
        width=96,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="pooled text embedding of width 32"):
        plug.conditioning(condition._replace(pooled=torch.zeros(1, 5)), noise)


def test_passes_that_count_for_nothing_are_left_out(sd, known):
    plug, (condition, source, z) = sd(), known
    settled, t = plug.conditioning(condition, source), torch.tensor(500)
    batches = []
    plug.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    with torch.no_grad():
        one = plug.guided(z, t, settled, 1.0, 1.0)
        plug.guided(z, t, settled, 2.0, 1.0)
        plug.guided(z, t, settled, 7.5, 1.5)
    assert batches == [2, 4, 6]
    torch.testing.assert_close(one, plug.predict(z, t.expand(2), settled))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_training_script(sd, known, prediction):
    """Compared with its formulas, by the DDPM scheduler, from the same random numbers."""
    plug, (condition, source, target) = sd(prediction_type=prediction), known
    ddpm = diffusers.DDPMScheduler.from_config(plug.scheduler.config)
    with torch.no_grad():
        found, level = plug.errors(condition, source, target, [7, 8], draws=2)
        expected = []
        for row, seed in enumerate([7, 8]):
            generator = torch.Generator().manual_seed(seed)
            noises = [torch.randn(target[0].shape, generator=generator) for _ in range(2)]
            drawn = [torch.rand(2, generator=generator) for _ in range(2)]
            for noise, u in zip(noises, drawn, strict=True):
                t = (u[1] * 1000).long()[None]
                z, e = target[row : row + 1], noise[None]
                noisy = ddpm.add_noise(z, e, t)
                wanted = e if prediction == "epsilon" else ddpm.get_velocity(z, e, t)
                words = torch.cat([condition.visual, condition.textual], 1)[row : row + 1]
                inputs = torch.cat([noisy, source[row : row + 1] / plug.vae.config.scaling_factor], 1)
                expected.append(F.mse_loss(plug.unet(inputs, t, words).sample, wanted))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert ((level > 0) & (level <= 1)).all() and len(level.unique()) == 4


def test_words_and_source_are_left_out_by_the_rows_seed(sd, known):
    """The shares, the exact rows, and nothing in eval mode."""
    plug, (condition, source, target) = sd(dropout=0.2), known
    seen = []
    plug.predict = lambda z, t, settled: seen.append(settled) or torch.zeros_like(z)
    many = 400
    one = condition._replace(**{name: part.expand(many, *part.shape[1:]) for name, part in rows(condition, 0).items()})
    args = (one, source[:1].expand(many, -1, -1, -1), target[:1].expand(many, -1, -1, -1), range(many))
    plug.train().errors(*args)
    words = (seen[0].words != one.null).any(-1).any(-1)
    picture = seen[0].source.abs().sum((1, 2, 3)) > 0
    count = {(w, p): int(((words == w) & (picture == p)).sum()) for w in (True, False) for p in (True, False)}
    assert all(abs(count[key] / many - share) < 0.06 for key, share in zip(count, (0.4, 0.2, 0.2, 0.2), strict=True))
    plug.errors(*args)
    assert torch.equal(seen[1].words, seen[0].words) and torch.equal(seen[1].source, seen[0].source)
    plug.eval().errors(*args)
    assert torch.equal(seen[2].words[:, 3:], one.textual) and (seen[2].source != 0).all()


def test_a_map_is_scaled_and_added_after_the_first_layer(sd, known):
    plug, (condition, source, z) = sd(), known
    extra = torch.randn(2, HIDDEN, 4, 4)
    t = torch.tensor([3, 500])
    with torch.no_grad():
        plain = plug.predict(z, t, plug.conditioning(condition, source))
        zero = plug.predict(z, t, plug.conditioning(condition._replace(map=0 * extra), source))
        found = plug.predict(z, t, plug.conditioning(condition._replace(map=extra), source))
        scaled = F.interpolate(extra, (H, W), mode="bilinear")
        hook = plug.unet.conv_in.register_forward_hook(lambda *args: args[2] + scaled)
        expected = plug.predict(z, t, plug.conditioning(condition, source))
        hook.remove()
    assert torch.equal(zero, plain) and (found - plain).abs().max() > 1e-3
    torch.testing.assert_close(found, expected)


def test_gradients(sd, known):
    plug, (condition, source, target) = sd("plain").train(), known
    trained = {name: getattr(condition, name).clone().requires_grad_() for name in ("visual", "textual")}
    extra = torch.randn(2, HIDDEN, 4, 4, requires_grad=True)
    errors, _ = plug.errors(condition._replace(**trained, map=extra), source, target, [1, 2])
    errors.mean().backward()
    assert all(t.grad.abs().sum() > 0 for t in (*trained.values(), extra))
    for name, p in plug.named_parameters():
        assert p.requires_grad == name.startswith("unet."), name
        assert (p.grad is not None and p.grad.isfinite().all()) if p.requires_grad else p.grad is None, name
    assert plug.unet.conv_in.weight.grad[:, 4:].abs().sum() > 0


def test_on_step_and_before_step(sd, known):
    plug, (condition, source, noise) = sd(), known
    seen = []

    def on_step(index, timestep, z):
        seen.append((index, z.shape))
        return torch.full_like(z, 0.25) if index == 1 else z

    out = plug.sample(condition, source, noise, 3, on_step=on_step, before_step=lambda i, t: None if i == 2 else 2.0)
    assert [i for i, _ in seen] == [0, 1] and seen[0][1] == noise.shape and (out == 0.25).all()


def test_saved_and_loaded(sd, known, tmp_path):
    """Also a grown UNet, whose config says how it was published."""
    plug, (condition, source, noise) = sd("plain"), known
    with torch.no_grad():
        plug.unet.conv_in.weight[:, 4:].normal_()
    plug.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    plug.save_pretrained(tmp_path)
    again = StableDiffusion.from_pretrained(tmp_path)
    assert type(again.scheduler) is diffusers.DDIMScheduler and again.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(plug.sample(condition, source, noise, 2), again.sample(condition, source, noise, 2))


def test_mistakes_are_named(sd, published, known):
    condition, source, _ = known
    with pytest.raises(UserError, match="model.width: 48 is not 32"):
        sd(width=48)
    with pytest.raises(UserError, match="dropout: 0.5"):
        sd(dropout=0.5)
    with pytest.raises(UserError, match="7 tokens, but the null condition has 3"):
        sd().conditioning(condition._replace(null=condition.null[:, :3]), source)
    plug = sd()
    plug.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        plug.sample(condition, source, source, 2)
    with pytest.raises(UserError, match="predicts sample"):
        signal_shares(diffusers.DDPMScheduler(prediction_type="sample"))


def test_whether_a_published_unet_edits_as_it_is(published):
    assert StableDiffusion.is_whole({"pretrained": str(published)})
    assert not StableDiffusion.is_whole({"pretrained": str(published / "plain")})
    assert not StableDiffusion.is_whole({"pretrained": "someone/unknown"}) and not StableDiffusion.is_whole({})
