"""The shipped configurations: each loads, and the large ones are built at true size on the meta device."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn

from reasonbrain.checkpoint import edits_as_published
from reasonbrain.config.loading import load_config, presets
from reasonbrain.config.schema import slot_config
from reasonbrain.interfaces import Features, Guidance, Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS

BIG = ["reasonbrain_flux_kontext", "reasonbrain_flux_llava", "reasonbrain_flux_qwen", "reasonbrain_kontext_think"]
THINK = [f"think_{editor}{by}" for editor in ("klein", "qwen_edit", "kontext") for by in ("", "_endpoint")] + [
    "think_tiny"
]
FAMILY = {  # test_family_presets.py has their sizes
    "instructpix2pix": ["encoders", "diffusion"],
    "mgie": ["mllm", "connector", "diffusion"],
    "lgie": ["mllm", "connector", "diffusion"],
    "mgie_fz": ["encoders", "mllm", "diffusion"],
    "mgie_ft": ["encoders", "mllm", "diffusion"],
    "smartedit": ["encoders", "mllm", "connector", "cme", "diffusion"],
}
WHOLE = [*THINK, "instructpix2pix", "mgie_fz", "mgie_ft"]  # edit with published weights alone
CLIP = 427_616_513
SAM = 641_090_608 + 256  # transformers counts the random positional matrix, a buffer in Meta's code
QWEN, LLAVA = 8_292_166_656, 7_063_427_072
FLUX, VAE = 11_901_408_320, 83_819_683
CLIP_TEXT, T5 = 123_060_480, 4_762_310_656


def count(module: nn.Module) -> int:
    """Parameters without LoRA's."""
    return sum(p.numel() for n, p in module.named_parameters() if "lora_" not in n)


@pytest.fixture(scope="module", params=BIG)
def built(request):
    """The name of a configuration, the configuration, and its model on the meta device."""
    cfg = load_config(request.param, [f"model.{s}.precision=float32" for s in ("mllm", "diffusion")])
    start = time.monotonic()
    with torch.device("meta"):
        model = ReasonBrain.from_config(cfg.model, weights=False)
    assert time.monotonic() - start < 60
    assert all(t.is_meta for t in model.parameters())
    return request.param, cfg, model


@pytest.mark.parametrize("name", presets())
def test_loads(name) -> None:
    cfg = load_config(name)
    filled = {slot: params for slot in SLOTS if (params := slot_config(cfg.model, slot))}
    assert list(filled) == FAMILY.get(name, ["mllm", "diffusion"] if name in THINK else list(SLOTS))
    assert edits_as_published(cfg.model) == (name in WHOLE)
    for slot, params in filled.items():
        heads = params.get("heads", 1)
        assert cfg.model.width % heads == 0, slot


def test_the_large_configurations_are_shipped() -> None:
    assert set(presets()) == {*BIG, *THINK, *FAMILY, "tiny", "tiny_kontext_think"}


def test_sizes_are_the_published_ones(built) -> None:
    name, _, model = built
    flux = model.slot("diffusion")
    embedder = flux.transformer.x_embedder
    grown = embedder.out_features * (embedder.in_features - flux.transformer.config.in_channels)
    assert count(model.slot("encoders").clip) == CLIP
    assert count(model.slot("frce.region").sam) == SAM
    assert count(model.slot("mllm").model) == (LLAVA if "llava" in name else QWEN)
    assert count(flux.vae) == VAE
    assert count(flux.transformer) - grown == FLUX
    if flux.words:
        assert (count(flux.words.text_encoder), count(flux.words.text_encoder_2)) == (CLIP_TEXT, T5)


def test_what_trains(built) -> None:
    """Everything except the published parts; of these, LoRA, and FLUX if the configuration says so."""
    name, cfg, model = built
    width = cfg.model.width
    published = ("encoders.clip.", "frce_region.sam.", "mllm.model.", "diffusion.vae.", "diffusion.transformer.")
    published += ("diffusion.words.",)
    added = "diffusion.transformer.x_embedder." + ("added" if cfg.model.diffusion.get("prompt") else "")
    for key, p in model.parts.named_parameters():
        adapted = "lora_" in key or key.startswith(added)
        full = key.startswith("diffusion.transformer.") and cfg.model.diffusion["trained"] == "full"
        assert p.requires_grad == (adapted or full or not key.startswith(published)), key
    c = model.slot("mllm").model.config.text_config
    kv = c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    attention = 2 * (c.hidden_size + c.hidden_size) + 2 * (c.hidden_size + kv)
    per_layer = 8 * (attention + 3 * (c.hidden_size + c.intermediate_size))
    lora = sum(p.numel() for n, p in model.slot("mllm").named_parameters() if "lora_" in n)
    assert lora == per_layer * c.num_hidden_layers
    assert model.slot("mllm").img_in.shape == (32, c.hidden_size)
    joined = width + (64 if cfg.model.diffusion["source"] == "channel" else 0)
    assert model.slot("diffusion").transformer.x_embedder.in_features == 64 + joined


def test_shapes_of_the_whole_path(built) -> None:
    """The shapes of an edit at 1024 x 1024, from the picture's patches to the loss of FLUX."""
    _, cfg, model = built
    width = cfg.model.width
    with torch.device("meta"):
        clip = model.slot("encoders")
        patches = clip.image_adapter(clip.image_features(torch.rand(1, 3, 1024, 1024)))
        text, text_mask = torch.rand(1, 77, width), torch.ones(1, 77, dtype=torch.bool)
        objects, objects_mask = text[:, :16], text_mask[:, :16]
        pooled = torch.rand(1, clip.clip.config.text_config.hidden_size)
        features = Features(patches, clip.grid, text, text_mask, pooled, objects, objects_mask)
        assert patches.shape == (1, 256, width) and math.prod(clip.grid) == 256
        regions = torch.zeros(1, 1024, 1024, dtype=torch.long)
        cues = model.cues(features, Inputs(torch.rand(1, 3, 1024, 1024), [""], [[]], regions))
        assert cues.visual.shape == (1, 256 + 64, width) and cues.textual.shape == (1, 16, width)
        mllm = model.slot("mllm")
        assert mllm.cue_in(cues.visual).shape[-1] == mllm.img_in.shape[-1]
        hidden = mllm.guidance_out(mllm.img_in[None])
        condition = model.enhance(features, cues, model.align(Guidance(hidden, torch.rand(()))))
        assert condition.visual.shape == condition.textual.shape == (1, 77, width)
        flux = model.slot("diffusion")
        latents = flux.encode(torch.rand(1, 3, 1024, 1024))
        assert latents.shape == (1, 16, 128, 128) and flux.multiple == 16
        if flux.words:
            condition = condition._replace(words={"text": torch.rand(1, 512, 4096), "pooled": pooled})
        assert [t.shape for t in flux.errors(condition, latents, latents, [1])] == [(1,), (1,)]


def test_tokens_of_a_picture(built) -> None:
    """LLaVA-1.5 has 24 x 24 patches of its 336 pixels; Qwen merges 2 x 2 patches of 14 pixels."""
    name, _, model = built
    mllm = model.slot("mllm")
    if "llava" in name:
        embeds = mllm.image_embeds({"pixel_values": torch.zeros(1, 3, 336, 336, device="meta")})
        assert embeds.shape == (1, 1, 576, mllm.img_in.shape[-1])
    else:
        visual = mllm.model.model.visual
        assert (visual.patch_size, visual.spatial_merge_size) == (14, 2)
