"""Estimates a training run without weights, data or GPUs: parameters, bytes per GPU and FLOPs per step.

    reasonbrain plan reasonbrain_flux_qwen --gpus 8 --gpu-memory 80      # half a minute on one core

Weights, gradients and optimizer state are counted as engine.py and zero.py hold them: exact for plain torch, without
the padding of ZeRO's partitions. Activations are counted in a pass on fake tensors (dry.py). Tests compare both, and
the peak of a step, with CPU processes. **No estimate has been compared with the memory of a GPU yet.**
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from torch import Tensor

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.data.crop import bucket_sizes
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin import MEMORY_OPTIONS
from reasonbrain.registry import SLOTS, plugin
from reasonbrain.train.batches import micro_batch
from reasonbrain.train.building import without_weights
from reasonbrain.train.optim import check_trains, is_hidden, trained_parameters
from reasonbrain.train.planning.dry import Pass, fake_passes, is_quantised, preparing_parameters

GB = 2**30
CONTEXT, GAPS = 2 * GB, 0.05  # safety margin: CUDA's and NCCL's own memory, and the fraction lost to fragmentation
CHECKPOINTING = ("as configured", "all blocks")
# layouts of the training state; all but "plain" are files in configs/deepspeed
LAYOUTS = ("plain", "zero1", "zero2", "zero3", "zero3_offload")
LEGEND = """\
plain               torch without DeepSpeed: every process holds everything
weights .. buffers  always allocated; optimizer: fp32 master weights, averaged weights and moments; buffers: DeepSpeed's
                    buckets and the parameters that ZeRO-3 gathers
activations         peak of a forward and backward pass, in addition to these; -: not needed to see that it does not fit
step                peak of the optimizer step, in addition to these
start               plain, zero1, zero2: every process builds the whole model, in host memory and then on its GPU;
                    zero3 partitions it while it is built: per slot in host memory, per tensor with train.start
peak                start, or weights .. buffers and the largest of activations, step and autoencoder ({preparing:.2f})
fits                peak below {usable:.2f}: {context:g} are reserved for CUDA and NCCL, {gaps:.0%} for fragmentation
1 GB is 2^30 bytes. All values are predicted: the memory of a GPU has not been measured."""


def stored_bytes(p: Tensor) -> float:
    """Bytes of a parameter. nf4: half a byte per weight, one per 64 (scale), four per 64 * 256 (scale of scales)."""
    return p.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256) if is_quantised(p) else p.element_size())


def moments(name: str, p: Tensor, optimizer: str) -> float:
    """Bytes of the optimizer state of one fp32 parameter."""
    if optimizer == "muon" and is_hidden(name, p):
        return 4 * p.numel()
    if optimizer == "adamw_8bit" and p.numel() >= 4096:  # bitsandbytes: two bytes, and two scales per 256 elements
        return p.numel() * (2 + 8 / 256)
    return 8 * p.numel()


@dataclass(frozen=True)
class Held:
    """Bytes per GPU outside the forward and backward passes.

    optimizer: master weights, average and moments
    buffers: DeepSpeed's buckets, and the parameters that ZeRO-3 gathers
    step: temporary memory of the optimizer step
    start: memory while the model is built: the full model, except under ZeRO-3
    host: bytes of host memory per process
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    step: float
    start: float
    host: float = 0

    def peak(self, pass_: float = 0) -> float:
        """Peak bytes, with ``pass_`` bytes of activations."""
        return max(self.start, self.weights + self.gradients + self.optimizer + self.buffers + max(pass_, self.step))


def zero_section(layout: str) -> dict[str, Any] | None:
    """``zero_optimization`` of a layout's file in configs/deepspeed; None for plain torch."""
    if layout == "plain":
        return None
    file = files("reasonbrain.configs") / "deepspeed" / f"{layout}.json"
    return json.loads(file.read_text(encoding="utf-8"))["zero_optimization"]


