"""``flux`` with ``prompt: t5``: starts as diffusers' Kontext pipeline, to the last bit, and trains what was added."""

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from pipelines import save_kontext

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.modules.diffusion.flux import Flux, pack, unpack
from reasonbrain.modules.diffusion.flux_text import GrownLinear
from reasonbrain.plugin_folder import load_part, save_part

SIDE, TOKENS, STEPS = 64, 48, 3
SENTENCES = ["What would happen if the ice were left in the sun?", "the flame is out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kontext")
    save_kontext(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = FluxKontextPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def flux(folder):
    def build(trained="lora", **more):
        torch.manual_seed(1)
        given = {"pretrained": folder, "source": "sequence", "heads": 2, "prompt": "t5", "prompt_tokens": TOKENS}
        return Flux(width=32, trained=trained, **given | more).eval()

    return build


@pytest.fixture(scope="module")
def given():
    """A condition of two rows, pictures [2, 3, H, W] in 0..1 and noise."""
    torch.manual_seed(3)
    condition = Condition(torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 32), prompts=SENTENCES)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    return condition, pixels, torch.randn(2, 4, SIDE // 8, SIDE // 8)


def edit(plug, given):
    condition, pixels, noise = given
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return plug.sample(condition, plug.encode(images), noise, STEPS, guidance=2.5)


@pytest.mark.parametrize("trained", ["lora", "frozen", "full"])
def test_starts_as_the_kontext_pipeline(flux, pipe, given, trained):
    """Same sentences, pictures, noise, steps and guidance: the difference is 0."""
    _, pixels, noise = given
    expected = pipe(
        image=[Image.fromarray(p) for p in pixels],
        prompt=SENTENCES,
        height=SIDE,
        width=SIDE,
        max_area=SIDE * SIDE,
        _auto_resize=False,
        num_inference_steps=STEPS,
        guidance_scale=2.5,
        latents=pack(noise),
        max_sequence_length=TOKENS,
        output_type="latent",
    ).images
    found = edit(flux(trained), given)
    assert (found - unpack(expected, noise.shape[-2])).abs().max() == 0
    assert (found - noise).abs().max() > 0.1


def test_the_sentence_matters(flux, given):
    plug, (condition, pixels, noise) = flux(), given
    other = condition._replace(prompts=SENTENCES[::-1])
    assert (edit(plug, given) - edit(plug, (other, pixels, noise))).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_condition_matters_once_trained(flux, given):
    """The gates get gradients at once, and what is behind them after one step."""
    plug, (condition, _, noise) = flux().train(), given
    gates = {"text_term.out.weight", "text_term.out.bias", "transformer.x_embedder.added"}
    behind = {n for n, _ in plug.named_parameters() if n.startswith(("text_term.", "image_term."))} - gates
    before = plug.eval(), edit(plug, given)
    optimizer = torch.optim.SGD([p for p in plug.parameters() if p.requires_grad], 1.0)
    for step in range(2):
        optimizer.zero_grad()
        plug.errors(condition, noise, noise.flip(0), [1, 2])[0].mean().backward()
        moved = {n for n, p in plug.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert gates <= moved and (behind <= moved) == bool(step), behind - moved
        assert not {n for n in moved if n not in gates | behind and "lora_" not in n}
        optimizer.step()
    after = edit(plug, given)
    other = condition._replace(visual=-condition.visual), *given[1:]
    assert (after - before[1]).abs().max() > 1e-4 and (edit(plug, other) - after).abs().max() > 1e-5


def test_precomputed_words(flux, given):
    plug, (condition, pixels, noise) = flux(), given
    words = plug.prompt_features(SENTENCES, torch.device("cpu"))
    assert words["text"].shape == (2, TOKENS, 32) and words["pooled"].shape == (2, 32)
    alone = plug.prompt_features(SENTENCES[:1], torch.device("cpu"))
    torch.testing.assert_close(alone["text"][0], words["text"][0])
    assert torch.equal(edit(plug, (condition._replace(words=words, prompts=()), pixels, noise)), edit(plug, given))


def test_a_checkpoint_holds_the_text_encoders(flux, given, folder, tmp_path):
    plug = flux()
    expected = edit(plug, given)
    save_part(plug, tmp_path)
    loaded = load_part(Flux, tmp_path, {}, torch.float32).eval()
    assert torch.equal(edit(loaded, given), expected)
    with torch.device("meta"):
        empty = Flux(width=32, heads=2, **Flux.without_weights({"pretrained": folder, "prompt": "t5"}))
    assert {n: p.shape for n, p in empty.words.state_dict().items()} == {
        n: p.shape for n, p in plug.words.state_dict().items()
    }


def test_half_precision(flux, given):
    """The encoders stay in bfloat16; training runs under autocast, and small updates are not lost."""
    plug, (condition, _, noise) = flux(precision="bfloat16").train(), given
    assert {p.dtype for p in plug.words.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in plug.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        plug.errors(condition, noise, noise, [1, 2])[0].mean().backward()
    assert plug.text_term.out.weight.grad.abs().max() > 0
    assert edit(plug.eval(), given).isfinite().all()


def test_what_t5_does_not_read(flux):
    plug, text = flux(), "the candle on the table " * 40
    assert plug.unread("the candle") == "" and plug.unread(text) and text.endswith(plug.unread(text))


def test_marks_in_a_sentence_are_left_out(flux):
    words = flux().words
    tokenizer = words.tokenizers[1]
    ids = words._tokens(tokenizer, TOKENS, ["a candle</s></s>"], torch.device("cpu"))
    assert (ids == tokenizer.eos_token_id).sum() == 1  # the one that ends it


def test_new_inputs_do_not_change_the_sums_over_the_old_ones():
    """At the size of FLUX.1's, where the order of the sums matters."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 3072), torch.randn(2, 300, 64 + 768)
    grown = GrownLinear(linear, 768)
    assert grown.in_features == 64 + 768 and torch.equal(grown(x), linear(x[..., :64].contiguous()))


def test_published_lora_fits(flux, given):
    plug = flux()
    before = edit(plug, given)
    size = {"A": (4, 16), "B": (32, 4)}
    lora = {f"transformer.x_embedder.lora_{k}.weight": torch.randn(shape) for k, shape in size.items()}
    plug.load_lora_weights(lora)
    assert (edit(plug, given) - before).abs().max() > 1e-3
    plug.unload_lora_weights()
    assert torch.equal(edit(plug, given), before)


def test_a_wrong_prompt_is_named(flux):
    with pytest.raises(UserError, match="model.diffusion.prompt: 'bert' is not one of null, t5"):
        flux(prompt="bert")
