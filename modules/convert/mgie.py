"""MGIE (arXiv:2309.17102): the authors' folder, with LLaVA-7B v1 as their README makes it.

    mgie_7b/mllm.pt                          trained tables, their [IMG] rows and the edit head
    mgie_7b/unet.pt                          the UNet, in diffusers' names
    LLaVA-7B-v1/pytorch_model-*.bin          LLaVA v1, and its tokenizer

The vision tower, which LLaVA v1 does not hold, is CLIP's; VAE and noise schedule are those of model.diffusion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPModel, GenerationConfig

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError, first_line
from reasonbrain.model import ReasonBrain, build_plugin
from reasonbrain.modules.common.published import load_published, load_tokenizer
from reasonbrain.modules.convert.tensors import Report, empty, fill, read, take
from reasonbrain.registry import plugin

LLAVA_V1 = "liuhaotian/LLaVA-Lightning-7B-delta-v1-1"  # its architecture
CLIP = "openai/clip-vit-large-patch14"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
QUESTION = "what will this image be like if '{instruction}'\n<im_start><image><im_end>"
TOKENS = ("<image>", "<im_start>", "<im_end>")  # the first stands for <im_patch>
LANGUAGE = "model.model.language_model."


def convert(source: Path, overrides: tuple[str, ...], report: Report) -> tuple[Config, ReasonBrain]:
    """The configuration and the model of the authors' folder. ``model.encoders.vision`` among the overrides is where
    the vision tower is. Raises UserError like ``fill``, and for a file that is missing."""
    vision = next((o.partition("=")[2] for o in overrides if o.startswith("model.encoders.vision=")), CLIP)
    overrides = tuple(o for o in overrides if not o.startswith("model.encoders.vision="))
    cfg = load_config("mgie", [f"model.mllm.pretrained={LLAVA_V1}", *overrides])
    params: dict[str, Any] = {name: slot_config(cfg.model, name) for name in ("mllm", "connector", "diffusion")}
    params["mllm"] |= {"system": SYSTEM, "question": QUESTION}
    trained, unet = (read(_file(source, name)) for name in ("mllm.pt", "unet.pt"))
    llava_files = sorted(source.glob("**/pytorch_model*.bin"))
    if not llava_files:
        raise UserError(f"'{source}' has no pytorch_model-*.bin of LLaVA-7B v1")
    base = {name: tensor for file in llava_files for name, tensor in read(file).items()}

    head = empty("connector", params["connector"], cfg.model.width)
    fill("connector", head, take(trained, "edit_head."), report)

    mllm = empty("mllm", params["mllm"], cfg.model.width)
    found = tables(trained, len(mllm.img_in)) | language(base) | tower(vision)
    fill("mllm", mllm, found, report, ("cue_in",))
    report.unused += [f"mllm.pt {name}" for name in trained] + [f"LLaVA {name}" for name in base]
    mllm.tokenizer = tokenizer(llava_files[0].parent, TOKENS)
    mllm.image_processor = mllm.stand_in_processor(mllm.model.config.vision_config)
    ends = {"eos_token_id": mllm.tokenizer.eos_token_id, "pad_token_id": mllm.tokenizer.pad_token_id}
    mllm.model.generation_config = GenerationConfig(**ends, no_repeat_ngram_size=3)  # as the authors generate

    made = dict(params["diffusion"])
    sd = build_plugin("diffusion", plugin("diffusion", made.pop("name")), cfg.model.width, made)
    fill("diffusion.unet", sd.unet, unet, report)  # type: ignore[arg-type]
    for part in ("mllm", "diffusion"):
        params[part]["pretrained"] = None
    return cfg, ReasonBrain({"mllm": mllm, "connector": head, "diffusion": sd}, cfg.model.width).eval()


def _file(source: Path, name: str) -> Path:
    found = sorted(source.glob(f"**/{name}"))
    if not found:
        raise UserError(f"'{source}' has no {name} of MGIE")
    return found[0]


def tables(trained: dict[str, Tensor], img_tokens: int) -> dict[str, Tensor]:
    """The trained tables, whose last rows are those of the [IMG] tokens, under this package's names. A newly trained
    mllm.pt has no ``emb``, which repeats these rows. Removes them from ``trained``."""
    trained.pop("emb", None)
    found = {}
    for name, table, rows in (
        ("model.embed_tokens.weight", f"{LANGUAGE}embed_tokens.weight", "img_in"),
        ("lm_head.weight", "model.lm_head.weight", "img_out"),
    ):
        if name in trained:
            both = trained.pop(name)
            found[table], found[rows] = both[:-img_tokens], both[-img_tokens:]
    return found


def language(base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The blocks and the projector of LLaVA v1, under this package's names. Removes them from ``base``, and the tables,
    which MGIE trains."""
    projector = take(base, "model.mm_projector.")
    found = {f"model.model.multi_modal_projector.linear_1.{name}": value for name, value in projector.items()}
    for name in [n for n in base if n.endswith("rotary_emb.inv_freq")]:  # computed now
        base.pop(name)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        base.pop(name, None)
    return found | {LANGUAGE + name: value for name, value in take(base, "model.").items()}


def tower(vision: str) -> dict[str, Tensor]:
    """The vision tower of a CLIP model, under this package's names."""
    state = load_published(CLIPModel, vision).vision_model.state_dict()
    return {f"model.model.vision_tower.{name}": value for name, value in state.items()}


def tokenizer(folder: Path, tokens: tuple[str, ...]) -> Any:
    """LLaVA's tokenizer with further tokens. Raises UserError if it has some of them already."""
    try:
        found = load_tokenizer(folder)
    except (OSError, ValueError) as e:
        raise UserError(f"'{folder}' has no tokenizer of LLaVA: {first_line(e)}") from None
    before = len(found)
    found.add_tokens(list(tokens), special_tokens=True)
    if found.convert_tokens_to_ids(list(tokens)) != list(range(before, before + len(tokens))):
        raise UserError(f"the tokenizer in '{folder}' has some of {', '.join(tokens)} already; give LLaMA's own")
    found.pad_token = found.pad_token or found.unk_token
    return found
