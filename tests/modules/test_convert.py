"""`reasonbrain convert`: synthetic weights in the authors' layouts give the edits of a reference computation."""

from __future__ import annotations

import pickle

import ldm
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline
from pipelines import save_pix2pix
from published import TEXT, TEXTS, lively
from torch import nn
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, LlavaConfig

from reasonbrain import ReasonBrainPipeline
from reasonbrain.checkpoint import load_model
from reasonbrain.cli import main
from reasonbrain.modules.cme.bim import BidirectionalInteraction
from reasonbrain.modules.connector.qformer import QFormer
from reasonbrain.modules.diffusion.sd import step_generators
from reasonbrain.utils.images import to_pil

WORDS = ["melt it", "what would happen if the ice were left in the sun?"]


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pix2pix")
    save_pix2pix(folder)
    return folder


def convert(*words, code=0):
    done = CliRunner().invoke(main, ["convert", *map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stderr


def pictures():
    return (torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255).round() / 255


def pipeline(folder):
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_instructpix2pix(pix2pix, tmp_path):
    """As diffusers' pipeline, with its ancestral sampler: words, averaged weights, autoencoder."""
    pipe = pipeline(pix2pix)
    tensors = ldm.checkpoint(pipe) | {"betas": torch.rand(9), "model_ema.decay": torch.tensor(0.99)}
    torch.save({"global_step": 7, "state_dict": tensors}, tmp_path / "ip2p.ckpt")
    where = [f"model.{slot}.pretrained={pix2pix}" for slot in ("encoders", "diffusion")]
    told = convert("instructpix2pix", tmp_path / "ip2p.ckpt", "-o", tmp_path / "out", "model.width=32", *where)
    count = len(pipe.unet.state_dict())
    assert f"diffusion.unet: {count} tensors used" in told and "missing, initialised: none" in told
    assert "not used: 2" in told and "betas" in told and "model_ema.decay" in told
    model, _ = load_model(tmp_path / "out")
    noise, images = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(2)), pictures()
    condition, _ = model.condition(model.make_inputs(images, WORDS))
    sd = model.slot("diffusion")
    # scales at which rounding errors do not grow; test_sd.py has the usual ones
    scales = {"guidance": 1.5, "image_guidance": 1.0}
    ours = sd.decode(sd.sample(condition, sd.encode(images), noise, 3, **scales))
    theirs = pipe(
        WORDS,
        image=to_pil(images),
        num_inference_steps=3,
        guidance_scale=1.5,
        image_guidance_scale=1.0,
        latents=noise,
        generator=step_generators(noise),
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-3)
    assert theirs.std() > 0.02


def test_instructpix2pix_without_averaged_weights(pix2pix, tmp_path):
    pipe = pipeline(pix2pix)
    tensors = {k: v for k, v in ldm.checkpoint(pipe).items() if not k.startswith("model_ema")}
    torch.save(tensors, tmp_path / "tuned.ckpt", _use_new_zipfile_serialization=False)
    where = [f"model.{slot}.pretrained={pix2pix}" for slot in ("encoders", "diffusion")]
    convert("instructpix2pix", tmp_path / "tuned.ckpt", "-o", tmp_path / "out", "model.width=32", *where)
    model, _ = load_model(tmp_path / "out")
    key = "mid_block.resnets.0.conv1.weight"
    found = model.slot("diffusion").unet.get_parameter(key)
    torch.testing.assert_close(found, pipe.unet.get_parameter(key) + 1)


class EditMapper(nn.Module):
    """MGIE's edit head by torch's own transformer."""

    def __init__(self):
        super().__init__()
        self.llm2hid, self.hid2feat = nn.Linear(32, 32), nn.Linear(32, 32)
        self.query = nn.Parameter(torch.randn(1, 77, 32))
        self.mapper = nn.Transformer(32, 4, 4, 4, 128, 0.0, batch_first=True, norm_first=True)

    def forward(self, states, embeddings):
        hidden = self.llm2hid(states + embeddings)
        return self.hid2feat(self.mapper(hidden, self.query.expand(len(states), -1, -1)))


@pytest.fixture(scope="module")
def mgie(tmp_path_factory, hub, pix2pix):
    """The authors' folder with a tiny LLaVA v1, and its parts: language model with all rows, projector, edit head."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("_ckpt")
    tokenizer = LlamaTokenizer(pad_token="<pad>", add_bos_token=True).train_new_from_iterator(TEXTS, 200)
    vocabulary = len(tokenizer) + 3
    raw = hub["llava"].models[""].config.to_diff_dict()
    raw |= {"projector_hidden_act": "linear", "image_token_index": len(tokenizer)}
    raw["text_config"] |= {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}
    LlavaConfig.from_dict(raw).save_pretrained(folder / "architecture")
    model = lively(LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=vocabulary + 8, bos_token_id=1, eos_token_id=2)))
    projector, head = nn.Linear(32, 32), EditMapper().eval()
    state = {name: value.half() for name, value in model.state_dict().items()}
    trained = {name: state[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    rest = {name: value for name, value in state.items() if name not in trained}
    rest |= {f"model.mm_projector.{name}": value.half() for name, value in projector.state_dict().items()}
    rest |= {name: value[: vocabulary - 3] for name, value in trained.items()}
    rest["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    (folder / "LLaVA-7B-v1").mkdir()
    names = list(rest)
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        part = {name: rest[name] for name in some}
        torch.save(part, folder / "LLaVA-7B-v1" / f"pytorch_model-0000{number}-of-00002.bin")
    tokenizer.save_pretrained(folder / "LLaVA-7B-v1")
    text = hub["clip"].models[""].config.text_config.to_dict()
    clip = lively(CLIPModel(CLIPConfig(text_config=text, vision_config=raw["vision_config"], projection_dim=32)))
    clip.save_pretrained(folder / "clip")
    (folder / "mgie_7b").mkdir()
    of_head = {f"edit_head.{name}": value.half() for name, value in head.state_dict().items()}
    emb = {"emb": trained["model.embed_tokens.weight"][-8:]}
    torch.save(trained | of_head | emb, folder / "mgie_7b" / "mllm.pt")
    unet = lively(pipeline(pix2pix).unet)
    torch.save({name: value.half() for name, value in unet.state_dict().items()}, folder / "mgie_7b" / "unet.pt")
    for module in (model, projector, head, unet):
        for p in module.parameters():
            p.data = p.data.half().float()
    return folder, model, projector, head, unet


def where(folder, pix2pix):
    return [
        *("model.width=32", "model.connector.inputs=32", "model.connector.hidden=32", "model.mllm.precision=float32"),
        f"model.mllm.pretrained={folder / 'architecture'}",
        *(f"model.diffusion.pretrained={pix2pix}", f"model.encoders.vision={folder / 'clip'}"),
    ]


@torch.no_grad()
def test_mgie(mgie, pix2pix, tmp_path):
    """Sentence and [IMG] tokens by a language model with all rows in its tables; the edit by diffusers' pipeline."""
    folder, llama, projector, head, unet = mgie
    told = convert("mgie", folder, "-o", tmp_path / "out", *where(folder, pix2pix))
    assert "missing, initialised: mllm.cue_in" in told and "unexpected, not used: 0" in told
    model, cfg = load_model(tmp_path / "out")
    mllm, images, sentences = model.slot("mllm"), pictures(), ["the ice is gone", "a candle"]
    inputs = model.make_inputs(images, WORDS, sentences=sentences)
    condition, _ = model.condition(inputs)

    table, rows = llama.get_input_embeddings(), []
    vision = CLIPModel.from_pretrained(folder / "clip").vision_model.eval()
    patches = projector(vision(**mllm.pixels(images), output_hidden_states=True).hidden_states[-2][:, 1:])
    for row, (words, sentence) in enumerate(zip(WORDS, sentences, strict=True)):
        prompt = (
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: what will this image be like if "
            f"'{words}'\n<im_start>{'<image>' * 16}<im_end> ASSISTANT:"
        )
        ids = mllm.tokenizer(prompt).input_ids
        at = ids.index(mllm.tokenizer.convert_tokens_to_ids("<image>"))
        assert ids[at - 1] == ids[at] + 1 and ids[at + 16] == ids[at] + 2  # between <im_start> and <im_end>
        answer = mllm.tokenizer(sentence, add_special_tokens=False).input_ids
        answer += range(len(table.weight) - 8, len(table.weight))
        before, behind = (table(torch.tensor(part)) for part in (ids[:at], ids[at + 16 :] + answer))
        states = llama.model(inputs_embeds=torch.cat([before, patches[row], behind])[None]).last_hidden_state
        rows.append(head(states[:, -9:-1], table.weight[-8:][None]))
    guide, null = torch.cat(rows), head(torch.zeros(1, 8, 32), table.weight[-8:][None])
    torch.testing.assert_close(condition.visual, guide, rtol=1e-2, atol=5e-3)

    pipe = pipeline(pix2pix)
    pipe.scheduler = model.slot("diffusion").scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    pipe.unet = unet
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    sd = model.slot("diffusion")
    ours = sd.sample(condition, sd.encode(images), noise, 3)
    theirs = pipe(
        prompt_embeds=guide,
        negative_prompt_embeds=null.expand(2, -1, -1),
        image=to_pil(images),
        num_inference_steps=3,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    assert cfg.edit.guidance == 7.5 and mllm.model.generation_config.no_repeat_ngram_size == 3
    assert isinstance(mllm.reason(inputs, 5)[0], str)


def test_a_newly_trained_mgie_without_emb(mgie, pix2pix, tmp_path):
    folder = mgie[0]
    plain = torch.load(folder / "mgie_7b" / "mllm.pt", weights_only=True)
    (tmp_path / "mgie_7b").mkdir()
    torch.save({k: v for k, v in plain.items() if k != "emb"}, tmp_path / "mgie_7b" / "mllm.pt")
    (tmp_path / "mgie_7b" / "unet.pt").symlink_to(folder / "mgie_7b" / "unet.pt")
    (tmp_path / "LLaVA-7B-v1").symlink_to(folder / "LLaVA-7B-v1")
    for file in (folder / "LLaVA-7B-v1").iterdir():
        (tmp_path / file.name).symlink_to(file)
    convert("mgie", tmp_path, "-o", tmp_path / "out", *where(folder, pix2pix))
    model, _ = load_model(tmp_path / "out")
    torch.testing.assert_close(model.slot("mllm").img_in.data, plain["emb"].float())


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def test_mistakes_are_one_line(mgie, pix2pix, tmp_path):
    """Pickles that would run code among them."""
    folder, more = mgie[0], where(mgie[0], pix2pix)
    with open(tmp_path / "code.ckpt", "wb") as file:
        pickle.dump({"state_dict": {"a": Code()}}, file)
    torch.save({"state_dict": {}, "callbacks": Code()}, tmp_path / "callbacks.ckpt")
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    torch.save({"state_dict": {"model.diffusion_model.out.0.weight": torch.rand(3)}}, tmp_path / "part.ckpt")
    clip = [f"model.{slot}.pretrained={pix2pix}" for slot in ("encoders", "diffusion")] + ["model.width=32"]
    out = ["-o", tmp_path / "out"]
    for words, said in (
        (["mgii", folder], "'mgii' is not one of instructpix2pix, mgie, smartedit"),
        (["mgie", tmp_path / "nowhere"], "does not exist"),
        (["mgie", tmp_path, *more], "has no mllm.pt"),
        (["instructpix2pix", pix2pix, *clip], "needs no conversion"),
        (["instructpix2pix", tmp_path / "code.ckpt", *clip], "or holds objects besides tensors"),
        (["instructpix2pix", tmp_path / "callbacks.ckpt", *clip], "besides tensors"),
        (["instructpix2pix", tmp_path / "noise.ckpt", *clip], "is damaged"),
        (["instructpix2pix", tmp_path / "part.ckpt", *clip], "is [3], but the model has [32]"),
        (["mgie", folder, *more, "model.mllm.img_tokens=7"], "embed_tokens.weight is"),
    ):
        told = convert(*words, *out, code=2)
        *progress, last = told.strip().splitlines()
        assert last.startswith("error: ") and said in last and "Traceback" not in told, told
        assert not (tmp_path / "out").exists()


SCALE = 16 / 8


@pytest.fixture(scope="module")
def smartedit(tmp_path_factory, hub, pix2pix):
    """The authors' folder at small size, with 4 [IMG] tokens, and its parts as a reference computes with them: language
    model with LoRA merged, projector, QFormer, module."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("SmartEdit")
    words = LlamaTokenizer(pad_token="<pad>", add_bos_token=True).train_new_from_iterator(TEXTS, 200)
    raw = hub["llava"].models[""].config.to_diff_dict() | {"projector_hidden_act": "linear"}
    LlavaConfig.from_dict(raw).save_pretrained(folder / "architecture")
    base, rows = len(words), len(words) + 3 + 4
    config = LlamaConfig(**TEXT, vocab_size=rows, bos_token_id=1, eos_token_id=2)
    model, projector = lively(LlamaForCausalLM(config)), nn.Linear(32, 32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    original = {name: torch.randn(base + 3, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for part in ("LLaVA", "LLM-15000", "embeddings_qformer", "modulate-15000", "unet-15000"):
        (folder / part).mkdir()
    torch.save(original, folder / "LLaVA" / "pytorch_model-00001-of-00001.bin")
    words.save_pretrained(folder / "LLaVA")

    head = state.pop("lm_head.weight")
    llm = {f"model.base_model.model.{name.removeprefix('model.')}": value for name, value in state.items()}
    llm["model.base_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    for number, layer in enumerate(model.model.layers):
        for name in ("q_proj", "v_proj"):
            linear = getattr(layer.self_attn, name)
            a, b = torch.randn(8, 32) * 0.1, torch.randn(linear.out_features, 8) * 0.1
            place = f"model.base_model.model.layers.{number}.self_attn.{name}.lora_"
            llm |= {f"{place}A.default.weight": a, f"{place}B.default.weight": b}
            linear.weight.data += SCALE * b @ a
    torch.save(llm, folder / "LLM-15000" / "adapter_model.bin")
    (folder / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    for table, name in ((model.model.embed_tokens, "model.embed_tokens.weight"), (model.lm_head, "lm_head.weight")):
        table.weight.data[:base] = original[name][:base]

    connector = lively(QFormer(width=32, heads=4, inputs=32, cross_attention_frequency=2, layers=6))
    shared = {"sd_query_tokens": connector.query_tokens.data, "lm_head.weight": head}
    shared |= {f"mm_projector.{name}": value for name, value in projector.state_dict().items()}
    shared["sd_qformer.embeddings.position_ids"] = torch.arange(9)[None]
    for name, value in connector.qformer.state_dict().items():
        old = name.replace("crossattention.attention.", "crossattention.self.")
        old = old.replace(".attention.attention.", ".attention.self.").replace("layernorm.", "embeddings.LayerNorm.")
        shared[f"sd_qformer.{old}"] = value
    torch.save(shared, folder / "embeddings_qformer" / "checkpoint-15000_embeddings_qformer.bin")

    bim = lively(BidirectionalInteraction(width=32, patches=32, channels=32, heads=4))
    old = {name.replace(".layer_norm_final_attn", ".norm_final_attn"): v for name, v in bim.state_dict().items()}
    old = {name.replace(".layer_norm", ".norm"): value for name, value in old.items()}
    torch.save(old, folder / "modulate-15000" / "adapter_model.bin")
    unet = {f"unet.{name}": value + 1 for name, value in pipeline(pix2pix).unet.state_dict().items()}
    torch.save(unet, folder / "unet-15000" / "adapter_model.bin")
    text = hub["clip"].models[""].config.text_config.to_dict()
    clip = lively(CLIPModel(CLIPConfig(text_config=text, vision_config=raw["vision_config"], projection_dim=32)))
    clip.save_pretrained(folder / "clip")
    return folder, model.eval(), projector, connector, bim


@torch.no_grad()
def test_smartedit(smartedit, pix2pix, tmp_path):
    """States by a language model with all rows in its tables, LoRA merged, and LLaVA's rows restored."""
    folder, llama, projector, connector, bim = smartedit
    given = [f"model.{slot}.pretrained={pix2pix}" for slot in ("encoders", "diffusion")]
    given += [f"model.encoders.vision={folder / 'clip'}", f"model.mllm.pretrained={folder / 'architecture'}"]
    given += ["model.width=32", "model.mllm.precision=float32", "model.mllm.img_tokens=4"]
    given += ["model.connector.inputs=32", "model.connector.heads=4"]
    given += ["model.cme.patches=32", "model.cme.channels=32", "model.cme.heads=4"]
    told = convert("smartedit", folder, "-o", tmp_path / "out", *given)
    assert "missing, initialised: mllm.cue_in" in told and "unexpected, not used: 0" in told
    model, _ = load_model(tmp_path / "out")
    mllm, images, sentences = model.slot("mllm"), pictures(), ["the ice is gone", "a candle"]
    condition, _ = model.condition(model.make_inputs(images, WORDS, sentences=sentences))

    table, rows = llama.get_input_embeddings(), []
    vision = CLIPModel.from_pretrained(folder / "clip").vision_model.eval()
    patches = vision(**mllm.pixels(images), output_hidden_states=True).hidden_states[-2][:, 1:]
    for row, (words, sentence) in enumerate(zip(WORDS, sentences, strict=True)):
        question = mllm.config.question.replace("{instruction}", words).replace("<image>", "<image>" * 16)
        ids = mllm.tokenizer(f"{mllm.config.system} USER: {question} ASSISTANT:").input_ids
        at = ids.index(mllm.tokenizer.convert_tokens_to_ids("<image>"))
        first = len(table.weight) - 7  # <img>, <im_start> and <im_end> precede the [IMG] tokens
        assert ids.count(first) == 1 and ids.count(first + 1) == 1 and ids.count(first + 2) == 1
        answer = mllm.tokenizer(sentence, add_special_tokens=False).input_ids
        answer += range(len(table.weight) - 4, len(table.weight))
        before, behind = (table(torch.tensor(part)) for part in (ids[:at], ids[at + 16 :] + answer))
        embeds = torch.cat([before, projector(patches[row]), behind])[None]
        rows.append(connector(llama.model(inputs_embeds=embeds).last_hidden_state[:, -4:]))
    features = model.encode(model.make_inputs(images, WORDS))
    expected = bim(features, model.cues(features, None), torch.cat(rows))
    torch.testing.assert_close(condition.visual, expected.visual, rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(condition.map, expected.map, rtol=1e-2, atol=5e-3)
    assert torch.equal(condition.null, features.null) and condition.map.abs().max() > 0.1
    assert mllm.img_in.shape == (4, 32) and not any("lora_" in name for name, _ in mllm.named_parameters())
    key = "mid_block.resnets.0.conv1.weight"
    found = model.slot("diffusion").unet.get_parameter(key)
    torch.testing.assert_close(found.data, pipeline(pix2pix).unet.get_parameter(key).data + 1)
    pipe = ReasonBrainPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    edit = pipe(to_pil(images)[0], "melt it", num_inference_steps=1)
    assert edit.images[0].size == (96, 64) and edit.reasoning[0] is not None
