"""`reasonbrain export`: merged adapters give the same edit, and trained tensors load on top of published parts."""

import shutil

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.cli import main
from reasonbrain.config.loading import dump_config, load_config
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.train import checkpoints
from reasonbrain.train.building import build, note_start
from reasonbrain.train.export import export, merge_adapters
from reasonbrain.train.optim import trained_parameters

LORA = ["model.diffusion.trained=lora", "model.diffusion.lora_rank=4"]


@pytest.fixture(scope="module")
def published(parts, settings, tmp_path_factory):
    """A folder with ``clip``, ``mllm`` and ``flux``, the last in the layout of a FLUX repository."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("clip", "mllm"):
        shutil.copytree(parts / name, folder / name)
    known = settings().model.diffusion["architecture"]
    torch.manual_seed(5)
    FluxTransformer2DModel.from_config(known["transformer"]).save_pretrained(folder / "flux" / "transformer")
    AutoencoderKL.from_pretrained(parts / "vae").save_pretrained(folder / "flux" / "vae")
    FlowMatchEulerDiscreteScheduler.from_config(known["scheduler"]).save_pretrained(folder / "flux" / "scheduler")
    return folder


def places(folder):
    """Overrides that name the published parts."""
    names = {"encoders": "clip", "mllm": "mllm", "diffusion": "flux"}
    return [f"model.{slot}.pretrained={folder / name}" for slot, name in names.items()]


def make_run(cfg, folder):
    """A run in whose last checkpoint every trained tensor differs from its initial value, and RUN/model."""
    trained = trained_parameters(build(cfg), cfg.train)
    torch.manual_seed(6)
    moved = {f"average/{n}": p.detach() + 0.05 * torch.randn_like(p) for n, p in trained.items()}
    new = checkpoints.folder_of(folder, 3).with_suffix(".new")
    checkpoints.shard(moved, new, 0, 1)
    checkpoints.finish(folder, 3, new, keep=1)
    (folder / "config.yaml").write_text(dump_config(cfg))
    export(folder, folder / "model")


@pytest.fixture(scope="module")
def run(published, settings, tmp_path_factory):
    """A run whose MLLM and FLUX trained with LoRA on published weights. Tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    none = [f"model.diffusion.{key}=null" for key in ("architecture", "autoencoder")]
    make_run(settings(*LORA, *none, *places(published)), folder)
    return folder


@pytest.mark.long
def test_the_run_goes_on_while_it_is_exported(settings, tmp_path, monkeypatch):
    """Each checkpoint is removed after it was chosen, and while it is read; the newest that was read whole is exported.
    Without that check, a removed folder has no tensors, and the initial weights were exported."""
    cfg, run = settings(), tmp_path / "run"
    make_run(cfg, run)
    names = [name for what, name, _ in checkpoints.read(checkpoints.last(run)) if what == "average"]
    shapes = {name: build(cfg).get_parameter(name).shape for name in names}
    choose, steps = checkpoints.last, iter((4, 5))

    def save(step):
        new = checkpoints.folder_of(run, step).with_suffix(".new")
        for i, some in enumerate((names[::2], names[1::2])):
            checkpoints.shard({f"average/{n}": torch.full(shapes[n], float(step)) for n in some}, new, i, 2)
        checkpoints.finish(run, step, new, keep=1)

    def chosen(run):
        folder = choose(run)
        if (step := next(steps, None)) is not None:
            save(step)
        return folder

    def reading(folder):
        for i, found in enumerate(read(folder)):
            yield found
            if i == 0:
                save(checkpoints.step_of(folder) + 1)

    read = checkpoints.read
    monkeypatch.setattr(checkpoints, "last", chosen)
    monkeypatch.setattr(checkpoints, "read", reading)
    export(run, tmp_path / "model")
    model, _ = load_model(tmp_path / "model")
    assert {model.get_parameter(name).unique().item() for name in names} == {5.0}


def test_other_initial_weights_are_named(settings, tmp_path, caplog):
    """Frozen weights come from train.start. The same model saved again is the same."""
    cfg, run = settings(f"train.start={tmp_path / 'start'}", "train.slots.mllm.train=false"), tmp_path / "run"
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        save_model(ReasonBrain.from_config(cfg.model), cfg, tmp_path / "start")
        if not run.exists():
            make_run(cfg, run)
            note_start(cfg, run)
        caplog.clear()
        export(run, tmp_path / "model")
        named = "not those that the run was started with" in caplog.text
        assert named == bool(seed)


