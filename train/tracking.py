"""Experiment trackers: TensorBoard, Weights & Biases or trackio (``train.tracker``).

    tensorboard --logdir RUN        # TensorBoard, the default, writes to RUN/tensorboard

RUN/log.jsonl and RUN/validation hold the same values and images with any tracker.
"""

from __future__ import annotations

import hashlib
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonbrain.errors import UserError, first_line

log = logging.getLogger(__name__)


class Tracker:
    """Logs values and images to one of ``config.TRACKERS``. A resumed run continues its existing log.

    If the tracker fails during the run (no network, full disk), the failure is logged and tracking is disabled. Raises
    UserError if the tracker is not installed or does not start.
    """

    def __init__(self, name: str, run: Path, step: int, config: dict[str, Any]) -> None:
        self.name, self.alive = name, True
        try:
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                # drop the steps that a killed run logged after its last checkpoint
                self.backend: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
            else:
                self.module = import_module(name)  # trackio has wandb's interface
                known = hashlib.blake2b(str(run.resolve()).encode(), digest_size=6).hexdigest()
                own = {"id": f"{run.name}-{known}", "dir": str(run)} if name == "wandb" else {}
                self.backend = self.module.init(
                    project="reasonbrain", name=run.name, config=config, resume="allow", **own
                )
        except ImportError:
            package = "'reasonbrain[train]'" if name == "tensorboard" else name
            raise UserError(
                f"train.tracker: {name} is not installed; pip install {package}, or train.tracker=null"
            ) from None
        except Exception as e:  # the error types differ between services
            raise UserError(f"train.tracker: {name} does not start: {first_line(e)}") from None

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs the named values of a step."""
        if self.name == "tensorboard":
            self._send(lambda: [self.backend.add_scalar(key, value, step) for key, value in values.items()])
        else:
            self._send(lambda: self.backend.log(values, step=step))

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        if self.name == "tensorboard":
            self._send(lambda: self.backend.add_image(name, np.asarray(picture), step, dataformats="HWC"))
        else:
            self._send(lambda: self.backend.log({name: self.module.Image(picture)}, step=step))

    def close(self) -> None:
        self._send(self.backend.close if self.name == "tensorboard" else self.backend.finish)

    def _send(self, send: Any) -> None:
        if not self.alive:
            return
        try:
            send()
        except Exception as e:
            self.alive = False
            log.warning(f"train.tracker: {self.name} failed ({first_line(e)}); the run continues without it")