def held_bytes(model: ReasonBrain, cfg: Config, zero: dict[str, Any] | None, gpus: int) -> Held:
    """Bytes that one of ``gpus`` processes holds of ``model``. ``zero``: DeepSpeed's ``zero_optimization``, or None."""
    trained = trained_parameters(model, cfg.train)
    whole = sum(map(stored_bytes, model.parameters()))
    count = sum(p.numel() for p in trained.values())
    state = sum(moments(n, p, cfg.train.optimizer) for n, p in trained.items())
    muon = [p.numel() for n, p in trained.items() if cfg.train.optimizer == "muon" and is_hidden(n, p)]
    # foreach AdamW takes the square roots of all second moments at once
    root = 0 if cfg.train.optimizer == "adamw_8bit" else 4 * (count - sum(muon))
    if zero is None:
        gradients = sum(map(stored_bytes, trained.values()))
        averaging = 2 * gradients if gpus > 1 else 0  # processes.average_gradients: a flat copy, then its mean
        return Held(whole, gradients, gradients + state, 0, max(averaging, root), whole)
    stage, bf16 = zero["stage"], cfg.train.bf16
    wide = 2 if bf16 else 4  # bytes per element of DeepSpeed's weights, gradients and buckets
    apart = preparing_parameters(model)
    prepares = sum(stored_bytes(p) for p in model.parameters() if id(p) in apart)
    shared = [p for p in model.parameters() if id(p) not in apart]
    sizes = [wide * p.numel() if bf16 and not is_quantised(p) else stored_bytes(p) for p in shared]
    weights = sum(sizes) / (gpus if stage == 3 else 1)
    gradients = wide * count / (gpus if stage > 1 else 1)
    master = 0 if stage == 3 and not bf16 else 4 * count  # ZeRO-3 in fp32 has no separate master weights
    optimizer = (master + 4 * count + state) / gpus
    step = (root + 4 * sum(muon) + (4 * count if bf16 else 0)) / gpus  # muon's updates, fp32 gradients
    buffers = wide * zero.get("reduce_bucket_size", 5e8) * (2 if stage == 2 and zero.get("overlap_comm") else 1)
    if stage < 3:
        return Held(weights + prepares, gradients, optimizer, buffers, step, whole)
    small = zero.get("stage3_param_persistence_threshold", 1e5)
    prepares += sum(size for p, size in zip(shared, sizes, strict=True) if p.numel() <= small)  # stay gathered
    live = max(zero.get(f"stage3_max_{what}", 1e9) for what in ("live_parameters", "reuse_distance"))
    buffers += min(wide * (live + zero.get("stage3_prefetch_bucket_size", 5e7)), sum(sizes))
    step = min(step, 8 * zero.get("sub_group_size", 1e9))  # groups are stepped one by one
    start = prepares if gpus > 1 else whole  # zero.partitioner
    if "offload_optimizer" not in zero:
        return Held(weights + prepares, gradients, optimizer, buffers, step, start)
    return Held(prepares, 0, 0, buffers, 0, start, host=weights + gradients + optimizer + 4 * count / gpus)


def rows(cfg: Config, model: ReasonBrain, gpus: int, usable: float | None = None) -> tuple[list[dict[str, Any]], float]:
    """Returns a row of bytes per layout and checkpointing choice, and the FLOPs of a step per GPU as configured.

    Passes take most of the time, so with ``usable`` bytes those that decide nothing are left out. A layout that is too
    large even without activations has one row, whose ``activations`` are None and whose ``peak`` is a lower bound. One
    that fits as configured has no row with all blocks checkpointed.
    """
    records = micro_batch(cfg.train, gpus)
    # ZeRO would split the quantisation blocks of 8-bit AdamW
    layouts = LAYOUTS[:1] if cfg.train.optimizer == "adamw_8bit" else LAYOUTS
    needs = {layout: held_bytes(model, cfg, zero_section(layout), gpus) for layout in layouts}
    narrow = {layout: layout != "plain" and cfg.train.bf16 for layout in layouts}
    open_ = [layout for layout in layouts if usable is None or needs[layout].peak() <= usable]

    def peak(layout: str, one: Pass) -> float:
        return needs[layout].peak(max(one.peak, one.preparing))

    def passes_of(kind: bool) -> list[Pass]:
        alike = [layout for layout in open_ if narrow[layout] == kind]
        return fake_passes(
            cfg, records, kind, lambda one: usable is not None and all(peak(layout, one) <= usable for layout in alike)
        )

    passes = {kind: passes_of(kind) for kind in dict.fromkeys(narrow[layout] for layout in open_ or layouts[-1:])}
    made = []
    for layout in layouts:
        bytes_ = asdict(needs[layout])
        if layout not in open_:
            made.append((layout, "", bytes_ | {"activations": None, "preparing": None, "peak": needs[layout].peak()}))
            continue
        for checkpointing, one in zip(CHECKPOINTING, passes[narrow[layout]], strict=False):
            kinds = {"activations": one.peak, "preparing": one.preparing, "peak": peak(layout, one)}
            made.append((layout, checkpointing, bytes_ | kinds))
            if usable is not None and kinds["peak"] <= usable:
                break
    flops = next(iter(passes.values()))[0].flops
    return [
        {"layout": layout, "checkpointing": checkpointing}
        | {k: None if v is None else round(v) for k, v in kinds.items()}
        for layout, checkpointing, kinds in made
    ], flops * cfg.train.batch_size / (records * gpus)


