"""The inputs of a speed benchmark: a model, and records to edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from reasonbrain.checkpoint import load_model
from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config
from reasonbrain.data.opening import open_data
from reasonbrain.data.record import Records
from reasonbrain.eval.benchmarking.timing import Timing
from reasonbrain.model import ReasonBrain
from reasonbrain.train.building import build

Found = tuple[list[Timing], torch.dtype, dict[str, Any]]  # timings, precision of the passes, further numbers


@dataclass(frozen=True)
class Source:
    """Where the model comes from: a checkpoint, or a configuration built with published or random weights."""

    config: str | None = None
    overrides: Sequence[str] = ()
    checkpoint: str | None = None
    random: bool = False

    def open(self, device: torch.device) -> tuple[ReasonBrain, Config]:
        """The model on the device, in eval mode. Raises UserError like ``load_model`` and ``load_config``."""
        if self.checkpoint:
            model, cfg = load_model(self.checkpoint, self.overrides, self.config)
        else:
            # the data of the embedded default are generated, so no files are needed
            drawn = [f"data.name={load_config('tiny').data.name}"] if self.random else []
            cfg = load_config(self.config or "tiny", [*self.overrides, *drawn])
            model = random_model(cfg, device) if self.random else build(cfg)
        return model.to(device).eval(), cfg


def random_model(cfg: Config, device: torch.device) -> ReasonBrain:
    """Builds the configuration's model on the device with random weights, and with substitutes for tokenizers and image
    processors, without access to the hub. Raises UserError like ``without_weights``."""
    with torch.device(device):
        model = ReasonBrain.from_config(cfg.model, weights=False)
    for part in model.parts.values():
        part.stand_in_assets()
    return model


def sample_records(size: int) -> Records:
    """Records of the embedded default's data, which need no files, with pictures of ``size`` x ``size`` pixels."""
    return open_data(replace(load_config("tiny").data, size=size))
