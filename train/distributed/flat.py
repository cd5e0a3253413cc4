"""DeepSpeed's flat parameters: fp32 tensors of concatenated parameters, partitioned over the processes.

``Piece`` locates a parameter's shard in a flat tensor; its average and optimizer state have the same location in flat
tensors of the same size. ``FlatMuon`` is torch.optim.Muon over such shards.
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
    """A shard: elements ``start`` to ``start + size`` of a parameter are stored in ``flat`` from index ``at``."""

    flat: Tensor
    at: int
    start: int
    size: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.at, self.size)


class FlatMuon(torch.optim.AdamW):
    """AdamW with Muon for parameter groups of the kind "hidden".

    Momentum stays sharded. Each matrix is gathered in one process, which orthogonalises its update and broadcasts it.
    Set these attributes before the first step:

    matrices: for every flat tensor, the shapes of its matrices, in the same order in all processes, and this process's
        pieces of them
    device: where matrices are gathered
    """

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
    """The update of torch.optim.Muon for a matrix [A, B] with momentum ``towards``."""
    moved = nn.Parameter(torch.zeros_like(towards))
    moved.grad = towards
    torch.optim.Muon([moved], lr, weight_decay=0, **MUON | {"momentum": 0.0, "nesterov": False}).step()
    return moved.detach()
