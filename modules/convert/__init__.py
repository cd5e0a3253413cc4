"""Converts published weights of ReasonBrain's family into checkpoints.

    reasonbrain convert instructpix2pix instruct-pix2pix-00-22000.ckpt -o DIR
    reasonbrain convert mgie _ckpt -o DIR
    reasonbrain convert smartedit SmartEdit-7B -o DIR

Each module's ``convert`` returns the configuration and the model of a folder or a file in its authors' layout.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from reasonbrain.checkpoint import save_model
from reasonbrain.errors import UserError
from reasonbrain.modules.convert.tensors import Report
from reasonbrain.utils.files import check_replaceable, whole_folder

NAMES = ("instructpix2pix", "mgie", "smartedit")


def convert(name: str, source: Path, out: Path, overrides: tuple[str, ...] = ()) -> Report:
    """Writes a checkpoint of the weights in ``source`` to ``out``. Returns which tensors were used.

    overrides: ``key=value`` for the preset ``name``, such as where the parts are that ``source`` lacks.

    Raises UserError for another name, and for files that are missing, hold more than tensors, or do not fit."""
    if name not in NAMES:
        raise UserError(f"'{name}' is not one of {', '.join(NAMES)}")
    if not source.exists():
        raise UserError(f"'{source}' does not exist; give the published weights of {name}")
    check_replaceable(out)
    report = Report()
    cfg, model = import_module(f"reasonbrain.modules.convert.{name}").convert(source, overrides, report)
    with whole_folder(out, last="config.yaml") as new:
        save_model(model, cfg, new)
    return report
