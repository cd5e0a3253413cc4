"""Ablation plans in YAML: what is removed or replaced, how it is measured, and the budget of every run.

title, budget, studies = read_plan("components")
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonbrain.config.yaml_file import read_yaml
from reasonbrain.errors import UserError
from reasonbrain.utils.files import inside

ACTIONS = ("REMOVE", "REPLACE")


@dataclass
class Study:
    """A variant of the full model: overrides that remove or replace one part, and how the variant is measured."""

    ablated_part: str = MISSING
    action: str = MISSING  # one of ACTIONS
    replacement: str | None = None  # in words; for REPLACE
    overrides: list[str] = MISSING  # key=value, beyond those of the full model
    metrics: list[str] = MISSING  # scores as in reports of `reasonbrain eval`: "outcome", "L1 inside"
    seeds: list[int] = MISSING

    @property
    def name(self) -> str:
        return f"{self.action} {self.ablated_part}" + (f": {self.replacement}" if self.replacement else "")


@dataclass
class Budget:
    """What all runs have in common: the full model with its training steps, batch size and data, and the benchmark.

    Only benchmark records that a model trained on the data could learn are measured."""

    config: str = MISSING  # a preset or a YAML file
    overrides: list[str] = field(default_factory=list)  # key=value
    benchmark: str = MISSING  # this and the next: as for `reasonbrain eval`
    data: str | None = None
    limit: int | None = None


@dataclass
class Plan:
    """The content of a plan's file."""

    budget: str = MISSING  # a file, relative to the plan's folder
    overrides: list[str] = field(default_factory=list)  # beyond the budget's, for all variants and the full model
    studies: list[Study] = MISSING


def _read(path: Path, schema: type) -> Any:
    raw = read_yaml(path, "plan")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), raw))
    except OmegaConfBaseException as e:
        raise UserError(f"plan '{path}': {e.full_key}: {str(e).splitlines()[0]}") from None
    except Exception as e:  # OmegaConf also asserts
        raise UserError(f"plan '{path}': {str(e).splitlines()[0]}") from None


def shipped_plans() -> list[str]:
    """The names of the plans that ship with the package."""
    names = sorted(f.name[:-5] for f in (files("reasonbrain.configs") / "ablations").iterdir())
    return [name for name in names if name != "budget"]


def read_plan(name: str) -> tuple[str, Budget, list[Study]]:
    """Reads a shipped plan by name or a YAML file by path. Returns its name, its budget, and its studies.

    Raises UserError for a plan or budget that is missing, unreadable or incomplete, and for an unknown action."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in shipped_plans():
            raise UserError(f"plan '{name}' is neither a shipped plan ({', '.join(shipped_plans())}) nor a .yaml file")
        path = Path(str(files("reasonbrain.configs") / "ablations" / f"{name}.yaml"))
    plan = _read(path, Plan)
    for study in plan.studies:
        if study.action not in ACTIONS:
            raise UserError(f"plan '{path}': action '{study.action}' is not one of {', '.join(ACTIONS)}")
        if (study.action == "REPLACE") != (study.replacement is not None):
            raise UserError(f"plan '{path}': '{study.ablated_part}': REPLACE needs a replacement, REMOVE takes none")
        if not study.seeds:
            raise UserError(f"plan '{path}': '{study.ablated_part}': seeds must have at least one element")
    if len({study.name for study in plan.studies}) < len(plan.studies):
        raise UserError(f"plan '{path}': two studies have the same ablated_part, action and replacement")
    budget = _read(inside(path.parent, plan.budget, f"the folder of plan '{path}'"), Budget)
    return path.stem, replace(budget, overrides=[*budget.overrides, *plan.overrides]), plan.studies
