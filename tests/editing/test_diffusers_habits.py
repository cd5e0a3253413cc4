"""What users of diffusers' pipelines expect of a call: arguments, outputs, callbacks, caches, schedulers, threads.

docs/reference/api.md has a table of diffusers' common pipeline tests and of those here that mean the same."""

import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheDenoiserHook, apply_faster_cache
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook

from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError

TRANSFORMER = "model.diffusion.architecture.transformer"
DEVICES = [device for device in ("cpu", torch.accelerator.current_accelerator(check_available=True)) if device]
DEEP = [f"{TRANSFORMER}.num_layers=2", f"{TRANSFORMER}.num_single_layers=2", f"{TRANSFORMER}.guidance_embeds=true"]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(model, settings):
    return quiet(ReasonBrainPipeline.from_model(model, settings()))


@pytest.fixture
def deep(build, wake, settings):
    """A pipeline of its own, with two blocks of each kind and a guidance embedding."""
    return quiet(ReasonBrainPipeline.from_model(wake(build(*DEEP)), settings(*DEEP)))


@pytest.fixture
def call(records):
    """``call(pipe, ...)``: the images of an edit of the first record with seed 0, unpreserved, as an array."""

    def one(pipe, **given):
        first = {"image": records[0].source, "prompt": "melt it", "generator": seed(), "preserve": False}
        return pipe(**(first | {"output_type": "np"} | given)).images

    return one


def seed(n=0):
    return torch.Generator().manual_seed(n)


def test_the_signature_has_the_usual_arguments():
    found = inspect.signature(ReasonBrainPipeline.__call__).parameters
    assert {"image", "prompt", "guidance_scale"} <= found.keys()
    optional = ["num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"]
    assert all(found[name].default is not inspect.Parameter.empty for name in optional)


def test_a_prompt_is_an_instruction(pipe, call, records):
    assert (call(pipe) == call(pipe, prompt=None, instruction="melt it")).all()
    for given, said in (({"instruction": "x"}, "both"), ({"prompt": None}, "neither")):
        with pytest.raises(UserError, match=f"not {said}"):
            call(pipe, **given)