def plan(name: str, overrides: Sequence[str], gpus: int, memory: float) -> dict[str, Any]:
    """Estimates the memory of a run on ``gpus`` GPUs of ``memory`` GB (2^30 bytes), and how to make it fit.

    Returns the numbers that `reasonbrain plan --json` prints, in bytes and FLOP, and ``advice`` in words. Raises
    UserError like ``load_config``, ``check_trains`` and ``bucket_sizes``, for an unknown architecture, and for a batch
    size that cannot be split over the GPUs.
    """
    usable = memory * GB * (1 - GAPS) - CONTEXT
    if gpus < 1 or usable <= 0:
        raise UserError(f"plan: {gpus} GPUs of {memory:g} GB; give at least one, of more than {CONTEXT / GB:g} GB")
    cfg = load_config(name, overrides)
    model = without_weights(cfg)
    check_trains(model, cfg.train)
    bucket_sizes(cfg.data.size, diffusion.multiple if (diffusion := model.slot("diffusion")) else 1)
    parameters = {}
    for slot in SLOTS:
        part = model.slot(slot)
        counts = [(p.numel(), p.requires_grad) for p in part.parameters()] if part else []
        parameters[slot] = {"all": sum(n for n, _ in counts), "trained": sum(n for n, moves in counts if moves)}
    made, flops = rows(cfg, model, gpus, usable)
    return {
        "config": name,
        "overrides": list(overrides),
        "gpus": gpus,
        "gpu_memory": round(memory * GB),
        "usable": round(usable),
        "size": cfg.data.size,
        "records_a_pass": micro_batch(cfg.train, gpus),
        "records_a_step": cfg.train.batch_size,
        "parameters": parameters,
        "flops_a_step_and_gpu": flops,
        "rows": [row | {"fits": row["peak"] <= usable} for row in made],
        "advice": advice(name, overrides, model, gpus, usable, made),
    }


def advice(
    name: str, overrides: Sequence[str], model: ReasonBrain, gpus: int, usable: float, made: list[dict[str, Any]]
) -> str:
    """The first change that makes the run fit, in this order: more checkpointing, a higher ZeRO stage, a smaller micro
    batch, the plug-ins' memory options (``Plugin.memory_options``: LoRA, nf4), offloading."""
    cfg = load_config(name, overrides)
    slots = {slot: params for slot in SLOTS if (params := slot_config(cfg.model, slot))}
    options = {slot: plugin(slot, params["name"]).memory_options(params) for slot, params in slots.items()}
    by_kind = [
        [f"model.{slot}.{key}={value}" for slot in slots for key, value in options[slot].get(kind, {}).items()]
        for kind in MEMORY_OPTIONS
    ]
    smaller = ["train.micro_batch=1"] if micro_batch(cfg.train, gpus) > 1 else []
    blocks = [name for name, part in model.parts.items() if part.repeated()]
    changes: list[str] = []
    offloaded = ""
    for more in ([], smaller, *by_kind):
        if more:
            try:
                smaller_cfg = load_config(name, [*overrides, *changes, *more])
                made, _ = rows(smaller_cfg, without_weights(smaller_cfg), gpus, usable)
            except UserError:  # e.g. no bitsandbytes, or no layer that takes nf4
                continue
            changes += more
        for row in made:
            if row["peak"] > usable:
                continue
            words = [] if row["layout"] == "plain" else [f"--deepspeed configs/deepspeed/{row['layout']}.json"]
            if row["checkpointing"] == CHECKPOINTING[1]:
                words.append(f"train.checkpointing=[{','.join(blocks)}]")
            answer = f"fits with {' '.join([*words, *changes])}" if words or changes else "fits as configured"
            if row["layout"] != "zero3_offload":
                return answer
            offloaded = offloaded or answer
    return offloaded or "no option fits: use more or larger GPUs, a smaller data.size, or fewer slots"


def text(plan: dict[str, Any]) -> str:
    """Formats a plan as text, in GB of 2^30 bytes."""
    passes = plan["records_a_step"] // (plan["records_a_pass"] * plan["gpus"])
    lines = [
        f"{plan['config']}: {plan['gpus']} x {plan['gpu_memory'] / GB:g} GB, {plan['size']} x {plan['size']} pixels",
        f"per step and GPU, as configured: {passes} x {plan['records_a_pass']} records, "
        f"{plan['flops_a_step_and_gpu'] / 1e12:.4g} TFLOP forward and backward",
        "",
        f"{'slot':<12} {'parameters':>13} {'trained':>13}",
    ]
    for slot, n in plan["parameters"].items():
        lines.append(f"{slot:<12} {n['all'] / 1e6:>12.3f}M {n['trained'] / 1e6:>12.3f}M")
    kinds = ("weights", "gradients", "optimizer", "buffers", "activations", "step", "start", "peak")
    lines += [
        "",
        f"{'GB per GPU':<13} {'checkpointing':<13} " + " ".join(f"{k:>{max(len(k), 7)}}" for k in kinds) + "  fits",
    ]
    for row in plan["rows"]:
        numbers = {k: "-" if row[k] is None else f"{row[k] / GB:.2f}" for k in kinds}
        if row["activations"] is None:
            numbers["peak"] = f">{numbers['peak']}"
        sizes = " ".join(f"{numbers[k]:>{max(len(k), 7)}}" for k in kinds)
        lines.append(f"{row['layout']:<13} {row['checkpointing']:<13} {sizes}  {'yes' if row['fits'] else 'no'}")
    if host := plan["rows"][-1]["host"]:
        lines.append(f"{'':<13} host memory of each process under zero3_offload: {host / GB:.2f}")
    margin = {"usable": plan["usable"] / GB, "context": CONTEXT / GB, "gaps": GAPS}
    preparing = next((row["preparing"] for row in plan["rows"] if row["preparing"] is not None), 0) / GB
    return "\n".join([*lines, "", LEGEND.format(preparing=preparing, **margin), plan["advice"]])
