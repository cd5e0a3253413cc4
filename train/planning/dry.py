"""One pass of a model without weights, data or GPUs: forward and backward at true size, on fake tensors.

Fake tensors have shapes, types and storages, but no numbers. What of them is alive is counted as it comes and goes,
each storage once, so autocast's copies of the weights and what checkpointed blocks compute again are in it. The pass
computes in the precisions that CUDA's autocast chooses, with fused attention unless ``model.attention`` is ``math``.

What stands in for data: a text of ``INSTRUCTION``'s length, and for Qwen's picture its tokens. What prepares records,
frozen vision towers among it, is no part of the pass; SAM and Qwen's tower do not run at all. An nf4 layer runs as
one in bfloat16, without the moment's memory in which bitsandbytes unpacks it. For
``model.encoders.reads=sentence`` none is generated: what that takes is over before anything is kept for the backward
pass, but its FLOPs are not counted. A plug-in whose forward pass reads numbers (``.item()``) cannot run here; torch's
error says where it does.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from reasonbrain.attention import set_attention
from reasonbrain.config.schema import Config
from reasonbrain.interfaces import Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin import Plugin
from reasonbrain.train.building import without_weights
from reasonbrain.train.optim import trained_parameters

INSTRUCTION = "What would happen if this were left alone in the sun for a whole long day, with nobody to look after it?"
aten = torch.ops.aten


class Counter(TorchDispatchMode):
    """What a computation takes: ``flops``, and bytes of the tensors made in it, ``now`` and at most (``peak``).
    torch's FlopCounterMode is not used itself: its hooks keep what checkpointed blocks compute again alive."""

    FORMULAS = flop_registry | {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q.shape, k.shape, v.shape
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
            sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
        ),
    }

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self.seen = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := self.FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        for t in tree_leaves(out):
            if not isinstance(t, Tensor) or (storage := t.untyped_storage())._cdata in self.seen:
                continue
            self.seen[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, storage: int) -> None:
        self.now -= self.seen.pop(storage)


def norm_as_on_cuda(model: nn.Module) -> None:
    """Norms as CUDA computes them and a CPU does not: in float32 under autocast (ATen/autocast_mode.h), and RMS norms
    in one kernel, which keeps its input alone for the backward pass."""

    def forward(module: Any, x: Tensor) -> Tensor:
        weight, bias = module.weight, getattr(module, "bias", None)
        if torch.is_autocast_enabled("cpu"):
            x, weight, bias = (None if t is None else t.float() for t in (x, weight, bias))
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
        return aten._fused_rms_norm(x, module.normalized_shape, weight, module.eps)[0]

    for module in model.modules():
        if type(module) in (nn.LayerNorm, nn.RMSNorm):  # not those with a forward of their own
            module.forward = partial(forward, module)


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one process. Bytes beside weights and gradients: ``saved`` at the end of the
    forward pass, ``peak`` at most, ``preparing`` at most while a record is prepared. ``flops`` of the pass."""

    saved: int
    peak: int
    preparing: int
    flops: int


def run(model: ReasonBrain, cfg: Config, records: int) -> Pass:
    """One pass over ``records`` records of ``data.size`` pixels; weights and gradients are there already."""
    size, diffusion = cfg.data.size, model.slot("diffusion")
    trained = trained_parameters(model, cfg.train)
    for p in trained.values():
        p.grad = torch.zeros_like(p)
    images = torch.zeros(records, 3, size, size)
    regions = torch.zeros(records, size, size, dtype=torch.long)
    with Counter([*model.parameters(), *model.buffers()]) as preparing:
        # a record's source and target at a time, as train/feature_cache.py does
        latents = diffusion.encode(torch.zeros(2, 3, size, size))[:1] if diffusion else images[:1]
        ready = model.image_features(images[:1])
    latents = latents.expand(records, -1, -1, -1).contiguous()
    ready = {slot: torch.cat([features] * records) for slot, features in ready.items()}
    inputs = Inputs(images, [INSTRUCTION] * records, [["the candle", "the table"]] * records, regions, ready)
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in trained.values()), images, regions, latents]
    known += ready.values()
    with Counter(known) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.train.bf16):
            losses = model(inputs, latents, latents, range(records), cfg.train.draws, cfg.train.lm_weight)
        saved = counter.now
        losses["loss"].backward()
    return Pass(saved, counter.peak, preparing.peak, counter.flops)


def is_quantised(p: Any) -> bool:
    """Whether a parameter is bitsandbytes' nf4."""
    return hasattr(p, "quant_type")


def preparing_parameters(model: ReasonBrain) -> set[int]:
    """The ids of those that prepare records: every process holds them whole, as they are (zero.set_apart)."""
    plugs = [m for m in model.modules() if isinstance(m, Plugin)]
    return {id(p) for plug in plugs for m in plug.prepares().values() for p in m.parameters()}


def fake_passes(cfg: Config, records: int, narrow: bool) -> list[Pass]:
    """A pass as ``train.checkpointing`` says, and one with all repeated blocks of all slots checkpointed.
    ``narrow``: with weights in bf16, as DeepSpeed holds them."""
    model = without_weights(cfg).train()
    if narrow:
        apart = preparing_parameters(model)
        for p in model.parameters():
            if id(p) not in apart:
                p.data = p.data.to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if is_quantised(getattr(module, "weight", None)):  # bitsandbytes unpacks it for the moment of its product
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, "meta", torch.bfloat16)
            model.set_submodule(name, plain.requires_grad_(False))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        for part in model.parts.values():
            part.tie_weights()
        for part in model.parts.values():
            part.stand_in_assets()
            part.prepare_dry_run(cfg.data.size)
        set_attention(model, "math" if cfg.model.attention == "math" else "sdpa", training=True)
        norm_as_on_cuda(model)
        for slot in set(cfg.train.checkpointing) & set(model.parts):
            model.parts[slot].checkpoint_activations()
        passes = [run(model, cfg, records)]
        for slot in set(model.parts) - set(cfg.train.checkpointing):
            model.parts[slot].checkpoint_activations()
        return [*passes, run(model, cfg, records)]