def test_batches_of_prompts_of_different_lengths(pipe, call, records):
    text = "what would happen if it melted"
    texts = [text, text[: len(text) // 2], 100 * "very long"]
    out = call(pipe, image=[records[0].source] * 3, prompt=texts, generator=[seed(i) for i in range(3)])
    assert out.shape == (3, 64, 64, 3)
    assert np.abs(out[0] - call(pipe, prompt=text)[0]).max() < 1e-4


def test_a_tuple_has_the_fields_of_the_output(pipe, records):
    ours = {"image": records[0].source, "prompt": "melt it", "output_type": "np", "reasoning": True}
    out = pipe(**ours, generator=seed())
    images, objects, reasoning, *_, regions, focus = pipe(**ours, generator=seed(), return_dict=False)
    assert (images == out[0]).all() and (regions[0] == out.regions[0]).all() and (focus[0] == out.focus[0]).all()
    assert objects == out.objects and reasoning == out.reasoning
    assert pipe(**ours | {"reasoning": False}, return_dict=False)[2] is None


@pytest.mark.parametrize("pictures", [1, 2])
def test_several_images_per_prompt(pipe, call, records, pictures):
    """Each has noise of its own, the same for all pictures; generators and sentences are one per edit."""
    given = {"image": [r.source for r in records[:pictures]], "num_images_per_prompt": 2}
    out = call(pipe, **given)
    assert out.shape == (2 * pictures, 64, 64, 3) and np.abs(out[0] - out[1]).max() > 0.01
    assert np.abs(call(pipe, image=records[0].source)[0] - out[0]).max() < 1e-4
    for i in range(pictures):
        own = call(pipe, image=records[i].source, num_images_per_prompt=2)
        assert np.abs(own - out[2 * i : 2 * i + 2]).max() < 1e-4
    seeds = [seed(n) for n in range(2 * pictures)]
    listed = call(pipe, **given, generator=seeds)
    assert np.abs(listed[-1] - call(pipe, image=given["image"][-1], generator=seed(len(seeds) - 1))[0]).max() < 1e-4
    full = pipe(given["image"], "melt it", reasoning=True, num_images_per_prompt=2)
    for field in (full.objects, full.reasoning, full.regions, full.focus):
        assert len(field) == 2 * pictures and np.array_equal(field[0], field[1])
    with pytest.raises(UserError, match=f"{2 * pictures} images, but 1 generators"):
        call(pipe, **given, generator=[seed()])
    with pytest.raises(UserError, match="num_images_per_prompt 0 is not from 1"):
        call(pipe, num_images_per_prompt=0)


def test_outputs_of_one_size_are_stacked(pipe, call):
    tensor, array, pil = (call(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensor.shape == (1, 3, 64, 64) and array.shape == (1, 64, 64, 3)
    assert (tensor.permute(0, 2, 3, 1).numpy() == array).all()
    assert np.abs(np.asarray(pil[0]) - (array[0] * 255).round()).max() == 0


def test_outputs_of_different_sizes_are_a_list(pipe, call, records):
    pictures = [records[0].source, records[0].source.crop((0, 0, 48, 64))]
    for kind, shapes in (("np", [(64, 64, 3), (64, 48, 3)]), ("pt", [(3, 64, 64), (3, 64, 48)])):
        assert [tuple(i.shape) for i in call(pipe, image=pictures, output_type=kind)] == shapes


def test_pictures_as_arrays_and_tensors(pipe, call, records):
    """Alone, in a list and in a batch; of floats in 0..1 and of bytes."""
    expected = call(pipe, image=[r.source for r in records[:2]], prompt="melt it")
    arrays = np.stack([np.asarray(r.source) for r in records[:2]])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for batch in (arrays, arrays / 255, tensor, tensor / 255):
        for given in (batch, list(batch), [batch[:1], batch[1]]):
            assert (call(pipe, image=given) == expected).all()
        assert np.abs(call(pipe, image=batch[0]) - expected[:1]).max() < 1e-4


def test_latents_are_the_noise(pipe, call, records):
    noise = torch.randn(1, 4, 16, 16, generator=seed())
    expected = call(pipe)
    for latents in (noise, list(noise)):
        assert (call(pipe, generator=None, latents=latents) == expected).all()
    several = torch.cat([noise, noise.flip(1)])
    out = call(pipe, generator=None, num_images_per_prompt=2, latents=several)
    assert np.abs(out[0] - expected[0]).max() < 1e-4 and np.abs(out[1] - expected[0]).max() > 0.01
    with pytest.raises(UserError, match="1 images, but 2 latents"):
        call(pipe, latents=several)
    with pytest.raises(UserError, match=r"latents have the shape \[4, 8, 16\], but the edit has \[4, 16, 16\]"):
        call(pipe, latents=noise[:, :, :8])


def test_latents_come_out(pipe, call):
    latents = call(pipe, output_type="latent")
    assert latents.shape == (1, 4, 16, 16)
    picture = pipe.diffusion.decode(latents)
    torch.testing.assert_close(picture.permute(0, 2, 3, 1).numpy(), call(pipe), rtol=0, atol=1e-6)


def test_callback_inputs(pipe, call):
    seen = []

    def zero_at_the_end(pipe, i, t, given):
        seen.append((set(given), pipe.num_timesteps, float(pipe.current_timestep) == float(t)))
        if i == pipe.num_timesteps - 1:
            given["latents"] = torch.zeros_like(given["latents"])
        return given

    callback = {"callback_on_step_end": zero_at_the_end, "output_type": "latent"}
    assert call(pipe, **callback, num_inference_steps=2).abs().sum() == 0
    assert seen == [({"latents"}, 2, True)] * 2 and pipe.current_timestep is None
    seen.clear()
    call(
        pipe,
        callback_on_step_end=lambda pipe, i, t, given: seen.append(given) or given,
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}] * 3
    call(pipe, **callback, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs)
    with pytest.raises(UserError, match="callback tensor 'prompt_embeds' is not one of latents"):
        call(pipe, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])


def test_a_callback_changes_the_guidance(deep, call):
    """From the next step on."""

    def raise_it(pipe, i, t, given):
        pipe._guidance_scale += 1.0
        return given

    out = call(deep, guidance_scale=2.0, callback_on_step_end=raise_it, num_inference_steps=2)
    assert deep.guidance_scale == 2.0 + deep.num_timesteps == 4.0
    assert np.abs(out - call(deep, guidance_scale=2.0, num_inference_steps=2)).max() > 1e-5
    first = call(deep, guidance_scale=2.0, callback_on_step_end=raise_it, num_inference_steps=1)
    assert (first == call(deep, guidance_scale=2.0, num_inference_steps=1)).all()


def test_guidance_keeps_the_shape(deep, call):
    without, with_it = call(deep, guidance_scale=1.0), call(deep, guidance_scale=7.5)
    assert without.shape == with_it.shape and (without != with_it).any()


def test_an_interrupted_call_skips_the_steps_left(pipe, call):
    kept = []

    def stop(pipe, i, t, given):
        kept.append(given["latents"])
        pipe._interrupt = i == 1
        return given

    from reasonbrain.modules.diffusion.flux import unpack

    out = call(pipe, callback_on_step_end=stop, num_inference_steps=4, output_type="latent")
    assert len(kept) == 2 and pipe.interrupt and torch.equal(out, unpack(kept[1], 16))
    call(pipe)
    assert not pipe.interrupt


def test_components_are_those_given(pipe):
    given = pipe.components
    again = ReasonBrainPipeline(**given)
    assert again.components.keys() == given.keys() and all(again.components[k] is given[k] for k in given)


@pytest.mark.parametrize("how", [ReasonBrainPipeline.from_pipe, lambda pipe: ReasonBrainPipeline(**pipe.components)])
def test_settings_go_where_the_components_go(model, settings, call, how):
    pipe = quiet(ReasonBrainPipeline.from_model(model, settings("edit.steps=2", "edit.size=32")))
    again = quiet(how(pipe))
    assert again.settings == pipe.settings and again.diffusion is pipe.diffusion
    assert (call(again) == call(pipe)).all() and again.num_timesteps == 2


def test_from_pipe_changes_what_it_is_told(pipe, call):
    again = quiet(ReasonBrainPipeline.from_pipe(pipe, cme=None))
    assert again.cme is None and pipe.cme is not None and again.mllm is pipe.mllm
    assert np.abs(call(again) - call(pipe)).max() > 1e-3


def test_attention_slicing_changes_nothing(deep, call):
    expected = call(deep)
    for size in (1, 2):
        deep.enable_attention_slicing(slice_size=size)
        assert np.abs(call(deep) - expected).max() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_to_device(deep, call, device):
    deep.to(device)
    assert {part.device.type for part in deep.components.values() if isinstance(part, torch.nn.Module)} == {
        torch.device(device).type
    }
    assert np.isfinite(call(deep)).all()


def test_layerwise_casting(deep, call):
    deep.to(torch.bfloat16).transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert any(p.dtype == torch.float8_e4m3fn for p in deep.transformer.parameters())
    assert np.isfinite(call(deep)).all()


@pytest.mark.parametrize(
    "kind", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offloading_of_the_transformer(deep, call, kind):
    expected = call(deep)
    deep.transformer.enable_group_offload(torch.device("cpu"), **kind)
    assert hooks(deep.transformer, "group_offloading")
    assert (call(deep) == expected).all()


def test_group_offloading_leaves_out_what_it_is_told(deep, call):
    expected = call(deep)
    deep.enable_group_offload(onload_device="cpu", offload_type="leaf_level", exclude_modules="cme")
    offloaded = {
        name
        for name, part in deep.components.items()
        if isinstance(part, torch.nn.Module) and hooks(part, "group_offloading")
    }
    assert offloaded == {name for name in deep.components if name not in ("cme", "settings")}
    assert (call(deep) == expected).all()


SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": {"use_dynamic_shifting": False, "shift": 3.0},
    "FlowMatchHeunDiscreteScheduler": {},
    "UniPCMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_users_scheduler_is_used(deep, call, name):
    """Of an exact model every scheduler gives the same picture, so here they differ a little."""
    before = call(deep, num_inference_steps=8)
    own = deep.scheduler.config
    assert own.use_dynamic_shifting
    deep.scheduler = getattr(diffusers, name).from_config(own, **SCHEDULERS[name])
    out = call(deep, num_inference_steps=8)
    assert deep.diffusion.scheduler is deep.scheduler and np.isfinite(out).all() and (out != before).any()
    assert (call(deep, num_inference_steps=8) == out).all() and deep.scheduler.step_index is None  # nothing is left


def test_a_scheduler_for_noise_prediction_is_refused(deep, call):
    deep.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(UserError, match="scheduler 'DDIMScheduler' is not for flow matching"):
        call(deep)


def test_the_users_attention_backend_stays(deep, call):
    expected = call(deep)
    try:
        deep.transformer.set_attention_backend("_native_math")
        used = {m.processor._attention_backend.value for m in deep.transformer.modules() if hasattr(m, "processor")}
        assert np.abs(call(deep) - expected).max() < 1e-4 and used == {"_native_math"}
        assert used == {
            m.processor._attention_backend.value for m in deep.transformer.modules() if hasattr(m, "processor")
        }
        deep.mllm.model.set_attn_implementation("eager")
        call(deep)
        assert deep.mllm.model.config._attn_implementation == "eager"
    finally:  # diffusers changes the default of the whole process
        deep.transformer.set_attention_backend("native")


THREE = [8] * 3
AUTOENCODERS = {
    "AutoencoderKL": {
        "block_out_channels": THREE,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 4,
    },
    "AsymmetricAutoencoderKL": {
        "down_block_out_channels": THREE,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_out_channels": THREE,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 4,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": THREE,
        "decoder_block_out_channels": THREE,
        "num_encoder_blocks": [1] * 3,
        "num_decoder_blocks": [1] * 3,
    },
    "ConsistencyDecoderVAE": {
        "encoder_block_out_channels": THREE,
        "encoder_down_block_types": ["DownEncoderBlock2D"] * 3,
        "encoder_norm_num_groups": 4,
        "encoder_layers_per_block": 1,
        "decoder_block_out_channels": [8] * 4,
        "decoder_norm_num_groups": 4,
        "decoder_layers_per_block": 1,
    },
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_another_autoencoder(deep, call, name):
    expected = call(deep)
    deep.vae = getattr(diffusers, name)(**AUTOENCODERS[name], latent_channels=4).eval()
    out = call(deep)
    assert deep.diffusion.vae is deep.vae and out.shape == expected.shape and (out != expected).any()


def hooks(module, name):
    registries = (m._diffusers_hook for m in module.modules() if hasattr(m, "_diffusers_hook"))
    return [registry.get_hook(name) for registry in registries if registry.get_hook(name)]


def broadcast(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        spatial_attention_block_identifiers=["transformer_blocks"],
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def faster(pipe):
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 901),
        unconditional_batch_skip_range=2,
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


CACHES = {
    "pyramid attention broadcast": (broadcast, 8),
    "faster cache": (faster, 8),
    "first block cache": (lambda pipe: FirstBlockCacheConfig(threshold=0.8), 8),
    "taylorseer": (
        lambda pipe: TaylorSeerCacheConfig(
            cache_interval=5,
            disable_cache_before_step=10,
            max_order=1,
            taylor_factors_dtype=torch.bfloat16,
            use_lite_mode=True,
        ),
        50,
    ),
    "mag cache": (
        lambda pipe: MagCacheConfig(
            threshold=0.06, max_skip_steps=3, retention_ratio=0.2, num_inference_steps=50, mag_ratios=torch.ones(50)
        ),
        50,
    ),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches(deep, call, records, name):
    """They leave out work, change little, keep nothing of a call for the next one, and can be switched off."""
    config, steps = CACHES[name]
    work = []
    for block in deep.transformer.single_transformer_blocks:
        block.attn.to_q.register_forward_hook(lambda *_: work.append(1))
    plain = call(deep, num_inference_steps=steps)
    full = len(work)
    deep.transformer.enable_cache(config(deep))
    work.clear()
    cached = call(deep, num_inference_steps=steps)
    assert 0 < len(work) < full and np.abs(cached - plain).max() < (0.2 if config is broadcast else 0.1)
    small = [records[0].source.resize((32, 48)), records[0].source]  # two sizes in one call
    assert (call(deep, num_inference_steps=steps, image=small)[1] == cached[0]).all()
    assert (call(deep, num_inference_steps=steps) == cached).all()
    deep.transformer.disable_cache()
    assert np.abs(call(deep, num_inference_steps=steps) - plain).max() < 1e-4


def test_pyramid_attention_broadcast_state(deep, call):
    deep.transformer.enable_cache(broadcast(deep))
    found = hooks(deep.transformer, "pyramid_attention_broadcast")
    assert len(found) == 4 and all(isinstance(hook, PyramidAttentionBroadcastHook) for hook in found)
    assert all(hook.state.cache is None for hook in found)
    seen = []

    def look(pipe, i, t, given):
        seen.append([hook.state.cache is not None and hook.state.iteration == i + 1 for hook in found])
        return {}

    call(deep, callback_on_step_end=look, num_inference_steps=2)
    assert seen == [[True] * 4] * 2
    assert all(hook.state.cache is None and hook.state.iteration == 0 for hook in found)


def test_faster_cache_finds_the_denoiser(deep, caplog):
    apply_faster_cache(deep.transformer, FasterCacheConfig(spatial_attention_block_skip_range=2))
    assert "No `attention_weight_callback` provided" in caplog.text
    with pytest.raises(ValueError, match="tensor_format"):
        config = FasterCacheConfig(spatial_attention_block_skip_range=2, tensor_format="BFHWC")
        apply_faster_cache(deep.transformer, config)


def test_faster_cache_state(deep, call):
    deep.transformer.enable_cache(faster(deep))
    (denoiser,), blocks = (
        hooks(deep.transformer, "faster_cache_denoiser"),
        hooks(deep.transformer, "faster_cache_block"),
    )
    assert isinstance(denoiser, FasterCacheDenoiserHook) and len(blocks) == 4
    assert all(isinstance(hook, FasterCacheBlockHook) for hook in blocks)
    seen = []

    def look(pipe, i, t, given):
        seen.append(denoiser.state.iteration == i + 1 and all(len(hook.state.cache) == 2 for hook in blocks))
        return {}

    call(deep, callback_on_step_end=look, num_inference_steps=4)
    assert seen == [True] * 4 and denoiser.state.iteration == 0
    assert all(hook.state.cache is None and hook.state.batch_size is None for hook in blocks)


def test_gradient_checkpointing_has_the_usual_switches(deep):
    for module in (deep.transformer, deep.diffusion, deep.mllm):
        module.enable_gradient_checkpointing()
        assert module.is_gradient_checkpointing
        module.disable_gradient_checkpointing()
        assert not module.is_gradient_checkpointing


def test_a_pipeline_is_pickled(pipe, call):
    call(pipe)
    again = pickle.loads(pickle.dumps(pipe))
    assert (call(again) == call(pipe)).all() and again.settings == pipe.settings


def test_several_threads_share_a_pipeline(pipe, call, records):
    """Each call has its own steps, guidance and sentence."""

    def work(i):
        record, seen = records[i % 3], []

        def look(pipe, step, t, given):
            seen.append((pipe.num_timesteps, pipe.guidance_scale, float(pipe.current_timestep) == float(t)))
            return {}

        given = {"num_inference_steps": 2 + i % 2, "guidance_scale": float(i), "reasoning": i % 2 == 0}
        out = call(pipe, image=record.source, prompt=record.instruction, callback_on_step_end=look, **given)
        return out, seen

    alone = [work(i) for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, list(range(6)) * 3))
    for i, (out, seen) in enumerate(together):
        assert (out == alone[i % 6][0]).all() and seen == alone[i % 6][1] == [(2 + i % 2, float(i % 6), True)] * (
            2 + i % 2
        )
