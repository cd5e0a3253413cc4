"""A plan of ablations, as it is written down: what is taken away or replaced, how it is measured, with which budget.

title, budget, studies = read_plan("components")
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonbrain.errors import UserError

ACTIONS = ("REMOVE", "REPLACE")


@dataclass
class Study:
    """What is taken away (REMOVE), or what stands in its place (REPLACE), as ``overrides``, key=value, of the full
    model. ``metrics``: scores as in reports of `reasonbrain eval`: ``outcome``, ``L1 inside``."""

    ablated_part: str = MISSING
    action: str = MISSING
    replacement: str | None = None
    overrides: list[str] = MISSING
    metrics: list[str] = MISSING
    seeds: list[int] = MISSING

    @property
    def name(self) -> str:
        return f"{self.action} {self.ablated_part}" + (f": {self.replacement}" if self.replacement else "")


@dataclass
class Budget:
    """What all runs have in common: the full model, ``config`` with ``overrides``, among them steps, batch and records;
    and the benchmark, as `reasonbrain eval` takes it, of which only what a run could learn is measured."""

    config: str = MISSING
    overrides: list[str] = field(default_factory=list)
    benchmark: str = "mini"
    data: str | None = None
    limit: int | None = None


@dataclass
class Plan:
    """``budget``: a file, seen from the plan's folder. ``overrides``: what all variants of this plan, the full model
    too, have in common beside it."""

    budget: str = MISSING
    overrides: list[str] = field(default_factory=list)
    studies: list[Study] = MISSING


def _read(path: Path, schema: type) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path)))
    except FileNotFoundError:
        raise UserError(f"plan '{path}' does not exist") from None
    except OmegaConfBaseException as e:
        raise UserError(f"plan '{path}': {e.full_key}: {str(e).splitlines()[0]}") from None
    except Exception as e:  # PyYAML and OmegaConf have no error in common
        raise UserError(f"plan '{path}' is not readable YAML: {str(e).splitlines()[0]}") from None


def shipped() -> list[str]:
    """Names of the plans that come with the package."""
    names = sorted(f.name[:-5] for f in (files("reasonbrain.configs") / "ablations").iterdir())
    return [name for name in names if name != "budget"]


def read_plan(name: str) -> tuple[str, Budget, list[Study]]:
    """A shipped plan by name, or a YAML file by path: its name, its budget, and its studies.

    Raises UserError for a plan or budget that is not there, not readable or incomplete, and for an unknown action."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in shipped():
            raise UserError(f"plan '{name}' is neither a shipped one ({', '.join(shipped())}) nor a .yaml file")
        path = Path(str(files("reasonbrain.configs") / "ablations" / f"{name}.yaml"))
    plan = _read(path, Plan)
    for study in plan.studies:
        if study.action not in ACTIONS:
            raise UserError(f"plan '{path}': action '{study.action}' is not one of {', '.join(ACTIONS)}")
        if (study.action == "REPLACE") != (study.replacement is not None):
            raise UserError(f"plan '{path}': '{study.ablated_part}': REPLACE needs a replacement, REMOVE has none")
        if not study.seeds:
            raise UserError(f"plan '{path}': '{study.ablated_part}': seeds must name at least one")
    if len({study.name for study in plan.studies}) < len(plan.studies):
        raise UserError(f"plan '{path}': two studies have the same ablated_part, action and replacement")
    budget = _read(path.parent / plan.budget, Budget)
    return path.stem, replace(budget, overrides=[*budget.overrides, *plan.overrides]), plan.studies
