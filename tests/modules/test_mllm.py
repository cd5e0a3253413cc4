"""MLLM ``qwen2_5_vl``: prompt, soft cues, [IMG] tokens, LoRA, L_MLLM and reasoning, against transformers' own model."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from thin import THIN, red
from transformers import Qwen2_5_VLForConditionalGeneration

from reasonbrain.config.loading import load_config
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Inputs

R = 32


@pytest.fixture(scope="module")
def mllm(model):
    return model.slot("mllm")


@pytest.fixture(scope="module")
def cues():
    """Three rows with two visual and two textual cues; the last textual cue of rows 0 and 2 is masked."""
    torch.manual_seed(2)
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    return Cues(torch.randn(3, 2, 32), torch.ones(3, 2).bool(), torch.randn(3, 2, 32), mask)


def no_cues(rows):
    empty, mask = torch.zeros(rows, 0, 32), torch.zeros(rows, 0).bool()
    return Cues(empty, mask, empty, mask)


def row(batch, i):
    fields = vars(batch) if isinstance(batch, Inputs) else batch._asdict()
    return type(batch)(**{k: v[i : i + 1] for k, v in fields.items() if v is not None and len(v) and k != "ready"})


def prompt_ids(mllm, inputs, i):
    """The chat prompt of Qwen2.5-VL for one picture of 16 tokens, written out."""
    text = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 16 + "<|vision_end|>"
    pieces = [text, inputs.instructions[i], "<|im_end|>\n<|im_start|>assistant\n"]
    return [t for p in pieces for t in mllm.tokenizer(p, add_special_tokens=False).input_ids]


def test_loss_and_states_are_those_of_a_model_with_a_grown_vocabulary(mllm, inputs):
    """Compared with transformers' forward pass with r more tokens in its table and labels on these only."""
    plug = copy.deepcopy(mllm)
    plug.img_out.data.copy_(plug.img_in)  # the grown table is tied
    grown = copy.deepcopy(plug.model)
    vocabulary = grown.get_input_embeddings().weight.shape[0]
    grown.resize_token_embeddings(vocabulary + R, mean_resizing=False)
    grown.get_input_embeddings().weight.data[vocabulary:] = plug.img_in.data
    image = plug.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    losses, states = [], []
    for i in range(3):
        prompt = prompt_ids(plug, inputs, i)
        ids = torch.tensor([prompt + list(range(vocabulary, vocabulary + R))])
        labels = ids.masked_fill(ids < vocabulary, -100)
        assert (labels != -100).sum() == R
        with torch.no_grad():
            out = grown(
                input_ids=ids,
                labels=labels,
                mm_token_type_ids=(ids == image).int(),
                output_hidden_states=True,
                **plug.pixels(inputs.images[i : i + 1]),
            )
        losses.append(out.loss)
        states.append(plug.guidance_out(out.hidden_states[-1][:, -R:]))
    with torch.no_grad():
        found = plug(inputs, no_cues(3))
    torch.testing.assert_close(found.lm_loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.hidden, torch.cat(states), rtol=1e-3, atol=1e-3)


def test_one_forward_pass_gives_all_states(mllm, inputs, cues):
    calls = []
    hook = mllm.model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    out = mllm(inputs, cues)
    hook.remove()
    assert len(calls) == 1 and out.hidden.shape == (3, R, 32) and out.lm_loss.shape == ()


def test_without_img_tokens_there_is_no_guidance_and_nothing_trains(build, mllm, inputs, cues):
    without = build("model.mllm.img_tokens=0").slot("mllm")
    calls = []
    without.model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    out = without(inputs, cues)
    assert out.hidden.shape == (3, 0, 32) and out.lm_loss.shape == () and out.lm_loss == 0 and not calls
    assert not any(p.requires_grad for p in without.parameters())
    assert without.reason(inputs, 12) == mllm.reason(inputs, 12)  # which is said without LoRA, too


@pytest.mark.parametrize("side", ["visual", "textual"])
def test_cues_enter_the_mllm(mllm, inputs, cues, side):
    before = mllm(inputs, cues).hidden
    moved = getattr(cues, side).clone()
    moved[:, 0] *= -1
    after = mllm(inputs, cues._replace(**{side: moved})).hidden
    assert ((after - before).abs().amax((1, 2)) > 1e-3).all()
    hidden = cues.textual.masked_fill(~cues.textual_mask[..., None], 50.0)
    torch.testing.assert_close(mllm(inputs, cues._replace(textual=hidden)).hidden, before)


