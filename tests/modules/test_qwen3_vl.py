"""MLLM ``qwen3_vl`` against transformers' own model: its features inside the layers included."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pipelines import save_qwen3_vl

from reasonbrain.interfaces import Cues, Inputs
from reasonbrain.modules.mllm.qwen3_vl import Qwen3VL

R = 4
WORDS = ["melt it", "what if the flame were put out by a strong wind?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("qwen3_vl")
    save_qwen3_vl(path)
    return path


@pytest.fixture(scope="module")
def plug(folder):
    torch.manual_seed(1)
    return Qwen3VL(32, str(folder), img_tokens=R, lora_rank=2).eval()


@pytest.fixture(scope="module")
def inputs():
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    return Inputs(images, WORDS, [[], []], torch.full((2, 64, 96), -1))


def plain(plug, inputs, row):
    """transformers' arguments for a row: the chat prompt of Qwen3-VL, written out, with 2 x 3 image tokens."""
    text = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
    text += inputs.instructions[row] + "<|im_end|>\n<|im_start|>assistant\n"
    ids = plug.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    is_image = ids == plug.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {"input_ids": ids, "mm_token_type_ids": is_image.int(), **plug.pixels(inputs.images[row : row + 1])}


@torch.no_grad()
def test_it_answers_as_transformers_does(plug, inputs):
    said = plug.reason(inputs, 12)
    assert len(set(said)) == 2
    for layer in (module for module in plug.model.modules() if isinstance(module, BaseTunerLayer)):
        layer.enable_adapters(False)
    for row in range(2):
        asked = plain(plug, inputs, row)
        out = plug.model.generate(**asked, max_new_tokens=12, do_sample=False)
        wanted = plug.tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said[row] == wanted.strip()
    for layer in (module for module in plug.model.modules() if isinstance(module, BaseTunerLayer)):
        layer.enable_adapters(True)


@torch.no_grad()
def test_states_are_those_of_transformers(plug, inputs):
    """The hidden states of [IMG] tokens that are embedded as ordinary tokens."""
    empty, mask = torch.zeros(2, 0, 32), torch.zeros(2, 0).bool()
    found = plug(inputs, Cues(empty, mask, empty, mask)).hidden
    words = torch.tensor([65, 69, 77, 93])
    table = plug.model.get_input_embeddings().weight
    before = plug.img_in.data.clone()
    plug.img_in.data.copy_(table[words])
    same = plug(inputs, Cues(empty, mask, empty, mask)).hidden
    plug.img_in.data.copy_(before)
    assert not torch.equal(found, same)
    for row in range(2):
        asked = plain(plug, inputs, row)
        asked["input_ids"] = torch.cat([asked["input_ids"], words[None]], 1)
        asked["mm_token_type_ids"] = torch.nn.functional.pad(asked["mm_token_type_ids"], (0, R))
        states = plug.model.model(**asked).last_hidden_state[:, -R:]
        torch.testing.assert_close(same[row], plug.guidance_out(states)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_features_inside_the_layers_count(plug, inputs):
    """Without them, the states are others: the first test would not notice if they hardly mattered."""
    empty, mask = torch.zeros(2, 0, 32), torch.zeros(2, 0).bool()
    features = plug.image_features(inputs.images)
    assert features.shape == (2, 2, 3, 3 * 32)
    cut = features.clone()
    cut[..., 32:] = 0
    states = []
    for ready in (features, cut):
        given = Inputs(inputs.images, inputs.instructions, inputs.objects, inputs.regions, {"mllm": ready})
        states.append(plug(given, Cues(empty, mask, empty, mask)).hidden)
    assert (states[0] - states[1]).abs().max() > 0.05


@torch.no_grad()
def test_a_thread_does_not_see_the_pictures_of_another(plug, inputs):
    rows, image = plug.tokenize(inputs.instructions, 6, 0)
    ids, mask = plug.pad_left(rows, 6, torch.device("cpu"))
    own = plug.image_features(inputs.images)
    given = {"inputs_embeds": plug.embed(ids, ids == image, own), "attention_mask": mask, "use_cache": False}
    with plug.inside(ids == image, own), ThreadPoolExecutor(1) as other:
        alone = plug.model.model.language_model(**given).last_hidden_state
        theirs = plug.inside(ids == image, torch.randn_like(own))
        other.submit(theirs.__enter__).result()
        beside = plug.model.model.language_model(**given).last_hidden_state
        theirs.__exit__(None, None, None)
    assert torch.equal(alone, beside)