def command(*args):
    return CliRunner().invoke(main, ["export", *map(str, args)])


@pytest.fixture
def small(run, tmp_path):
    """The run exported with --adapters."""
    assert command(run, "-o", tmp_path / "small", "--adapters").stdout == f"{tmp_path / 'small'}\n"
    return tmp_path / "small"


def edit(model, cfg, records):
    pipe = ReasonBrainPipeline.from_model(model, cfg)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    sample = records[1]
    return pipe(sample.source, sample.instruction, generator=generator, preserve=False, output_type="pt").images[0]


def test_a_merged_model_gives_the_same_edit_without_adapters(run, tmp_path, records):
    assert command(run, "-o", tmp_path, "--merged").exit_code == 0
    (beside, _), (merged, cfg) = load_model(run), load_model(tmp_path)
    assert cfg.model.mllm["lora_rank"] == 0 and cfg.model.diffusion["trained"] == "frozen"
    before, after = beside.state_dict(), merged.state_dict()
    assert len([n for n in before if "lora_" in n]) > 20 and not [n for n in after if "lora_" in n]
    plain = {n.replace(".base_layer", ""): v for n, v in before.items() if "lora_" not in n}
    adapted = {n.replace(".base_layer", "") for n in before if n.endswith("base_layer.weight")}
    assert plain.keys() == after.keys()
    assert {n for n, v in plain.items() if not torch.equal(v, after[n])} == adapted
    for name in adapted:
        stem = name.removesuffix("weight")
        scale = 2.0 if name.startswith("parts.mllm") else 1.0  # alpha / rank
        delta = scale * before[f"{stem}lora_B.default.weight"] @ before[f"{stem}lora_A.default.weight"]
        assert torch.allclose(after[name], plain[name] + delta, atol=1e-6), name

    picture = edit(merged, cfg, records)
    torch.testing.assert_close(picture, edit(beside, cfg, records), rtol=0, atol=1e-4)
    for slot in ("mllm", "diffusion"):  # both sets of adapters matter to the picture far more than that
        off = {n: torch.zeros_like(v) for n, v in before.items() if n.startswith(f"parts.{slot}") and "lora_B" in n}
        without, _ = load_model(run)
        without.load_state_dict(before | off)
        assert (edit(without, cfg, records) - picture).abs().max() > 1e-3, slot


def test_adapters_contain_trained_tensors_and_give_the_same_model(run, small, records):
    whole, again = load_model(run)[0], load_model(small)[0]
    assert not again.training
    before, after = whole.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[n]) and v.dtype == after[n].dtype for n, v in before.items())
    assert torch.equal(*(edit(*load_model(folder), records) for folder in (small, run)))

    held = set()
    for file in small.rglob("*.safetensors"):
        held |= {f"parts.{file.parent.name}.{name}" for name in load_file(file)}
    assert held == {n for n, p in whole.named_parameters() if p.requires_grad}
    assert not (small / "mllm" / "tokenizer.json").exists()


def test_adapters_name_their_published_parts(published, small, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(published, moved)
    model = load_config(str(small / "config.yaml")).model
    assert [model.encoders["pretrained"], model.mllm["pretrained"]] == [str(published / n) for n in ("clip", "mllm")]
    before = load_model(small)[0].state_dict()
    text = (small / "config.yaml").read_text().replace(str(published), str(tmp_path / "gone"))
    (small / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"model\.encoders\.pretrained: folder '.*gone/clip' does not exist"):
        load_model(small)
    after = load_model(small, places(moved))[0].state_dict()
    assert all(torch.equal(v, after[n]) for n, v in before.items())


def test_a_sentence_that_e_t_reads_is_generated_without_adapters(settings, tmp_path):
    """Merging the MLLM's adapters would change it, so only FLUX's can be merged."""
    for rank, refused in ((8, True), (0, False)):
        words = ["model.encoders.reads=sentence", f"model.mllm.lora_rank={rank}"]
        run = tmp_path / str(rank)
        make_run(settings(*LORA, *words), run)
        done = command(run, "-o", run / "merged", "--merged")
        if refused:
            assert done.exit_code == 2 and "model.mllm: its sentence is read" in done.stderr
            assert command(run, "-o", run / "small", "--adapters").exit_code == 0
        else:
            assert done.exit_code == 0 and load_model(run / "merged")[1].model.encoders["reads"] == "sentence"


@pytest.mark.parametrize("slot", ["mllm", "diffusion"])
def test_a_tensor_missing_or_too_many_or_of_another_shape_is_an_error(small, slot):
    file = small / slot / "trained.safetensors"
    good = load_file(file)
    name = next(n for n in good if "lora_B" in n)
    broken = {
        f"lacks 1 trained tensors, e.g. {name}": {n: v for n, v in good.items() if n != name},
        r"holds stray \[3\].*no such tensor": good | {"stray": torch.zeros(3)},
        r"\[1, 7\], which does not fit.*expected": good | {name: torch.zeros(1, 7)},
    }
    for said, tensors in broken.items():
        save_file(tensors, file, metadata={"format": "pt", "shared": "{}"})
        with pytest.raises(UserError, match=said) as e:
            load_model(small)
        assert str(small / slot) in str(e.value) and "\n" not in str(e.value)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="trained.safetensors' is missing or broken"):
        load_model(small)


