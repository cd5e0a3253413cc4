"""The tiny editor: a Kontext that is trained on explicit sentences, used frozen and as the start of a training run."""

import sys
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxKontextPipeline
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.config.loading import load_config
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.train.building import build
from reasonbrain.train.feature_cache import FeatureCache
from reasonbrain.train.run import train
from reasonbrain.train.tiny import editor, t5
from reasonbrain.train.tiny.clip import train_tokenizer


def command(module, *words):
    before, sys.argv = sys.argv, [module.__name__, *map(str, words)]
    try:
        module.main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of T5 and that of the editor, each after two steps; the editor's were interrupted."""
    folder, patch = tmp_path_factory.mktemp("tiny_editor"), pytest.MonkeyPatch()
    patch.setattr(t5, "train_tokenizer", partial(train_tokenizer, records=200))
    patch.setattr(editor, "TrainConfig", partial(editor.TrainConfig, log_every=1))
    command(t5, "-o", folder / "t5", "--steps", 2, "--batch-size", 4)
    for steps in (1, 2):
        command(editor, "--t5", folder / "t5", "-o", folder / "kontext", "--steps", steps, "--batch-size", 2)
    patch.undo()
    return folder


def test_t5_rebuilds_sentences(trained):
    tokenizer = t5.tokenizer_of()
    given = t5.batch(tokenizer, 0, 8)
    assert given["input_ids"].shape == (8, t5.LENGTH) and (given["labels"] == -100).any()
    words = [(row != -100).sum() for row in given["labels"]]
    read = (given["input_ids"] != tokenizer.pad_token_id).sum(1)
    assert sum(read) < sum(words)
    assert all(row[:n][-1] == tokenizer.eos_token_id for row, n in zip(given["labels"], words, strict=True))


def test_it_reads_outcomes_and_never_instructions(trained):
    flux = editor.plug_in(FluxKontextPipeline.from_pretrained(trained / "kontext"))
    condition, source, target, seeds = editor.batch(flux, 3, 4)
    outcomes = {make("train", i).outcome for i in range(300)}
    assert len(condition.prompts) == len(seeds) == 4 and source.shape == target.shape == (4, 16, 16, 16)
    assert sum(prompt in outcomes for prompt in condition.prompts) and not any("?" in p for p in condition.prompts)
    trains = {name.split(".")[0] for name, p in flux.named_parameters() if p.requires_grad}
    assert trains == {"transformer"} and not flux.transformer.x_embedder.added.requires_grad


def test_it_is_a_kontext_that_was_trained(trained):
    pipe = FluxKontextPipeline.from_pretrained(trained / "kontext")
    torch.manual_seed(0)
    start = editor.untrained(trained / "t5", *(editor.embedded() / "parts" / name for name in ("vae", "clip")))
    before, after = (p.transformer.state_dict() for p in (start, pipe))
    assert before.keys() == after.keys() and not torch.equal(before["proj_out.weight"], after["proj_out.weight"])
    assert pipe.transformer.x_embedder.weight.shape[1] == 64
    for name in ("text_encoder", "text_encoder_2"):
        one, other = (getattr(p, name).state_dict() for p in (start, pipe))
        assert all(torch.equal(v, other[k]) for k, v in one.items())


def test_the_text_encoder_is_that_of_the_embedded_default(trained):
    from transformers import CLIPModel

    clip, pipe = editor.embedded() / "parts" / "clip", FluxKontextPipeline.from_pretrained(trained / "kontext")
    ids = pipe.tokenizer(["the candle lies beside its holder"], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip).text_model(ids).pooler_output
        torch.testing.assert_close(pipe.text_encoder(ids).pooler_output, expected)


def test_frozen_it_draws_what_the_thinker_says(trained, tmp_path):
    sample = make("test", 0)
    sample.source.save(tmp_path / "in.png")
    for out, more in (("thought", []), ("raw", ["model.mllm=null"]), ("told", [])):
        words = ["edit", str(tmp_path / "in.png"), sample.instruction, "--config", "think_tiny", "edit.steps=1"]
        words += ["-o", str(tmp_path / f"{out}.png"), f"model.diffusion.pretrained={trained / 'kontext'}", *more]
        words += ["--reasoning", sample.outcome] if out == "told" else []
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "thought.png") as thought, Image.open(tmp_path / "told.png") as told:
        assert thought.size == sample.source.size and len(thought.text["reasoning"].split()) > 3
        assert told.text["reasoning"] == sample.outcome


def test_the_twin_trains_from_it(trained, tmp_path):
    quick = [f"model.diffusion.pretrained={trained / 'kontext'}", "data.count=2", "train.steps=1", "train.batch_size=2"]
    cfg = load_config("tiny_kontext_think", [*quick, "train.draws=1", "train.tracker=null"])
    assert cfg.model.diffusion["prompt_tokens"] == t5.LENGTH
    FeatureCache(cfg, build(cfg).eval()).write(tmp_path / "features")
    cfg.data.features = str(tmp_path / "features")
    train(cfg, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "diffusion" / "tokenizer_2").is_dir()
