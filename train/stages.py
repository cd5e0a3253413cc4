"""Training in stages (``train.stages``): each is a run of its own, which starts from the model of the one before.

    RUN/stages/align/         the run of stage ``align``: config.yaml, log.jsonl, checkpoints, model
    RUN/                      the run of the last stage

So a stage has its own data, trained slots, rates and loss weights, its optimizer starts afresh, and the same command
resumes in whichever stage was interrupted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from reasonbrain.config.loading import dump_config, load_config, make_config
from reasonbrain.config.schema import Config
from reasonbrain.errors import UserError


class Stage(NamedTuple):
    """A stage's name ("" in a run without stages), the configuration of its run, and the run's folder."""

    name: str
    cfg: Config
    run: Path


def stages_of(cfg: Config, run: Path) -> list[Stage]:
    """The stages of RUN in order.

    Raises UserError for names that are not unique names of folders, and like ``make_config``."""
    if not cfg.train.stages:
        return [Stage("", cfg, run)]
    raw = OmegaConf.create(dump_config(cfg))
    raw.train.stages = []  # type: ignore[union-attr]
    found: list[Stage] = []
    for number, stage in enumerate(cfg.train.stages):
        where = f"train.stages[{number}]"
        if not re.fullmatch(r"\w[\w-]*", stage.name) or stage.name in [one.name for one in found]:
            raise UserError(f"{where}.name: '{stage.name}' must be a word of its own, as a folder is named after it")
        start = [f"train.start={found[-1].run / 'model'}"] if found else []
        changes = [*_overrides("data", stage.data), *_overrides("train", stage.train), *start]
        try:
            one = make_config(raw, changes)
        except UserError as e:
            raise UserError(f"{where}: {e}") from None
        last = number + 1 == len(cfg.train.stages)
        found.append(Stage(stage.name, one, run if last else run / "stages" / stage.name))
    return found


def _overrides(section: str, changes: Mapping[str, Any]) -> Iterator[str]:
    """``key=value`` overrides for the keys of a section, that of the data set first: it drops the old one's keys."""
    for key in sorted(changes, key=lambda key: key != "name"):
        value = changes[key]
        yield f"{section}.{key}={value if key == 'name' else json.dumps(value)}"


def open_stages(stages: list[Stage]) -> list[Stage]:
    """The stages that are still to be trained: those after the last one that has begun, and that one, unless it is done
    and another one follows."""
    begun = [number for number, stage in enumerate(stages) if (stage.run / "config.yaml").is_file()]
    first = begun[-1] if begun else 0
    while first + 1 < len(stages) and _is_done(stages[first]):
        first += 1
    return stages[first:]


def _is_done(stage: Stage) -> bool:
    made = stage.run / "model" / "config.yaml"  # written last
    return made.is_file() and load_config(str(made), reads_data=False).train.steps >= stage.cfg.train.steps