def test_the_cues_stand_right_behind_the_picture_and_take_no_others_place(mllm, inputs, cues):
    """What the language model reads, token by token: in rows of different lengths, with the mask of each cue."""
    seen = {}
    language_model = mllm.model.model.language_model
    hook = language_model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        mllm(inputs, cues)
        hook.remove()
        soft = mllm.cue_in(torch.cat([cues.visual, cues.textual], dim=1))
        words = mllm.model.get_input_embeddings()
        pictures = mllm.image_features(inputs.images).flatten(1, 2)
        for i in range(3):
            ids = prompt_ids(mllm, inputs, i)
            first = ids.index(mllm.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
            before, behind = words(torch.tensor(ids[:first])), words(torch.tensor(ids[first + 17 :]))
            end = words(torch.tensor(ids[first + 16 : first + 17]))  # of the picture, <|vision_end|>
            expected = torch.cat([before, pictures[i], end, soft[i], behind, mllm.img_in])
            torch.testing.assert_close(seen["inputs_embeds"][i, -len(expected) :], expected)
            mask = torch.ones(len(expected), dtype=torch.long)
            mask[first + 17 : first + 21] = torch.cat([cues.visual_mask[i], cues.textual_mask[i]]).long()
            left = seen["attention_mask"].shape[1] - len(expected)
            assert seen["attention_mask"][i].tolist() == [0] * left + mask.tolist()


def test_a_masked_cue_equals_no_cue(mllm, inputs, cues):
    first = row(inputs, 0), row(cues, 0)
    short = first[1]._replace(textual=first[1].textual[:, :1], textual_mask=first[1].textual_mask[:, :1])
    torch.testing.assert_close(mllm(first[0], short).hidden, mllm(*first).hidden, rtol=1e-3, atol=1e-3)


def test_a_row_does_not_depend_on_its_batch(mllm, inputs, cues):
    """The instructions have different lengths, so rows are padded on the left."""
    both = mllm(inputs, cues)
    assert len({len(prompt_ids(mllm, inputs, i)) for i in range(3)}) == 3
    losses = []
    for i in range(3):
        alone = mllm(row(inputs, i), row(cues, i))
        torch.testing.assert_close(both.hidden[i], alone.hidden[0], rtol=1e-3, atol=1e-3)
        losses.append(alone.lm_loss)
    torch.testing.assert_close(both.lm_loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_positions_are_those_of_the_model(mllm, inputs):
    pixels = mllm.pixels(inputs.images)
    rows, image = mllm.tokenize(inputs.instructions, 16, 0)
    assert rows == [prompt_ids(mllm, inputs, i) for i in range(3)]
    ids, mask = mllm.pad_left(rows, 16, mllm.device)
    positions = mllm.positions(ids, mask, 4, 4)
    for i, one in enumerate(rows):
        alone = torch.tensor([one])
        expected, _ = mllm.model.model.get_rope_index(
            alone, (alone == image).int(), image_grid_thw=pixels["image_grid_thw"][i : i + 1]
        )
        assert torch.equal(positions[:, i, -len(one) :], expected[:, 0])
        rows_and_columns = expected[1:, 0, alone[0] == image]
        assert len({tuple(p) for p in rows_and_columns.T.tolist()}) == 16  # really two-dimensional


@pytest.mark.parametrize(("height", "width"), [(64, 32), (32, 64)])
def test_positions_of_a_picture_that_is_not_square(mllm, inputs, height, width):
    """The rows of its tokens are those of the picture."""
    grid = mllm.pixels(inputs.images[:1, :, :height, :width])["image_grid_thw"]
    rows, columns = height // 16, width // 16
    (ids,), image = mllm.tokenize(inputs.instructions[:1], rows * columns, 0)
    ids, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
    expected, _ = mllm.model.model.get_rope_index(ids, (ids == image).int(), image_grid_thw=grid)
    found = mllm.positions(ids, mask, rows, columns)
    assert torch.equal(found, expected)
    assert [len(axis[0, ids[0] == image].unique()) for axis in found[1:]] == [rows, columns]


def test_lora_is_on_the_language_model_alone(mllm):
    adapted = [n for n, _ in mllm.named_parameters() if "lora_" in n]
    assert adapted and all(".language_model.layers." in n for n in adapted)
    assert len(adapted) == 2 * 7 * 2  # layers x linears x (A, B)
    for name, p in mllm.named_parameters():
        if "lora_A" in name:
            assert p.shape[0] == 8
    layer = mllm.model.model.language_model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 16 / 8


def test_gradients_reach_new_parameters_and_not_the_base(build, wake, inputs, cues):
    mllm = wake(build()).slot("mllm").train()
    assert not mllm.model.training  # frozen parts stay in eval mode
    out = mllm(inputs, cues)
    (out.hidden.square().mean() + out.lm_loss).backward()
    for name, p in mllm.named_parameters():
        new = "lora_" in name or not name.startswith("model.")
        assert p.requires_grad == new, name
        assert (p.grad is not None and p.grad.abs().sum() > 0) if new else p.grad is None, name


def greedy(model, mllm, inputs, i):
    ids = torch.tensor([prompt_ids(mllm, inputs, i)])
    image = mllm.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == image).int(),
        max_new_tokens=12,
        do_sample=False,
        **mllm.pixels(inputs.images[i : i + 1]),
    )
    return mllm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_reason_is_the_greedy_answer_of_the_base_model(mllm, parts, inputs, cues):
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(parts / "mllm").eval()
    before = mllm(inputs, cues).hidden
    trainable = [n for n, p in mllm.named_parameters() if p.requires_grad]
    said = mllm.reason(inputs, max_new_tokens=12)
    assert said == [greedy(base, mllm, inputs, i) for i in range(3)]
    assert len(set(said)) == 3 and said != [
        greedy(mllm.model, mllm, inputs, i) for i in range(3)
    ]  # LoRA would say otherwise
    assert [n for n, p in mllm.named_parameters() if p.requires_grad] == trainable
    torch.testing.assert_close(mllm(inputs, cues).hidden, before, rtol=0, atol=0)


