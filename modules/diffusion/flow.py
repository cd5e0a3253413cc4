"""Schedulers of diffusers for flow matching: FLUX's own, and any other that a user chooses."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from reasonbrain.errors import UserError

SHIFT = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}  # FLUX.1-dev's


def dynamic_shift(scheduler: Any, tokens: int) -> float:
    """mu, the resolution-dependent shift of the noise schedule, linear in the number of tokens. ``SHIFT`` replaces
    entries that the scheduler's config lacks."""
    c = SHIFT | scheduler.config
    slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
    return tokens * slope + (c["base_shift"] - slope * c["base_image_seq_len"])  # rounds as diffusers' calculate_shift


def schedule(scheduler: Any, steps: int, tokens: int, device: torch.device) -> Any:
    """A copy of a scheduler, set to the timesteps of one call as FluxPipeline sets them. Raises UserError for one that
    is not for flow matching."""
    name, own = type(scheduler).__name__, scheduler.config.get("use_flow_sigmas", False)
    if not (own or name.startswith("FlowMatch")):
        raise UserError(f"scheduler '{name}' is not for flow matching; choose FlowMatch... or use_flow_sigmas=True")
    scheduler = deepcopy(scheduler)  # it counts steps
    given: dict[str, Any] = {"device": device}
    takes = inspect.signature(scheduler.set_timesteps).parameters
    if own or "sigmas" not in takes:
        given["num_inference_steps"] = steps
    else:
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    if "mu" in takes and scheduler.config.get("use_dynamic_shifting"):
        given["mu"] = dynamic_shift(scheduler, tokens)
    scheduler.set_timesteps(**given)
    return scheduler
