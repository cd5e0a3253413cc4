"""Validation during training: the loss on held-out records with fixed noise, and sample edits.

Each record is evaluated alone, with its index as seed, so losses of runs with different batch sizes or numbers of
processes are comparable. Validation uses the current weights, not the averaged ones.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from reasonbrain.config.schema import Config, DataConfig, loss_weights
from reasonbrain.data.dataset import DataSet
from reasonbrain.data.mixture import Mixture
from reasonbrain.data.opening import open_validation
from reasonbrain.interfaces import Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.train.distributed import processes
from reasonbrain.train.feature_cache import Prepared, compute
from reasonbrain.utils.images import save_image, to_pil
from reasonbrain.utils.reading import sketch

RECORDS, DRAWS = 16, 4  # records, and noise levels per record
PICTURES, SIDE = 4, 192  # sample edits, and the side of an image in pixels


class Validation:
    """Validates ``model``, which ``engine`` trains. Its methods are collective: all processes must call them."""

    def __init__(self, cfg: Config, model: ReasonBrain, engine: Any, run: Path) -> None:
        self.cfg, self.model, self.engine, self.run = cfg, model, engine, run
        records = open_validation(cfg.data)
        self.data = records.source
        self.records = [compute(model, records[i]) for i in range(min(RECORDS, len(records)))]

    def inputs(self, record: Prepared) -> Inputs:
        """A batch of one record with its first instruction; objects are found in the text, as in inference."""
        images = record.image[None].to(self.model.device).float() / 255
        ready = {slot: features[None] for slot, features in record.ready.items()}
        sentences = [record.sentence] if record.sentence else None
        return self.model.make_inputs(images, record.instructions[:1], None, record.regions[None], ready, sentences)

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Returns ``validation/loss``, ``validation/lm`` and ``validation/dm``, averaged over records and processes."""
        self.model.eval()
        sums: dict[str, tuple[float, int]] = {}
        for first in range(0, len(self.records), processes.world()):
            number = first + processes.rank()
            record = self.records[
                min(number, len(self.records) - 1)
            ]  # all processes must run the same number of passes
            latents = [t[None].to(self.model.device) for t in (record.source, record.target)]
            batch = self.inputs(record), *latents, [number]
            named = self.engine.forward(partial(self.engine.model, *batch, DRAWS, **loss_weights(self.cfg.train)))
            for name in ("loss", "lm", "dm"):
                total, count = sums.get(f"validation/{name}", (0.0, 0))
                counts = int(number < len(self.records))
                sums[f"validation/{name}"] = total + counts * named[name].item(), count + counts
        self.model.train()
        return processes.means(sums, self.engine.device)

    def _edit(self, diffusion: Any, inputs: Inputs, source: Tensor, seed: int) -> Tensor:
        """Edited latents [1, C, h, w]."""
        condition, _ = self.model.condition(inputs)
        noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed)).to(source)
        edit = self.model.edit_settings(self.cfg.edit)
        return diffusion.sample(condition, source, noise, edit.steps, **self.model.scales(edit)).float()

    @torch.no_grad()
    def edits(self, step: int) -> Image.Image | None:
        """Edits some records; returns a sheet with a row of source, edit and target per record.

        The sheet is also saved to RUN/validation. Returns None without a diffusion model.
        """
        diffusion = self.model.slot("diffusion")
        if diffusion is None:
            return None
        self.model.eval()
        rows = []
        for number, record in enumerate(self.records[:PICTURES]):
            inputs, source = self.inputs(record), record.source[None].to(self.model.device)
            latents = self.engine.forward(partial(self._edit, diffusion, inputs, source, number))
            three = (source.to(latents), latents, record.target[None].to(latents))
            rows.append((record.instructions[0], [to_pil(diffusion.decode(x).cpu())[0] for x in three]))
        self.model.train()
        sheet = draw(rows)
        if processes.rank() == 0:
            folder = self.run / "validation"
            folder.mkdir(exist_ok=True)
            save_image(sheet, folder / f"step-{step:08d}.png")
        return sheet


def is_trained_on(data: DataConfig, training: DataSet, validation: DataSet) -> bool:
    """Whether ``data.validation`` is trained on: ``training`` has its path, one of its files or a copy of it, or the
    folder around it.

    ``training`` and ``validation``: the opened data sets."""
    parts = zip(data.mixture, training.parts, strict=True) if isinstance(training, Mixture) else [(data, training)]
    held = os.path.realpath(str(data.validation))
    for section, part in parts:
        if data.validation and section.path:
            path, files = os.path.realpath(section.path), {*map(sketch, part.files)}
            inside = not files and held.startswith(path + os.sep)  # such data sets are folders, read at any depth
            if held == path or inside or files.intersection(map(sketch, validation.files)):
                return True
    return False


def draw(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Draws rows of images onto one sheet, with a line of text above each row."""
    gap, line = 6, 18
    columns = max(len(pictures) for _, pictures in rows)
    sheet = Image.new("RGB", (columns * (SIDE + gap) + gap, len(rows) * (SIDE + line + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (text, pictures) in enumerate(rows):
        top = gap + i * (SIDE + line + gap)
        pen.text((gap, top), text, fill="black")
        for j, picture in enumerate(pictures):
            scale = SIDE / max(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            shown = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
            sheet.paste(shown, (gap + j * (SIDE + gap), top + line))
    return sheet
