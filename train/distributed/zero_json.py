"""DeepSpeed's JSON configuration: reading, checking, and filling in its "auto" values.

fill("zero3", cfg.train, world=2)    # a shipped configuration, or the path of a JSON file
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from reasonbrain.config.schema import TrainConfig
from reasonbrain.errors import UserError, first_line
from reasonbrain.train.batches import micro_batch
from reasonbrain.utils.reading import parse_json

AUTO = "auto"
SECTIONS = ("zero_optimization", "bf16", "fp16")  # those that are looked into here


def import_deepspeed() -> Any:
    """Imports DeepSpeed. Raises UserError if it is not installed."""
    try:
        import deepspeed
    except ImportError:
        raise UserError("--deepspeed needs DeepSpeed: pip install 'reasonbrain[train]'") from None
    return deepspeed


def presets() -> list[str]:
    """Names of the shipped DeepSpeed configurations."""
    return sorted(f.name[:-5] for f in (files("reasonbrain.configs") / "deepspeed").iterdir())


def _read(name: str) -> dict[str, Any]:
    file = Path(str(files("reasonbrain.configs") / "deepspeed" / f"{name}.json")) if name in presets() else Path(name)
    try:
        raw = parse_json(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(
            f"DeepSpeed configuration '{name}': {e.strerror}; name a JSON file or one of {', '.join(presets())}"
        ) from None
    except ValueError as e:
        raise UserError(f"DeepSpeed configuration '{name}' is not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise UserError(f"DeepSpeed configuration '{name}' must be a JSON object, not {type(raw).__name__}")
    for key in SECTIONS:
        if not isinstance(raw.get(key, {}), dict):
            raise UserError(f"{name}: {key} must be a JSON object, not {json.dumps(raw[key])}")
    return raw


def _check(name: str, filled: dict[str, Any]) -> None:
    """Raises UserError for what DeepSpeed itself refuses."""
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    batch = dict.fromkeys([key for key in filled if "batch_size" in key or key == "gradient_accumulation_steps"], 1)
    try:
        DeepSpeedConfig(filled | batch)
    except ValidationError as e:
        wrong = e.errors()[0]
        raise UserError(f"{name}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
    except Exception as e:  # DeepSpeed asserts, and looks into values without checking their types
        raise UserError(f"{name}: DeepSpeed refuses it: {first_line(e)}") from None


def fill(name: str | Path, cfg: TrainConfig, world: int) -> dict[str, Any]:
    """Reads a DeepSpeed JSON configuration and fills in its "auto" values for a run of ``world`` processes.

    ``name``: a JSON file or one of ``presets``. Raises UserError for invalid JSON, a stage other than 1, 2 and 3, a
    value that DeepSpeed refuses, or one that contradicts ``cfg``.
    """
    name = str(name)
    filled = _read(name)
    stage = filled.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise UserError(f"{name}: zero_optimization.stage is {stage!r}, not one of 1, 2, 3")
    micro = micro_batch(cfg, world)
    ours = {
        "train_batch_size": ("train.batch_size", cfg.batch_size),
        "train_micro_batch_size_per_gpu": ("train.micro_batch", micro),
        "gradient_accumulation_steps": (
            "train.batch_size / train.micro_batch / processes",
            cfg.batch_size // (micro * world),
        ),
        "gradient_clipping": ("train.grad_clip", cfg.grad_clip or 0.0),  # 0: not clipped
        "bf16.enabled": ("train.bf16", cfg.bf16),
    }
    for path, (key, value) in ours.items():
        *sections, last = path.split(".")
        section = filled
        for inner in sections:
            section = section.setdefault(inner, {})
        if section.setdefault(last, AUTO) == AUTO:
            section[last] = value
        elif section[last] != value:
            raise UserError(
                f'{name}: {path} is {section[last]}, but {key} is {value}; write "auto" there or change one'
            )
    for key, ours_is in (("optimizer", "train.optimizer"), ("scheduler", "train.lr")):
        if key in filled:
            raise UserError(f"{name}: '{key}' contradicts {ours_is}; remove it")
    if filled.get("fp16", {}).get("enabled"):
        raise UserError(f"{name}: fp16 is enabled, but train.bf16 is {cfg.bf16}; FLUX overflows in fp16")
    _check(name, filled)
    return filled | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
