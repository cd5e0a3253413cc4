"""A Linear held in 4 bits: bitsandbytes' NF4 with its block sizes quantised again (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

BLOCK = (
    64  # weights that share a scale; for rows that end inside a block, bitsandbytes 0.50 on a CPU takes wrong scales
)
FLOATS = ("quant_map", "nested_absmax", "nested_quant_map")  # what bitsandbytes keeps beside the weight in float32


class Nf4Linear(Linear4bit):
    """The quantised ``linear``: half a byte a weight, computed in bfloat16. Made from one on the meta device, it waits
    for ``load_state_dict``, which bitsandbytes' own class does not have for what it saves. The block sizes are saved as
    bytes, so that a checkpoint written or read in 16 bits does not round them."""

    def __init__(self, linear: nn.Linear) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, torch.bfloat16, quant_type="nf4", device="meta")
        self.bias = linear.bias
        self.weight = Params4bit(linear.weight.data, quant_type="nf4", blocksize=BLOCK)
        if not linear.weight.is_meta:
            self.weight = self.weight.to(linear.weight.device)  # this is what quantises
        # in eval mode, which a frozen base is always in, bitsandbytes repacks the weight for a kernel without gradients
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
