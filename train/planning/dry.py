"""A dry run: one forward and backward pass at full size on fake tensors, without weights, data or GPUs.

Fake tensors have shapes, dtypes and storages, but no values. The live bytes are tracked per storage, so autocast's
weight copies and the recomputation of checkpointed blocks are included. The pass uses the precisions of CUDA's
autocast, and fused attention unless ``model.attention`` is ``math``.

Limits: every text has the length of ``INSTRUCTION``. Modules that prepare records (frozen vision towers among them) are
measured apart from the pass; SAM and Qwen's vision tower do not run. An nf4 layer runs as a bfloat16 layer, without the
temporary memory of bitsandbytes' dequantisation. With ``model.encoders.reads=sentence`` no sentence is generated: its
memory is freed before the training pass, but its FLOPs are missing. A plug-in whose forward pass reads tensor values
(``.item()``) cannot run here; torch's error names the line.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
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
from reasonbrain.config.schema import Config, loss_weights
from reasonbrain.interfaces import Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin import Plugin
from reasonbrain.train.building import without_weights
from reasonbrain.train.optim import trained_parameters

INSTRUCTION = "What would happen if this were left alone in the sun for a whole long day, with nobody to look after it?"
aten = torch.ops.aten


class Counter(TorchDispatchMode):
    """Counts ``flops`` and the bytes of the tensors created under it: currently alive (``now``) and at most (``peak``).

    torch's FlopCounterMode cannot be used: its hooks keep the recomputed tensors of checkpointed blocks alive.
    """

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
        if func is torch.ops.prim.device.default:  # torch asks twice for each operation; answered here, it costs less
            return args[0].fake_device
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
    """Makes norms behave as on CUDA: float32 under autocast (ATen/autocast_mode.h), and a fused RMS norm, which saves
    only its input for the backward pass."""

    def forward(module: Any, x: Tensor) -> Tensor:
        weight, bias = module.weight, getattr(module, "bias", None)
        if torch.is_autocast_enabled("cpu"):
            x, weight, bias = (None if t is None else t.float() for t in (x, weight, bias))
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
        return aten._fused_rms_norm(x, module.normalized_shape, weight, module.eps)[0]

    for module in model.modules():
        if type(module) in (nn.LayerNorm, nn.RMSNorm):  # not subclasses with their own forward
            module.forward = partial(forward, module)


@dataclass(frozen=True)
class Pass:
    """Memory and FLOPs of one forward and backward pass of one process, without weights and gradients.

    saved: bytes at the end of the forward pass
    peak: peak bytes of the pass
    preparing: peak bytes while a record is prepared
    flops: FLOPs of the pass
    """

    saved: int
    peak: int
    preparing: int
    flops: int


def run(model: ReasonBrain, cfg: Config, records: int) -> Pass:
    """Runs a pass over ``records`` square images of ``data.size`` pixels, with weights and gradients allocated."""
    size, diffusion = cfg.data.size, model.slot("diffusion")
    trained = trained_parameters(model, cfg.train)
    for p in trained.values():
        p.grad = torch.zeros_like(p)
    images = torch.zeros(records, 3, size, size)
    regions = torch.zeros(records, size, size, dtype=torch.long)
    with Counter([*model.parameters(), *model.buffers()]) as preparing:
        # one record (source and target) at a time, as in train/feature_cache.py
        latents = diffusion.encode(torch.zeros(2, 3, size, size))[:1] if diffusion else images[:1]
        ready = model.image_features(images[:1])
    latents = latents.expand(records, -1, -1, -1).contiguous()
    ready = {slot: torch.cat([features] * records) for slot, features in ready.items()}
    inputs = Inputs(images, [INSTRUCTION] * records, [["the candle", "the table"]] * records, regions, ready)
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in trained.values()), images, regions, latents]
    known += ready.values()
    with Counter(known) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.train.bf16):
            losses = model(inputs, latents, latents, range(records), cfg.train.draws, **loss_weights(cfg.train))
        saved = counter.now
        losses["loss"].backward()
    return Pass(saved, counter.peak, preparing.peak, counter.flops)


def is_quantised(p: Any) -> bool:
    """Whether a parameter is quantised by bitsandbytes."""
    return hasattr(p, "quant_type")


def preparing_parameters(model: ReasonBrain) -> set[int]:
    """The ids of parameters that only prepare records, which ZeRO does not partition (zero.set_apart)."""
    plugs = [m for m in model.modules() if isinstance(m, Plugin)]
    return {id(p) for plug in plugs for m in plug.prepares().values() for p in m.parameters()}


def fake_passes(
    cfg: Config, records: int, narrow: bool, enough: Callable[[Pass], bool] = lambda first: False
) -> list[Pass]:
    """Runs two passes: with ``train.checkpointing`` as configured, and with all repeated blocks checkpointed. The
    second is left out if the first is ``enough``.

    ``narrow``: hold weights in bfloat16, as DeepSpeed does.
    """
    model = without_weights(cfg).train()
    if narrow:
        apart = preparing_parameters(model)
        for p in model.parameters():
            if id(p) not in apart:
                p.data = p.data.to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if is_quantised(getattr(module, "weight", None)):  # bitsandbytes dequantises it for each matmul
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
            model.parts[slot].enable_gradient_checkpointing()
        first = run(model, cfg, records)
        if enough(first):
            return [first]
        for slot in set(model.parts) - set(cfg.train.checkpointing):
            model.parts[slot].enable_gradient_checkpointing()
        return [first, run(model, cfg, records)]
