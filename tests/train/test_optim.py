"""Learning rates: the schedule, settings per slot, and the optimizers."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from reasonbrain.config.schema import SlotTrainConfig, TrainConfig
from reasonbrain.registry import SLOTS
from reasonbrain.train.distributed.flat import FlatMuon, Piece
from reasonbrain.train.optim import (
    is_hidden,
    learning_rate,
    make_optimizers,
    param_groups,
    set_rates,
    trained_parameters,
)


def test_the_learning_rate_has_a_warm_up_and_a_cosine_decay():
    cfg = TrainConfig(steps=110, lr=2.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(cfg, s) for s in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10] == 2.0 and rates[110] == pytest.approx(0.2)
    assert rates[60] == pytest.approx(2 * (0.1 + 0.9 / 2)) and sorted(rates[10:], reverse=True) == rates[10:]
    assert learning_rate(cfg, 200) == pytest.approx(0.2)  # a run that is made longer
    assert learning_rate(TrainConfig(lr=2.0, warmup=0), 0) == 2.0


def test_the_rate_reaches_the_optimizer_and_biases_do_not_decay():
    trained = dict(nn.Linear(4, 2).named_parameters())
    (optimizer,) = make_optimizers(trained, TrainConfig(weight_decay=0.3, lr=0.1, warmup=2))
    assert set_rates([optimizer], 0) == {"": 0.05}
    groups = optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0] and [g["lr"] for g in groups] == [0.05, 0.05]
    assert [p.ndim for g in groups for p in g["params"]] == [2, 1]


def test_muon_steps_of_hidden_matrices_are_orthogonal():
    """All singular values of a step are near 0.2 sqrt(4) x rate, whereas those of a gradient are far apart."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    trained = {f"blocks.{n}": p for n, p in module.named_parameters()} | {"head": nn.Parameter(torch.randn(2, 4))}
    adamw, muon = optimizers = make_optimizers(trained, TrainConfig(lr=0.1, warmup=0, optimizer="muon", weight_decay=0))
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(m.weight) for m in module]
    assert sum(len(g["params"]) for g in adamw.param_groups) == 3
    weight = module[0].weight
    before, spread = weight.detach().clone(), torch.diag(torch.tensor([1.0, 1e-1, 1e-2, 1e-2]))
    for p in trained.values():
        p.grad = spread.clone() if p is weight else torch.zeros_like(p)
    set_rates(optimizers, 0)
    muon.step()
    step = torch.linalg.svdvals((weight - before).detach()) / (0.1 * 0.2 * 2)
    assert step.max() < 1.3 and step.min() > 0.2  # 100 times apart before


def test_a_step_on_partitions_equals_torchs():
    """Three steps of one process with two matrices and a vector in flat tensors, compared with whole tensors."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    cfg = TrainConfig(optimizer="muon", lr=0.1, warmup=0, weight_decay=0.3)
    torch.manual_seed(0)
    whole = {"blocks.0.a": torch.randn(4, 6), "blocks.1.b": torch.randn(5, 3), "blocks.0.bias": torch.randn(7)}
    whole = {name: nn.Parameter(p) for name, p in whole.items()}
    adamw, muon = optimizers = make_optimizers(whole, cfg)
    matrices = [whole["blocks.0.a"], whole["blocks.1.b"]]
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in matrices]))
    vector = nn.Parameter(whole["blocks.0.bias"].detach().clone())
    groups = param_groups(whole, cfg)
    for group in groups:
        group["params"] = [flat if group["kind"] == "hidden" else vector]
    parts = FlatMuon(groups)
    parts.matrices = {flat: [(torch.Size((4, 6)), Piece(flat, 0, 0, 24)), (torch.Size((5, 3)), Piece(flat, 24, 0, 15))]}
    for step in range(3):
        for p in whole.values():
            p.grad = torch.randn_like(p)
        flat.grad, vector.grad = torch.cat([p.grad.flatten() for p in matrices]), whole["blocks.0.bias"].grad
        set_rates([*optimizers, parts], step)
        for optimizer in (adamw, muon, parts):
            optimizer.step()
    dist.destroy_process_group()
    torch.testing.assert_close(flat, torch.cat([p.detach().flatten() for p in matrices]))
    torch.testing.assert_close(vector, whole["blocks.0.bias"])


def test_adapters_vectors_and_parameters_outside_blocks_use_adamw():
    matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    assert is_hidden("cme.blocks.0.visual.to_q.weight", matrix)
    assert not is_hidden("cme.blocks.0.visual.norm.weight", vector)
    assert not is_hidden("connector.queries", matrix) and not is_hidden("mllm.layers.1.to_q.lora_A.weight", matrix)


def test_a_slot_may_have_its_own_rate_decay_and_warm_up(model):
    own = {"cme": SlotTrainConfig(lr=0.5, warmup=10), "mllm": SlotTrainConfig(weight_decay=0.0)}
    cfg = TrainConfig(lr=0.1, warmup=2, weight_decay=0.3, slots=own)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizers = make_optimizers(trained, cfg)
    rates = set_rates(optimizers, 1)
    assert rates["cme"] == 0.5 * 2 / 10 and {r for s, r in rates.items() if s != "cme"} == {0.1}
    assert set(rates) == {s.replace(".", "_") for s in SLOTS}
    decays = {(g["slot"], g["kind"]): g["weight_decay"] for g in optimizers[0].param_groups}
    assert decays["mllm", "matrices"] == 0 and decays["cme", "matrices"] == 0.3 and decays["cme", "vectors"] == 0
    assert sum(len(g["params"]) for g in optimizers[0].param_groups) == len(trained)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_published_weights_may_have_their_own_rate(build, optimizer):
    """Of FLUX its transformer, of the MLLM its adapters; the modules added to both have the rate of the slot."""
    slots = {"diffusion": SlotTrainConfig(published_lr=0.25), "mllm": SlotTrainConfig(lr=0.5, published_lr=0.125)}
    cfg = TrainConfig(lr=1.0, warmup=0, optimizer=optimizer, slots=slots)
    model = build()
    trained = trained_parameters(model, cfg)
    optimizers = make_optimizers(trained, cfg)
    named = {"diffusion/published": 0.25, "diffusion": 1.0, "mllm/published": 0.125, "mllm": 0.5}
    assert {k: v for k, v in set_rates(optimizers, 0).items() if k.split("/")[0] in slots} == named
    rates = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    for name, p in trained.items():
        slot, _, inside = name.removeprefix("parts.").partition(".")
        published = (slot, inside.split(".")[0]) in {("diffusion", "transformer"), ("mllm", "model")}
        assert rates[id(p)] == named.get(f"{slot}/published" if published else slot, 1.0), name


def test_a_slot_can_be_frozen(build):
    model = build()
    trained = trained_parameters(model, TrainConfig(slots={"frce_patch": SlotTrainConfig(train=False)}))
    assert trained and not any("frce_patch" in n for n in trained)
    assert not any(p.requires_grad for p in model.slot("frce.patch").parameters())


def test_eight_bit_adamw_steps_like_adamw():
    def run(name):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(64, 128))
        (optimizer,) = make_optimizers({"w": weight}, TrainConfig(optimizer=name, lr=1e-2, warmup=0, steps=1000))
        for step in range(10):
            set_rates([optimizer], step)
            weight.grad = weight.detach() - 1
            optimizer.step()
        return weight.detach()

    pytest.importorskip("bitsandbytes")
    eight, full = run("adamw_8bit"), run("adamw")
    assert 0 < (eight - full).abs().mean() < 2e-3  # ten steps of 1e-2
