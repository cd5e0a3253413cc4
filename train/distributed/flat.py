"""Parameters in parts: DeepSpeed keeps what it optimises in flat fp32 tensors, of which each process holds a part.

``Piece`` says where a parameter's part lies; everything that belongs to the parameter (its average, the optimizer's
state) lies at the same place of a flat tensor of the same size. ``FlatMuon`` is torch.optim.Muon over such parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reasonbrain.train.optim import BETAS, MUON, Group


@dataclass
class Piece:
    """``size`` numbers of a parameter from ``start`` on lie in ``flat`` from ``at`` on."""

    flat: Tensor
    at: int
    start: int
    size: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.at, self.size)


class FlatMuon(torch.optim.AdamW):
    """AdamW, but Muon for the groups of the kind "hidden". Momentum stays in parts; a matrix is put together in one
    process, which makes its step orthogonal and tells the others.

    ``matrices``: for every flat tensor the shapes of the matrices that lie in it, in the same order in all processes,
    and this process's pieces of them; to be set before the first step that moves anything, like ``device``, where
    matrices are put together."""

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups, betas=BETAS)
        self.param_groups: list[Group]
        self.device = torch.device("cpu")
        self.matrices: dict[Tensor, list[tuple[torch.Size, Piece | None]]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [g for g in groups if g["kind"] != "hidden"]
        super().step()
        self.param_groups = groups
        for group in groups:
            for flat in group["params"] if group["kind"] == "hidden" else ():
                if flat.grad is not None:
                    self._step(flat, group)

    def _step(self, flat: Tensor, group: Group) -> None:
        momentum = self.state[flat].setdefault("momentum_buffer", torch.zeros_like(flat))
        momentum.lerp_(flat.grad, 1 - MUON["momentum"])
        towards = flat.grad.lerp(momentum, MUON["momentum"])
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        for number, (shape, piece) in enumerate(self.matrices.get(flat, ())):
            matrix = torch.zeros(shape.numel(), device=self.device)
            if piece:
                matrix.narrow(0, piece.start, piece.size).copy_(piece.of(towards))
            owner = number % dist.get_world_size()
            dist.reduce(matrix, owner)
            if owner == dist.get_rank():
                matrix = orthogonal_step(matrix.view(shape), group["lr"]).flatten()
            dist.broadcast(matrix, owner)
            if piece:
                piece.of(flat).add_(matrix.narrow(0, piece.start, piece.size))


def orthogonal_step(towards: Tensor, lr: float) -> Tensor:
    """What torch.optim.Muon would add to a matrix [A, B] whose momentum points ``towards``: it steps from zero."""
    moved = nn.Parameter(torch.zeros_like(towards))
    moved.grad = towards
    torch.optim.Muon([moved], lr, weight_decay=0, **MUON | {"momentum": 0.0, "nesterov": False}).step()
    return moved.detach()
