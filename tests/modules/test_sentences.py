"""The sentence before the [IMG] tokens (MGIE), language models without pictures (LGIE), and LLaVA v1."""

from __future__ import annotations

import pytest
import torch
from published import TEXTS, save_llama
from torch.nn import functional as F

from reasonbrain.config.loading import load_config
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Inputs
from reasonbrain.modules.mllm.llava import Llava
from reasonbrain.modules.mllm.text_llm import TextLlm

WIDTH, R, PATCHES = 16, 4, 16
SENTENCES = ["the candle on the table is out", "ice"]
QUESTION = "what will this image be like if '{instruction}'"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return str(folder)


@pytest.fixture(params=["llava", "text_llm"])
def plug(request, hub, language_model):
    torch.manual_seed(0)
    given = {"img_tokens": R, "lora_rank": 2, "question": QUESTION, "guidance": "predicting", "sentence": True}
    if request.param == "llava":
        plug = Llava(WIDTH, hub["llava"].folder, **given)
    else:
        plug = TextLlm(WIDTH, language_model, **given)
    for name, p in plug.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.1)
        if name in ("img_in", "img_out"):
            p.data.normal_(std=0.2)
    return plug


def inputs(sentences=SENTENCES, rows=2, images=None):
    images = torch.rand(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if images is None else images
    regions = torch.zeros(rows, 32, 32).long()
    return Inputs(images, TEXTS[:rows], [[]] * rows, regions, {}, sentences[:rows] if sentences else None)


def no_cues(rows=2):
    none, mask = torch.zeros(rows, 0, WIDTH), torch.zeros(rows, 0, dtype=torch.bool)
    return Cues(none, mask, none, mask)


def prompt(plug, batch, i):
    """The embeddings [L, hidden] of the prompt of one row, without padding, written out."""
    words = QUESTION.replace("{instruction}", TEXTS[i])
    picture = "<image>\n" if isinstance(plug, Llava) else ""
    ids = plug.tokenizer(f"USER: {picture}{words} ASSISTANT:").input_ids
    table = plug.model.get_input_embeddings()
    if not picture:
        return table(torch.tensor(ids))
    at = ids.index(plug.tokenizer.convert_tokens_to_ids("<image>"))
    patches = plug.image_features(batch.images[i : i + 1]).flatten(0, 2)
    return torch.cat([table(torch.tensor(ids[:at])), patches, table(torch.tensor(ids[at + 1 :]))])


def test_the_loss_is_on_the_sentence_and_the_img_tokens(plug):
    """Compared with the cross-entropy of each row alone over a table with r more rows."""
    batch = inputs()
    found = plug(batch, no_cues())
    table, head = plug.model.get_input_embeddings(), plug.model.get_output_embeddings()
    losses = []
    for i, sentence in enumerate(SENTENCES):
        said = torch.tensor(plug.tokenizer(sentence, add_special_tokens=False).input_ids)
        assert len(said) > (5 if i == 0 else 0)
        before = prompt(plug, batch, i)
        states = plug.language_model(inputs_embeds=torch.cat([before, table(said), plug.img_in])[None])
        states = states.last_hidden_state[0]
        logits = torch.cat([head(states), states @ plug.img_out.T], dim=-1)[len(before) - 1 : -1]
        labels = torch.cat([said, head.out_features + torch.arange(R)])
        losses.append(F.cross_entropy(logits, labels))
        torch.testing.assert_close(found.hidden[i], states[-R - 1 : -1] + plug.img_in, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.lm_loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    assert (losses[0] - losses[1]).abs() > 1e-3


def test_generation_ends_where_img_1_is_predicted(plug):
    """Greedy decoding by hand, with the adapters, over a table with [IMG_1]."""
    batch = inputs(None)
    table, head = plug.model.get_input_embeddings(), plug.model.get_output_embeddings()
    lengths = []
    for scale in (0.0, 1.0, 1.5):
        plug.img_out.data[0] = scale * torch.randn(len(plug.img_out[0]), generator=torch.Generator().manual_seed(0))
        expected = []
        for i in range(2):
            embeds, said = prompt(plug, batch, i), []
            for _ in range(12):
                state = plug.language_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
                best = int(torch.cat([head(state), state @ plug.img_out[:1].T]).argmax())
                if best in (head.out_features, plug.tokenizer.eos_token_id):
                    break
                said.append(best)
                embeds = torch.cat([embeds, table(torch.tensor([best]))])
            lengths.append(len(said))
            expected.append(plug.tokenizer.decode(said, skip_special_tokens=True).strip())
        assert plug.reason(batch, 12) == expected
    assert 12 in lengths and min(lengths) < 12


def test_the_picture_does_not_reach_a_language_model(language_model, hub):
    dark, light = (inputs(images=torch.full((2, 3, 32, 32), value)) for value in (0.1, 0.9))
    torch.manual_seed(0)
    words = TextLlm(WIDTH, language_model, img_tokens=R, sentence=True)
    assert torch.equal(words(dark, no_cues()).hidden, words(light, no_cues()).hidden)
    assert words.prepares() == {} and words.image_features(dark.images) is None
    with pytest.raises(UserError, match="model.frce: 'text_llm'"):
        load_config("tiny", ["model.mllm.name=text_llm", f"model.mllm.pretrained={language_model}"])


def test_saved_and_loaded(plug, tmp_path):
    plug.save_pretrained(tmp_path)
    again = type(plug).from_pretrained(tmp_path)
    assert again.reads_sentence and torch.equal(again(inputs(), no_cues()).hidden, plug(inputs(), no_cues()).hidden)
    assert again.reason(inputs(None), 5) == plug.reason(inputs(None), 5)


@pytest.mark.parametrize("tables", [True, False])
def test_tables_train_if_asked(hub, tables):
    plug = Llava(
        WIDTH, hub["llava"].folder, img_tokens=R, lora_rank=0, precision="bfloat16", sentence=True, tables=tables
    )
    out = plug(inputs(), no_cues())
    (out.lm_loss + out.hidden.float().square().mean()).backward()
    got = {n for n, p in plug.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    both = {"model.model.language_model.embed_tokens.weight", "model.lm_head.weight"}
    assert (both <= got) == tables and not (both & got and not tables)
    assert all(p.dtype == torch.float32 for p in plug.parameters() if p.requires_grad)
    assert not any(p.requires_grad for n, p in plug.named_parameters() if ".layers." in n)


def test_llava_v1(hub):
    """One linear layer projects the patches, and the picture stands behind the words, between two tokens."""
    known = hub["llava"].models[""].config.to_diff_dict() | {"projector_hidden_act": "linear"}
    question = QUESTION + "\n<im_start><image><im_end>"
    plug = Llava(WIDTH, architecture=known, img_tokens=R, question=question)
    plug.load_assets(hub["llava"].folder)
    projector = plug.model.model.multi_modal_projector
    assert [n for n, _ in projector.named_parameters()] == ["linear_1.weight", "linear_1.bias"]
    pixels = plug.pixels(inputs().images)
    states = plug.model.model.vision_tower(**pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(plug.image_embeds(pixels)[:, 0], projector.linear_1(states))
    (row,), _ = plug.tokenize(["a <image> candle"], PATCHES, 0)
    words = QUESTION.replace("{instruction}", "a  candle")
    text = f"USER: {words}\n<im_start>{'<image>' * PATCHES}<im_end> ASSISTANT:"
    assert row == plug.tokenizer(text).input_ids
