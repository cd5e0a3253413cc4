"""Devices by name."""

from __future__ import annotations

import torch

from reasonbrain.errors import UserError, reason


def usable_device(key: str, name: str | torch.device) -> torch.device:
    """The device. key: what named it. Raises UserError for one that is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    # what torch raises for unknown and absent devices; without CUDA an AssertionError, for meta a NotImplementedError
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UserError(f"{key}: '{name}' cannot be used: {reason(e)}") from None
    return device
