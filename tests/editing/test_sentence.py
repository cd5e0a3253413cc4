"""E_T reads the MLLM's sentence (``model.encoders.reads=sentence``): in training, in edits and in batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from reasonbrain.config.loading import load_config
from reasonbrain.editing.batch import scheduler as edits
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.train.run import train

READS = "model.encoders.reads=sentence"
ALONE = [
    READS,
    "model.mllm.img_tokens=0",
    "model.mllm.lora_rank=0",
    "model.connector=null",
]
QUICK = ["data.count=8", "train.steps=2", "train.batch_size=4", "train.warmup=1", "train.log_every=1"]


@pytest.fixture(scope="module")
def reader(build, wake):
    return wake(build(READS))


@torch.no_grad()
def test_text_tokens_come_from_the_sentence_and_object_tokens_from_the_instruction(reader, inputs):
    said = reader.slot("mllm").reason(inputs)
    assert len(set(said)) == 3 and said != inputs.instructions
    found = reader.encode(inputs)
    of_sentence = reader.slot("encoders")(replace(inputs, sentences=said))
    of_instruction = reader.slot("encoders")(replace(inputs, sentences=inputs.instructions))
    for name in ("text", "text_mask", "pooled", "objects", "patches"):
        assert torch.equal(getattr(found, name), getattr(of_sentence, name)), name
    assert not torch.equal(found.text, of_instruction.text) and not torch.equal(found.pooled, of_instruction.pooled)
    assert torch.equal(found.objects, of_instruction.objects)


@torch.no_grad()
def test_the_condition_depends_on_the_sentence_and_not_on_the_instruction(build, wake, inputs):
    """A language model whose layers add nothing goes from each token to the next in its table, for any prompt. So the
    sentence can be changed without the instruction, and the other way round."""
    model = wake(build(*ALONE))
    language = model.slot("mllm").model
    for layer in language.model.language_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    table = language.get_input_embeddings().weight
    language.get_output_embeddings().weight = nn.Parameter(table.roll(1, 0))

    def told(words):
        asked = replace(inputs, instructions=words)
        return model.slot("mllm").reason(asked), model.condition(asked)[0]

    said, before = told(inputs.instructions)
    assert len(set(said)) == 1 and said[0]
    same, after = told(["melt it", "what if it grew dark?", "burn the candle"])
    assert same == said
    for name in ("visual", "textual", "pooled"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    language.get_output_embeddings().weight = nn.Parameter(table.roll(2, 0))
    other, after = told(inputs.instructions)
    assert other != said
    assert not torch.equal(before.textual, after.textual) and not torch.equal(before.pooled, after.pooled)


@pytest.mark.parametrize(
    "words",
    [[READS], ALONE, ALONE[:3], [READS, "train.bf16=true", "train.checkpointing=[mllm]", "train.optimizer=muon"]],
    ids=["with the [IMG] tokens", "instead of them", "connector without input", "bf16, checkpointed"],
)
def test_trains_saves_and_resumes(settings, tmp_path, words):
    """Two steps, then a third. The checkpoint records what E_T reads, and gives the same edits after a reload."""
    cfg = settings(*QUICK, *words)
    train(cfg, tmp_path)
    cfg.train.steps = 3
    train(cfg, tmp_path)
    lines = [line for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"lm"' in line]
    assert len(lines) == 3 and all(('"lm": 0.0' in line) == ("model.mllm.img_tokens=0" in words) for line in lines)
    pipe = ReasonBrainPipeline.from_pretrained(tmp_path)
    assert pipe.encoders.config.reads == pipe.settings.model.encoders["reads"] == "sentence"
    assert any(p.requires_grad for p in pipe.mllm.parameters()) == ("model.mllm.img_tokens=0" not in words)
    sample = make("test", 4)
    pipe.save_pretrained(tmp_path / "again")
    again = ReasonBrainPipeline.from_pretrained(tmp_path / "again")
    pictures = [
        p(sample.source, sample.instruction, generator=torch.Generator().manual_seed(1), output_type="pt").images[0]
        for p in (pipe, again)
    ]
    assert torch.equal(*pictures)


def test_gradients_reach_what_trains_without_img_tokens(build, wake, inputs):
    model = wake(build(*ALONE)).train()
    model(inputs, torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16), range(3))["loss"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    assert model.slot("encoders").text_adapter.weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def shipped():
    """The shipped parts, whose MLLM generates whole sentences. The other slots are untrained."""
    cfg = load_config("tiny", [*ALONE, "edit.steps=1"])
    torch.manual_seed(0)
    pipe = ReasonBrainPipeline.from_model(ReasonBrain.from_config(cfg.model).eval(), cfg)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_row_does_not_depend_on_its_batch(shipped, monkeypatch):
    """Bit-identical, also when other sentences of the batch are longer. The instructions are padded to one length; the
    sentences have several."""
    samples = [make("test", i) for i in range(12)]
    samples = [s for s in samples if shipped.mllm.text_length(s.instruction) == 32][:6]
    rows = [{"id": s.id, "image": np.asarray(s.source), "instruction": s.instruction} for s in samples]
    alone = [next(iter(shipped.batch([{**row, "reasoning": True}], 4))).reasoning for row in rows]
    assert len({len(said.split()) for said in alone}) > 2  # sentences end at different steps of the generation

    monkeypatch.setattr(edits, "to_pil", lambda pictures: [pictures[0].numpy()])
    pictures = {r.row.id: r.image for r in shipped.batch(rows, 4)}
    assert len({p.tobytes() for p in pictures.values()}) == 6
    for subset in (rows[::-1], rows[2:5], rows[1:2], rows[5:]):
        for result in shipped.batch(subset, 4):
            assert (result.image == pictures[result.row.id]).all(), result.row.id
    said = {r.row.id: r.reasoning for r in shipped.batch([{**row, "reasoning": True} for row in rows], 4)}
    assert [said[row["id"]] for row in rows] == alone


def test_reads_is_checked(settings, build):
    with pytest.raises(UserError, match="model.encoders.reads: 'sentence' is generated by the MLLM, but model.mllm"):
        settings(READS, "model.mllm=null")
    with pytest.raises(UserError, match="model.encoders.reads: 'novel' is not one of instruction, sentence"):
        build("model.encoders.reads=novel")


def test_the_default_of_reads_is_not_in_the_configuration(settings):
    """Ablation runs are found by the hash of their configuration, so earlier ones must keep their hash."""
    assert "reads" not in settings().model.encoders
