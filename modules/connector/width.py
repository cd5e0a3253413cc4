"""The width of V, which a connector's configuration and the MLLM's must agree on."""

from __future__ import annotations

from torch import Tensor

from reasonbrain.errors import UserError


def check_width(hidden: Tensor, wanted: int) -> None:
    """Raises UserError if V [B, r, H] has another width than ``wanted``."""
    if hidden.shape[-1] != wanted:
        raise UserError(
            f"model.connector.inputs: it reads states of width {wanted}, but model.mllm gives {hidden.shape[-1]}"
        )
