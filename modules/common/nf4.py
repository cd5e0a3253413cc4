"""A 4-bit linear layer: bitsandbytes' NF4 with double quantisation (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

# Weights per quantisation block. On CPU, bitsandbytes 0.50 needs rows that end on a block boundary: or else it applies
# wrong scales.
BLOCK = 64
FLOATS = ("quant_map", "nested_absmax", "nested_quant_map")  # quantisation state that bitsandbytes keeps in float32


class Nf4Linear(Linear4bit):
    """An NF4-quantised copy of ``linear``: half a byte per weight, computed in bfloat16.

    A layer created on the meta device is filled by ``load_state_dict``; bitsandbytes' own class cannot load the
    quantised weights that it saves. The float32 quantisation state is saved as raw bytes, so that casting a checkpoint
    to 16 bits does not round it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, torch.bfloat16, quant_type="nf4", device="meta")
        self.bias = linear.bias
        self.weight = Params4bit(linear.weight.data, quant_type="nf4", blocksize=BLOCK)
        if not linear.weight.is_meta:
            self.weight = self.weight.to(linear.weight.device)  # moving the weight to a device quantises it
        # in eval mode, as in every frozen base, bitsandbytes would repack the weight for a kernel without backward
        self.support_avx512bf16_for_cpu = False

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key in (f"{prefix}weight.{name}" for name in FLOATS):
            destination[key] = destination[key].view(torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        key = f"{prefix}weight"
        stats = {k.removeprefix(f"{key}."): state_dict.pop(k) for k in list(state_dict) if k.startswith(f"{key}.")}
        if stats:
            stats |= {name: stats[name].clone().view(torch.float32) for name in FLOATS}
            self.weight = Params4bit.from_prequantized(state_dict[key], stats, device=state_dict[key].device)
            state_dict[key] = self.weight
        super()._load_from_state_dict(state_dict, prefix, *args)
