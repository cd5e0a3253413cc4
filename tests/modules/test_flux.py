"""Diffusion ``flux``: FLUX is called as by diffusers, starts as plain FLUX, and trains the right parameters."""

import re

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.cache_utils import CacheMixin
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import nn
from torch.nn import functional as F

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.modules.diffusion.flux import pack, position_ids, position_sinusoids, unpack

H, W = 8, 12  # of the latents


@pytest.fixture(scope="module")
def flux(build):
    """``flux("source=sequence", ...)``: a fresh plug-in."""
    null = [
        f"model.{s}=null" for s in ("encoders", "frce.patch", "frce.region", "frce.text", "mllm", "connector", "cme")
    ]
    return lambda *more: build(*null, *(f"model.diffusion.{m}" for m in more)).slot("diffusion")


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(3)
    condition = Condition(torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.randn(2, 32))
    return condition, torch.randn(2, 4, H, W)


class Oracle(CacheMixin, nn.Module):
    """Replaces the transformer: knows the data, reads noise level and z from its inputs, and records its inputs."""

    def __init__(self, plug, data):
        super().__init__()
        self.config, self.data, self.calls = plug.transformer.config, pack(data), []

    def forward(self, hidden_states, timestep, **kwargs):
        self.calls.append({"timestep": timestep, "hidden": hidden_states, **kwargs})
        z = hidden_states[:, : self.data.shape[1], : self.data.shape[2]]
        return ((z - self.data) / timestep[:, None, None],)


def test_packing_is_that_of_flux():
    latents = torch.randn(2, 4, H, W)
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 4, H, W))
    assert torch.equal(unpack(tokens, H), latents)


