"""Attention and transformer blocks shared by FRCE, the CME and the diffusion plug-ins.

Attention uses torch's fused ``scaled_dot_product_attention``. A zero key and value are prepended to every context, so
that a row with nothing to attend to (no object, no region, a null slot) yields zeros instead of NaN.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


class Attention(nn.Module):
    """Multi-head attention from ``x`` [B, L, D] to ``context`` [B, S, D]; S may be 0."""

    plain_attention = False  # use the unfused math kernel; set by reasonbrain/attention.py

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads} must divide the width, {width}")
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def _qkv(self, x: Tensor, context: Tensor) -> list[Tensor]:
        k, v = self.to_kv(context).chunk(2, dim=-1)
        k, v = (F.pad(t, (0, 0, 1, 0)) for t in (k, v))  # the zero key and value
        return [rearrange(t, "b l (h d) -> b h l d", h=self.heads) for t in (self.to_q(x), k, v)]

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns [B, L, D]. ``mask`` [B, S] is true for the context tokens to attend to."""
        if mask is not None:
            mask = F.pad(mask, (1, 0), value=True)[:, None, None, :]
        q, k, v = self._qkv(x, context)
        with sdpa_kernel(SDPBackend.MATH) if self.plain_attention else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(out, "b h l d -> b l (h d)"))

    @torch.no_grad()
    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention weights [B, S], averaged over heads and queries, for inspection."""
        q, k, _ = self._qkv(x, context)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~F.pad(mask, (1, 0), value=True)[:, None, None, :], float("-inf"))
        return scores.softmax(-1)[..., 1:].mean((1, 2))


class CrossBlock(nn.Module):
    """A pre-norm residual block of cross-attention and feed-forward: x [B, L, D], context [B, S, D] -> [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_x, self.norm_context, self.norm_ff = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads)
        self.ff = FeedForward(width, activation_fn="gelu")

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm_x(x), self.norm_context(context), mask)
        return x + self.ff(self.norm_ff(x))

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attention.weights(self.norm_x(x), self.norm_context(context), mask)


class SelfBlock(nn.Module):
    """A pre-norm residual block of self-attention and feed-forward: x [B, L, D], mask [B, L] -> [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_x, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ff = FeedForward(width, activation_fn="gelu")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(normed := self.norm_x(x), normed, mask)
        return x + self.ff(self.norm_ff(x))


def zeroed(layer: nn.Module) -> nn.Module:
    """``layer`` with zero weights and biases, so that a model is at first as it would be without it."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
