"""InstructPix2Pix (arXiv:2211.09800), published in two layouts: the authors' folders, and Parquet files on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from reasonbrain.data.record import RawRecord
from reasonbrain.modules.data.folders import Folder
from reasonbrain.modules.data.parquet import Parquet


class Pix2PixFolder(Folder):
    """The authors' layout: seeds.json with [[PROMPT, [SEED, ...]], ...], PROMPT/prompt.json ("edit", "input",
    "output"), PROMPT/SEED_0.jpg and PROMPT/SEED_1.jpg, as read by edit_dataset.py of timothybrooks/instruct-pix2pix.
    Every seed is a record."""

    signs = ("seeds.json",)
    layout = "seeds.json, PROMPT/prompt.json, PROMPT/SEED_0.jpg, PROMPT/SEED_1.jpg"

    def find(self, path: Path) -> list[str]:
        return [f"{prompt}/{seed}" for prompt, seeds in self.json("seeds.json") for seed in seeds]

    def path_of(self, entry: str) -> str:
        return entry

    def raw(self, index: int) -> RawRecord:
        name = self.found[index]
        said = self.json(os.path.dirname(name) + "/prompt.json")
        if not isinstance(said, dict) or not isinstance(said.get("edit"), str):
            raise self.wrong(self.id(name), "prompt.json has no 'edit'")
        fields = {"source": f"{name}_0.jpg", "target": f"{name}_1.jpg", "instruction": said["edit"]}
        captions = {"source_caption": said.get("input"), "target_caption": said.get("output")}
        return self.from_fields(fields | captions, self.id(name))


class InstructPix2Pix(Parquet):
    """InstructPix2Pix (arXiv:2211.09800): timbrooks/instructpix2pix-clip-filtered on the Hub, or the authors' folder of
    prompts, in which every seed is a record."""

    columns = ("original_image", "edit_prompt", "edited_image")
    other_layouts = (Pix2PixFolder,)

    def from_cells(self, cells: dict[str, Any], index: int) -> RawRecord:
        captions = {"source_caption": cells.get("original_prompt"), "target_caption": cells.get("edited_prompt")}
        return self.from_fields(cells | captions, index)