def test_ids_are_those_of_flux():
    expected = FluxPipeline._prepare_latent_image_ids(1, H // 2, W // 2, torch.device("cpu"), torch.float32)
    assert torch.equal(position_ids(H, W, 0, torch.device("cpu")), expected)
    expected[:, 0] = 1  # Kontext's mark of the source
    assert torch.equal(position_ids(H, W, 1, torch.device("cpu")), expected)


def test_positions_differ():
    assert torch.pdist(position_sinusoids(position_ids(H, W, 0, torch.device("cpu")), 32)).min() > 1e-2


@pytest.mark.parametrize("source", ["channel", "sequence"])
def test_starts_as_plain_flux(flux, known, source):
    plug = flux(f"source={source}")
    plain = FluxTransformer2DModel.from_config(plug.transformer.config).eval()
    state = plug.transformer.state_dict()
    new = state["x_embedder.weight"][:, 16:]
    assert new.shape[1] == (16 + 32 if source == "channel" else 32) and (new == 0).all()
    plain.load_state_dict(state | {"x_embedder.weight": state["x_embedder.weight"][:, :16]})
    condition, latents = known
    z, sigma = torch.randn(2, H * W // 4, 16), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        settled = plug.conditioning(condition, latents)
        found = plug.velocity(z, sigma, settled, guidance=2.5)
        ids = FluxPipeline._prepare_latent_image_ids(1, H // 2, W // 2, torch.device("cpu"), torch.float32)
        hidden = z
        if source == "sequence":
            hidden = torch.cat([z, pack(latents)], 1)
            ids = torch.cat([ids, ids + torch.tensor([1.0, 0, 0])])
        expected = plain(
            hidden_states=hidden,
            encoder_hidden_states=settled["text"],
            pooled_projections=condition.pooled,
            timestep=sigma,
            guidance=torch.tensor([2.5, 2.5]),
            img_ids=ids,
            txt_ids=torch.zeros(10, 3),
        ).sample[:, : z.shape[1]]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["channel", "sequence"])
def test_every_input_matters_after_training(flux, wake, known, source):
    plug = wake(flux(f"source={source}"))
    condition, latents = known
    z, sigma = torch.randn(2, H * W // 4, 16), torch.tensor([0.3, 0.9])

    @torch.no_grad()
    def velocity(condition=condition, latents=latents, sigma=sigma, guidance=1.0):
        return plug.velocity(z, sigma, plug.conditioning(condition, latents), guidance)

    before = velocity()
    c = condition
    for after in (
        velocity(Condition(-c.visual, c.textual, c.pooled)),
        velocity(Condition(c.visual, -c.textual, c.pooled)),
        velocity(Condition(c.visual, c.textual, -c.pooled)),
        velocity(latents=-latents),
        velocity(sigma=sigma.flip(0)),
        velocity(guidance=3.0),
    ):
        assert ((after - before).abs().amax((1, 2)) > 1e-4).all()


def test_mu_is_diffusers(flux):
    plug = flux()
    assert plug.scheduler.config.use_dynamic_shifting
    for tokens in (16, 256, 1000, 4096):
        assert plug.mu(tokens) == pytest.approx(calculate_shift(tokens, 256, 4096, 0.5, 1.15))


def l_dm(plug, *args, **kwargs):
    errors, _ = plug.errors(*args, **kwargs)
    return errors.mean()


@pytest.mark.parametrize("source", ["channel", "sequence"])
def test_a_perfect_prediction_has_no_loss(flux, known, source):
    """Target = noise - data, at the noise level that the transformer is given, in 0..1, with a guidance value."""
    plug = flux(f"source={source}")
    condition, latents = known
    plug.transformer = oracle = Oracle(plug, latents.flip(0))
    many = Condition(*(t.repeat(32, 1, 1)[:, : t.shape[1]] if t.ndim == 3 else t.repeat(32, 1) for t in condition[:3]))
    oracle.data = oracle.data.repeat(32, 1, 1)
    with torch.no_grad():
        loss = l_dm(plug, many, latents.repeat(32, 1, 1, 1), latents.flip(0).repeat(32, 1, 1, 1), range(64))
        wrong = l_dm(plug, many, latents.repeat(32, 1, 1, 1), latents.repeat(32, 1, 1, 1), range(64))
    assert loss < 1e-6 and wrong > 0.1
    call = oracle.calls[0]
    assert call["timestep"].min() > 0 and call["timestep"].max() < 1 and call["timestep"].std() > 0.05
    assert torch.equal(call["guidance"], torch.ones(64))
    assert call["pooled_projections"].shape == (64, 32)


def test_noise_levels_are_shifted_logit_normal(flux):
    plug = flux()
    data = torch.zeros(4096, 4, 4, 4)
    plug.transformer = oracle = Oracle(plug, data)
    blank = Condition(torch.zeros(4096, 1, 32), torch.zeros(4096, 1, 32), torch.zeros(4096, 32))
    l_dm(plug, blank, data, data, range(4096))
    logits = oracle.calls[0]["timestep"].logit()
    assert logits.mean().item() == pytest.approx(plug.mu(4), abs=0.05)
    assert logits.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("source", ["channel", "sequence"])
def test_every_draw_has_its_own_noise_and_the_condition_of_its_row(flux, known, source):
    plug = flux(f"source={source}")
    condition, latents = known
    plug.transformer = oracle = Oracle(plug, latents.flip(0))
    oracle.data = oracle.data.repeat_interleave(3, 0)
    with torch.no_grad():
        assert l_dm(plug, condition, latents, latents.flip(0), [5, 6], draws=3) < 1e-6
        once = plug.conditioning(condition, latents)
    call = oracle.calls[0]
    assert len(call["timestep"].unique()) == 3 * len(latents)
    for draw in range(3):
        rows = slice(draw, None, 3)
        torch.testing.assert_close(call["encoder_hidden_states"][rows], once["text"])
        torch.testing.assert_close(call["pooled_projections"][rows], once["pooled"])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_sampler_recovers_the_oracles_data(flux, known, steps):
    plug = flux()
    condition, latents = known
    plug.transformer = oracle = Oracle(plug, latents.flip(0))
    found = plug.sample(condition, latents, torch.randn(2, 4, H, W), steps)
    torch.testing.assert_close(found, latents.flip(0), rtol=1e-4, atol=1e-4)
    sigmas = np.linspace(1.0, 1 / steps, steps)
    timesteps, _ = retrieve_timesteps(plug.scheduler, steps, "cpu", sigmas=sigmas, mu=plug.mu(H * W // 4))
    told = torch.stack([c["timestep"][0] for c in oracle.calls])
    torch.testing.assert_close(told, timesteps / 1000)
    assert told[0] == 1


def test_latents_are_shifted_and_scaled(flux):
    plug, pictures = flux(), torch.rand(2, 3, 32, 48)
    c = plug.vae.config
    assert c.shift_factor != 0 and c.scaling_factor != 1
    with torch.no_grad():
        raw = plug.vae.encode(pictures * 2 - 1).latent_dist.mode()
        torch.testing.assert_close(plug.encode(pictures), (raw - c.shift_factor) * c.scaling_factor)
        expected = (plug.vae.decode(raw).sample + 1) / 2
    torch.testing.assert_close(plug.decode(plug.encode(pictures)), expected.clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert plug.encode(pictures).shape[-2] * plug.multiple == 2 * pictures.shape[-2]


@pytest.mark.parametrize("trained", ["full", "lora", "frozen"])
def test_gradients_reach_trained_parameters(flux, wake, known, trained):
    plug = wake(flux(f"trained={trained}")).train()
    condition, latents = known
    l_dm(plug, condition, latents, latents, [1, 2]).backward()
    for name, p in plug.named_parameters():
        part = name.partition(".")[0]
        expected = part in ("visual_in", "textual_in", "image_term") or (
            part == "transformer" and (trained == "full" or "lora_" in name or ".x_embedder." in name)
        )
        assert p.requires_grad == expected, name
        assert (p.grad is not None and p.grad.abs().sum() > 0) if expected else p.grad is None, name
    lora = [n for n, _ in plug.named_parameters() if "lora_" in n]
    assert bool(lora) == (trained == "lora") and not any(n.startswith("vae") for n in lora)
    assert not plug.vae.training


def test_lora_adapts_every_linear_layer_of_a_block(flux):
    """Except those that modulate the norms."""
    blocks = {
        f"{kind}.{n}"
        for kind in ("transformer_blocks", "single_transformer_blocks")
        for block in getattr(flux("trained=full").transformer, kind)[:1]
        for n, m in block.named_modules()
        if isinstance(m, torch.nn.Linear) and not n.startswith("norm")
    }
    names = [n for n, _ in flux("trained=lora").transformer.named_parameters() if ".lora_A" in n]
    adapted = {re.sub(r"\.\d+\.(.*)\.lora_A.*", r".\1", n, count=1) for n in names}
    assert adapted == blocks and "transformer_blocks.ff_context.net.2" in blocks


def test_lora_starts_as_plain_flux(flux, known):
    condition, latents = known
    z, sigma = torch.randn(2, H * W // 4, 16), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        one, other = (
            plug.velocity(z, sigma, plug.conditioning(condition, latents), 1.0)
            for plug in (flux("trained=full"), _same(flux("trained=lora"), flux("trained=full")))
        )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def _same(adapted, full):
    state = full.state_dict()
    renamed = {k: state[k.replace(".base_layer", "")] for k in adapted.state_dict() if "lora_" not in k}
    adapted.load_state_dict(renamed, strict=False)
    return adapted


def test_without_distilled_guidance(flux, known):
    """The architecture of FLUX.1-schnell has no guidance embedding."""
    plug = flux("architecture.transformer.guidance_embeds=false")
    assert torch.isfinite(l_dm(plug, *known, known[1], [1, 2]))


def test_on_step_sees_and_may_change_the_latents(flux, known):
    plug, seen = flux(), []
    condition, latents = known

    def on_step(index, timestep, z):
        seen.append((index, float(timestep), z.shape))
        return torch.full_like(z, 0.25) if index == 2 else z

    out = plug.sample(condition, latents, torch.randn(2, 4, H, W), 3, on_step=on_step)
    assert [i for i, _, _ in seen] == [0, 1, 2] and seen[0][1] == 1000 > seen[1][1] > seen[2][1]
    assert seen[0][2] == (2, H * W // 4, 16) and (out == 0.25).all()


@pytest.mark.parametrize("wrong", ["source=batch", "trained=partly"])
def test_a_wrong_choice_is_named(flux, wrong):
    with pytest.raises(UserError, match=wrong.partition("=")[2]):
        flux(wrong)


def test_the_loss_is_the_mean_squared_error(flux, wake, known):
    """Compared with a computation from the same random numbers."""
    plug = wake(flux())
    condition, latents = known
    with torch.no_grad():
        loss = l_dm(plug, condition, latents, latents.flip(0), [7, 8])
        data = pack(latents.flip(0))
        drawn = torch.stack(
            [torch.randn(data[0].numel() + 1, generator=torch.Generator().manual_seed(i)) for i in (7, 8)]
        )
        noise, logit = drawn[:, :-1].view_as(data), drawn[:, -1]
        sigma = (logit + plug.mu(data.shape[1])).sigmoid()
        z = torch.lerp(data, noise, sigma[:, None, None])
        predicted = plug.velocity(z, sigma, plug.conditioning(condition, latents), 1.0)
    torch.testing.assert_close(loss, F.mse_loss(predicted, noise - data), rtol=1e-5, atol=1e-5)


def test_the_noise_of_a_row_depends_on_its_seed(flux, known):
    """The loss of two rows is the mean of the losses of each alone, in any batch."""
    plug = flux()
    condition, latents = known
    with torch.no_grad():
        both = l_dm(plug, condition, latents, latents.flip(0), [3, 4], draws=2)
        alone = [
            l_dm(
                plug,
                Condition(*(t[i : i + 1] for t in condition[:3])),
                latents[i : i + 1],
                latents.flip(0)[i : i + 1],
                [3 + i],
                2,
            )
            for i in (0, 1)
        ]
    torch.testing.assert_close(both, sum(alone) / 2)
    assert l_dm(plug, condition, latents, latents.flip(0), [3, 5]) != l_dm(
        plug, condition, latents, latents.flip(0), [3, 4]
    )


@pytest.mark.parametrize("source", ["channel", "sequence"])
def test_every_noised_copy_keeps_the_source_of_its_own_row(flux, wake, known, source):
    """The errors of two rows with three draws each equal those of each row alone."""
    plug = wake(flux(f"source={source}"))
    condition, latents = known
    target = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        errors, sigma = plug.errors(condition, latents, target, [5, 6], draws=3)
        for row in range(2):
            one = Condition(*(None if x is None else x[row : row + 1] for x in condition))
            here = slice(row, row + 1)
            alone, levels = plug.errors(one, latents[here], target[here], [5 + row], draws=3)
            torch.testing.assert_close(errors[3 * row : 3 * row + 3], alone, rtol=1e-4, atol=1e-5)
            assert torch.equal(sigma[3 * row : 3 * row + 3], levels)


def test_the_order_of_the_inputs_is_noised_latent_then_source_then_image_term(flux, wake, known):
    """Trained weights depend on this order: the columns of x_embedder belong to these parts."""
    plug = wake(flux("source=channel"))
    condition, latents = known
    given = plug.conditioning(condition, latents)
    z, sigma = torch.randn(2, H * W // 4, 16), torch.tensor([0.3, 0.9])
    seen = []
    hook = plug.transformer.x_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        plug.velocity(z, sigma, given, 1.0)
    hook.remove()
    parts = (z, pack(latents), given["term"])
    assert torch.equal(seen[0], torch.cat(parts, dim=-1))
    term = plug.image_term
    visual, textual = condition.visual, condition.textual
    moved = Condition(visual + 1, textual - 1, condition.pooled)
    ids = given["ids"]
    with torch.no_grad():  # R-_V + R-_T: what one side gains and the other loses changes nothing
        torch.testing.assert_close(term(pack(latents), ids, moved), given["term"], rtol=1e-3, atol=1e-4)