def test_unpublished_weights_are_stored_completely(settings, tmp_path):
    """A frozen transformer built from its architecture has random weights, which no folder has."""
    make_run(settings(*LORA, "train.slots.connector.train=false"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "small", adapters=True)
    before, after = (load_model(tmp_path / name)[0].state_dict() for name in ("run", "small"))
    assert before.keys() == after.keys() and all(torch.equal(v, after[n]) for n, v in before.items())


def test_bases_in_bfloat16_and_in_four_bits(published, settings, tmp_path, records):
    """In bfloat16 the sum is rounded once. Nothing is merged into nf4, but its adapters can be exported."""
    pytest.importorskip("bitsandbytes")
    overrides = [*LORA, f"model.mllm.pretrained={published / 'mllm'}", "model.mllm.precision=nf4"]
    make_run(settings(*overrides, "model.diffusion.precision=bfloat16"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "small", adapters=True)
    assert torch.equal(*(edit(*load_model(tmp_path / name), records) for name in ("small", "run")))
    model, cfg = load_model(tmp_path / "run")
    save_model(model, cfg, tmp_path / "sharded", max_shard_size="2KB")  # a weight in one file, its scales in another
    before, after = model.state_dict(), load_model(tmp_path / "sharded")[0].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[n]) for n, v in before.items())

    model, cfg = load_model(tmp_path / "run", ["model.mllm=null"])
    before = {n: v.clone() for n, v in model.slot("diffusion").state_dict().items()}  # merging adds in place
    merge_adapters(model, cfg)
    after = model.slot("diffusion").state_dict()
    stem = "transformer.transformer_blocks.0.attn.to_q."
    delta = before[f"{stem}lora_B.default.weight"] @ before[f"{stem}lora_A.default.weight"]
    assert torch.equal(after[f"{stem}weight"], (before[f"{stem}base_layer.weight"] + delta).bfloat16())

    with pytest.raises(UserError, match=r"model\.mllm: its weights are held in 4 bits.*--adapters"):
        export(tmp_path / "run", tmp_path / "merged", merged=True)
    assert not (tmp_path / "merged").exists()


def test_merged_and_adapters_exclude_each_other(run, tmp_path):
    said = command(run, "-o", tmp_path / "out", "--merged", "--adapters")
    assert said.exit_code == 2 and "--merged, --adapters and --lora" in said.stderr and not (tmp_path / "out").exists()


def test_lora_alone(run, records, tmp_path):
    """On the published FLUX, with the rest of what was trained, it gives the same edit."""
    assert command(run, "-o", tmp_path / "lora", "--lora").stdout == f"{tmp_path / 'lora'}\n"
    assert [f.name for f in (tmp_path / "lora").glob("[!.]*")] == ["pytorch_lora_weights.safetensors"]
    model, cfg = load_model(run / "model")
    expected = edit(model, cfg, records)
    for name, p in model.slot("diffusion").transformer.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    pipe = ReasonBrainPipeline.from_model(model, cfg)
    assert (edit(model, cfg, records) - expected).abs().max() > 1e-3
    pipe.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(edit(model, cfg, records), expected, rtol=0, atol=1e-5)
    assert "exclude each other" in command(run, "-o", tmp_path / "two", "--lora", "--merged").stderr
