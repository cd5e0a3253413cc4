"""MLLM ``llava`` with a tiny LLaVA-1.5: prompt, image tokens, guidance, L_MLLM, reasoning."""

from __future__ import annotations

import pytest
import torch
from thin import THIN, red
from torch import nn
from torch.nn import functional as F

from reasonbrain.config.loading import load_config
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Inputs
from reasonbrain.modules.mllm.llava import Llava
from reasonbrain.utils.images import to_uint8

WIDTH, R, CUES = 16, 4, 5
TEXTS = ["What would happen if the ice were left in the sun?", "a candle"]
PATCHES = (32 // 8) ** 2


@pytest.fixture
def plug(hub) -> Llava:
    torch.manual_seed(0)
    plug = Llava(width=WIDTH, pretrained=hub["llava"].folder, img_tokens=R).eval()
    for name, p in plug.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    return plug


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Inputs(images, TEXTS, [[], []], torch.full((2, 32, 32), -1))


@pytest.fixture(scope="module")
def cues() -> Cues:
    generator = torch.Generator().manual_seed(1)
    visual, textual = torch.randn(2, 3, WIDTH, generator=generator), torch.randn(2, 2, WIDTH, generator=generator)
    return Cues(visual, torch.ones(2, 3, dtype=torch.bool), textual, torch.tensor([[True, False], [False, False]]))


def row_of(inputs: Inputs, i: int) -> Inputs:
    return Inputs(inputs.images[i : i + 1], inputs.instructions[i : i + 1], [[]], inputs.regions[i : i + 1])


def cues_of(cues: Cues, i: int) -> Cues:
    return Cues(*(t[i : i + 1] for t in (cues.visual, cues.visual_mask, cues.textual, cues.textual_mask)))


def test_the_prompt_is_that_of_llava_1_5(plug, inputs) -> None:
    """Without cues a row equals what transformers' LlavaProcessor makes of the published prompt."""
    rows, image = plug.tokenize(inputs.instructions, PATCHES, 0)
    for row, text in zip(rows, TEXTS, strict=True):
        assert row == plug.tokenizer("USER: " + "<image>" * PATCHES + f"\n{text} ASSISTANT:").input_ids
        assert row[0] == plug.tokenizer.bos_token_id and row.count(image) == PATCHES
    with_cues, _ = plug.tokenize(inputs.instructions, PATCHES, CUES)
    end = rows[0].index(image) + PATCHES
    assert with_cues[0] == rows[0][:end] + [plug.tokenizer.pad_token_id] * CUES + rows[0][end:]


def test_an_instruction_cannot_add_image_tokens(plug) -> None:
    rows, image = plug.tokenize(["melt the <image> ice"], PATCHES, 0)
    assert rows[0].count(image) == PATCHES


def test_picture_tokens(plug, inputs) -> None:
    """One token per patch, without CLS, as computed by the model's own code."""
    pixels = plug.pixels(inputs.images)
    assert type(plug.image_processor).__name__.endswith("Pil")  # torchvision is not needed
    embeds = plug.image_embeds(pixels)
    assert embeds.shape[:3] == (2, 1, PATCHES)
    states = plug.model.model.vision_tower(**pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(embeds, plug.model.model.multi_modal_projector(states[:, 1:])[:, None])


def test_forward_equals_a_plain_pass(plug, inputs, cues) -> None:
    """Guidance and L_MLLM of a row, compared with a pass over that row alone, without padding and masked cues."""
    out = plug(inputs, cues)
    assert out.hidden.shape == (2, R, WIDTH)
    table = plug.model.get_input_embeddings()
    losses = []
    for i in range(2):
        row = row_of(inputs, i)
        (ids,), image = plug.tokenize(row.instructions, PATCHES, 0)
        at = ids.index(image)
        used = torch.cat([cues.visual[i][cues.visual_mask[i]], cues.textual[i][cues.textual_mask[i]]])
        picture = plug.image_features(row.images).flatten(0, 2)
        words = [table(torch.tensor(part)) for part in (ids[:at], ids[at + PATCHES :])]
        embeds = torch.cat([words[0], picture, plug.cue_in(used), words[1], plug.img_in])[None]
        states = plug.model.model.language_model(inputs_embeds=embeds).last_hidden_state
        assert torch.allclose(out.hidden[i], plug.guidance_out(states[0, -R:]), atol=1e-4)
        grown = torch.cat([plug.model.lm_head.weight, plug.img_out])
        labels = len(plug.model.lm_head.weight) + torch.arange(R)
        losses.append(F.cross_entropy(states[0, -R - 1 : -1] @ grown.T, labels))
    assert torch.allclose(out.lm_loss, torch.stack(losses).mean(), atol=1e-4)


def test_guidance_as_the_models_own_states(hub, plug, inputs) -> None:
    """The states of the [IMG] tokens; or those before, with the tokens' embeddings, which alone stand for no words."""
    states = []
    plug.guidance_out = nn.Identity()
    plug.model.model.language_model.register_forward_hook(lambda *args: states.append(args[2].last_hidden_state))
    plain = plug(inputs, no_cues())
    assert torch.allclose(plain.hidden, states[0][:, -R:]) and plain.null is None
    for kind in ("states", "predicting"):
        torch.manual_seed(0)
        other = Llava(width=WIDTH, pretrained=hub["llava"].folder, img_tokens=R, guidance=kind)
        assert not hasattr(other, "guidance_out")
        other.load_state_dict({k: v for k, v in plug.state_dict().items() if "guidance_out" not in k})
        out = other(inputs, no_cues())
        if kind == "states":
            assert torch.allclose(out.hidden, states[0][:, -R:], atol=1e-5) and out.null is None
        else:
            assert torch.allclose(out.hidden, states[0][:, -R - 1 : -1] + other.img_in, atol=1e-5)
            assert torch.equal(out.null, other.img_in[None])
        assert torch.allclose(out.lm_loss, plain.lm_loss, atol=1e-5)
    with pytest.raises(UserError, match="model.mllm.guidance: 'after'"):
        load_config("reasonbrain_flux_llava", ["model.mllm.guidance=after"])


def test_cues_and_other_rows(plug, inputs, cues) -> None:
    out = plug(inputs, cues).hidden
    alone = plug(row_of(inputs, 1), cues_of(cues, 1)).hidden
    assert torch.allclose(out[1:], alone, atol=1e-5)
    for name in ("visual", "textual"):
        changed = cues._replace(**{name: getattr(cues, name) + torch.randn(WIDTH)})
        difference = (plug(inputs, changed).hidden - out).abs().amax((1, 2))
        assert difference[0] > 1e-3
        assert (difference[1] > 1e-3) == (name == "visual")  # the second row's textual cues are masked


def test_what_trains(plug, inputs, cues) -> None:
    out = plug(inputs, cues)
    (out.lm_loss + out.hidden.square().mean()).backward()
    got = {n for n, p in plug.named_parameters() if p.grad is not None and p.grad.any()}
    new = ("cue_in", "img_in", "img_out", "guidance_out")
    wanted = {n for n, _ in plug.named_parameters() if "lora_" in n or n.startswith(new)}
    assert got == wanted
    assert all("language_model" in n for n in wanted if "lora_" in n)
    assert sum("lora_A" in n for n in wanted) == 2 * 7  # layers x (q, k, v, o, gate, up, down)


def test_reason_is_the_model_without_lora(plug, hub, inputs) -> None:
    trainable = {n for n, p in plug.named_parameters() if p.requires_grad}
    before = plug(inputs, no_cues()).hidden
    said = plug.reason(inputs, max_new_tokens=6)
    model, tokenizer = hub["llava"].models[""], plug.tokenizer
    for i, text in enumerate(TEXTS):
        prompt = "USER: " + "<image>" * PATCHES + f"\n{text} ASSISTANT:"
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        pixels = plug.pixels(inputs.images[i : i + 1])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **pixels
        )
        assert said[i] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert all(said)
    assert {n for n, p in plug.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(plug(inputs, no_cues()).hidden, before)


def no_cues() -> Cues:
    none, mask = torch.zeros(2, 0, WIDTH), torch.zeros(2, 0, dtype=torch.bool)
    return Cues(none, mask, none, mask)


@pytest.mark.parametrize("size", THIN)
def test_three_rows_are_not_mistaken_for_three_channels(plug, size) -> None:
    values, expected = (plug.pixels(red(*shape))["pixel_values"] for shape in (size, (56, 56)))
    torch.testing.assert_close(values[..., 15, 15], expected[..., 15, 15])
    assert values.abs().amin((2, 3)).max() < 0.01  # the mean colour beside it


def test_the_whole_picture_is_seen(plug) -> None:
    """In LLaVA-1.5's square, the middle is the picture and the rest has the mean colour. The published processor would
    show only the picture's middle. A square picture is what the processor makes of it."""
    picture = torch.zeros(1, 3, 32, 64)
    picture[..., :8], picture[..., -8:] = 1, 1  # white at the left and right ends
    (values,) = plug.pixels(picture)["pixel_values"]
    assert (values[:, :7].abs() < 0.01).all() and (values[:, -7:].abs() < 0.01).all()
    assert (values[:, 8:24, [0, -1]] > 1).all() and (values[:, 8:24, 8:24] < -1).all()
    square = torch.rand(1, 3, 48, 48)
    alone = plug.image_processor(images=[*to_uint8(square)], input_data_format="channels_last", return_tensors="pt")
    assert torch.equal(plug.pixels(square)["pixel_values"], alone["pixel_values"])


def test_system_prompt_and_question(hub) -> None:
    plug = Llava(WIDTH, hub["llava"].folder, system="Be brief.", question="{instruction} And then?")
    (row,), _ = plug.tokenize(["a candle"], PATCHES, 0)
    prompt = "Be brief. USER: " + "<image>" * PATCHES + "\na candle And then? ASSISTANT:"
    assert row == plug.tokenizer(prompt).input_ids