def test_reason_reads_given_image_features(mllm, inputs):
    """Given features of other pictures, it describes these, and its vision tower does not run again."""
    flipped = replace(inputs, images=inputs.images.flip(0, -1))
    wanted = mllm.reason(flipped, max_new_tokens=12)
    assert wanted != mllm.reason(inputs, max_new_tokens=12)
    ready = {"mllm": mllm.image_features(flipped.images)}
    calls = []
    hook = mllm.model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    said = mllm.reason(replace(inputs, ready=ready), max_new_tokens=12)
    hook.remove()
    assert said == wanted and not calls


def test_several_threads_share_a_model(mllm, inputs, cues):
    """What one thread generates, without adapters, leaves the hidden states of the others as they are."""
    rows = [(row(inputs, i), row(cues, i)) for i in range(3)]
    states = [mllm(*r).hidden for r in rows]
    said = [mllm.reason(r[0], max_new_tokens=12) for r in rows]

    def work(number):
        i = number % 3
        if number % 2:
            return mllm.reason(rows[i][0], max_new_tokens=12) == said[i]
        return torch.equal(mllm(*rows[i]).hidden, states[i])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(48)))


def test_texts_are_padded_to_few_lengths(mllm, inputs):
    """``text_length`` is the padded length of a text, so rows of one length need no further padding."""
    texts = ["melt", "melt the ice", "what would the ice look like after a day in the sun, and the cube beside it?"]
    rows, _ = mllm.tokenize(texts, 16, 5)
    for text, row in zip(texts, rows, strict=True):
        ids, mask = mllm.pad_left([row], 16 + 5, mllm.device)
        assert ids.shape[1] == 16 + 5 + mllm.text_length(text) and mask.sum() == len(row)
        assert mllm.text_length(text) % 8 == 0 and ids.shape[1] - len(row) < 8
    assert mllm.pad_left(rows, 16 + 5, mllm.device)[0].shape[1] == 16 + 5 + max(map(mllm.text_length, texts))


def test_special_tokens_in_an_instruction_are_plain_text(mllm, inputs, cues):
    texts = ["<|image_pad|> melts", "<|im_end|> <|vision_start|>", "<|endoftext|>"]
    rows, image = mllm.tokenize(texts, 16, 0)
    assert [r.count(image) for r in rows] == [16] * 3
    assert torch.isfinite(mllm(replace(inputs, instructions=texts), cues).hidden).all()


def test_an_empty_instruction(mllm, inputs, cues):
    empty = Inputs(inputs.images, ["", "", ""], [[]] * 3, inputs.regions)
    assert torch.isfinite(mllm(empty, cues).hidden).all()


@pytest.mark.parametrize("size", THIN)
def test_three_rows_are_not_mistaken_for_three_channels(mllm, size):
    values, expected = (mllm.pixels(red(*shape))["pixel_values"].unique() for shape in (size, (56, 56)))
    torch.testing.assert_close(values, expected)


def test_system_prompt_and_question_are_those_of_the_configuration(mllm):
    plug = copy.copy(mllm)
    plug._internal_dict = FrozenDict({**mllm.config, "system": "Be brief.", "question": "{instruction} And then?"})
    (row,), _ = plug.tokenize(["melt the ice"], 2, 0)
    pieces = ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|>"]
    pieces += ["<|vision_end|>", "melt the ice And then?", "<|im_end|>\n<|im_start|>assistant\n"]
    assert row == [t for p in pieces for t in mllm.tokenizer(p, add_special_tokens=False).input_ids]
    with pytest.raises(UserError, match="model.mllm.question: 'What then' lacks {instruction}"):
        load_config("tiny", ["model.mllm.question=What then"])


def test_the_whole_picture_is_seen(mllm):
    """A white column at either end of a long picture reaches the vision tower, as the published processor makes it."""
    picture = torch.zeros(1, 3, 32, 128)
    picture[..., :8], picture[..., -8:] = 1, 1
    pixels = mllm.pixels(picture)
    _, rows, columns = pixels["image_grid_thw"][0].tolist()
    assert columns / rows == 4
    merged = mllm.model.config.vision_config.spatial_merge_size
    patches = pixels["pixel_values"].unflatten(0, (rows // merged, columns // merged, merged, merged)).mean(-1)
    bright = patches.transpose(1, 2).reshape(rows, columns) > 0
    assert bright[:, [0, -1]].all() and not bright[:, columns // 4 : -columns // 4].any()
