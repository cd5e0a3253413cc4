"""Data sets published as folders of pictures with JSON or text files.

Each class names the code or paper that defines its layout. Records with several source pictures are skipped, since a
record has exactly one source.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonbrain.data.reader import Reader
from reasonbrain.data.record import RawRecord
from reasonbrain.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Folder(Reader):
    """A folder whose records are listed by ``find`` when it is opened. ``layout``: its files, for messages.

    ``path``: the folder, or a file in it. Raises UserError if it does not exist, or holds no record in the layout."""

    layout: str

    def __init__(self, path: str) -> None:
        there = Path(path)
        if not there.exists():
            raise UserError(f"data.path: '{path}' does not exist")
        super().__init__(there if there.is_dir() else there.parent, path)
        try:
            self.found = self.find(there)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{path}: not in the layout {self.layout} ({e!r})") from None
        if not self.found:
            raise UserError(f"{path}: holds no record in the layout {self.layout}")

    def __len__(self) -> int:
        return len(self.found)

    @abstractmethod
    def find(self, path: Path) -> list[Any]:
        """One entry per record, from which ``raw`` reads it."""

    def text(self, name: str) -> str:
        """A text file of the data set. Raises UserError if it cannot be read, is not text, or lies outside."""
        file = self.inside(name, name)
        try:
            if not file.is_file():  # reading a pipe would block
                raise UserError(f"'{file}' does not exist or is not a file")
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            raise UserError(f"'{file}' cannot be read: {e}") from None

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as e:
            raise UserError(f"'{os.path.join(self.root, name)}' is not JSON: {e}") from None


class Triples(Folder):
    """Any folder with, at any depth, NAME.txt (the instruction) beside the pictures NAME_source, NAME_target and
    NAME_mask. The sub-folder is the category. A record may lack target and mask."""

    signs = ("**/*_source.*",)
    layout = "NAME.txt, NAME_source.png, NAME_target.png"

    def find(self, path: Path) -> list[str]:
        return sorted(p.relative_to(path).as_posix()[:-4] for p in path.rglob("*.txt"))

    def raw(self, index: int) -> RawRecord:
        name = self.found[index]
        record = name.replace("/", "-")
        instruction = self.text(name + ".txt").strip()
        source, target, mask = (self._picture(f"{name}_{part}", record) for part in ("source", "target", "mask"))
        if source is None:
            raise self.wrong(record, f"picture '{name}_source.png' does not exist")
        return RawRecord(record, source, target, [instruction], category=os.path.dirname(name), mask=mask)

    def _picture(self, name: str, record: str) -> Path | None:
        there = (name + suffix for suffix in SUFFIXES if os.path.lexists(os.path.join(self.root, name + suffix)))
        found = next(there, None)
        return None if found is None else self.inside(found, record)


class EditWorld(Folder):
    """EditWorld (arXiv:2405.14785): BRANCH/group_K/sampleN_{ori,tar}.png with img_txt.json, as written by
    t2i_branch_base.py of YangLing0818/EditWorld. The paths in img_txt.json are of its authors' machine, so pictures are
    looked up beside it. Its misspelt keys "instuction" and "target_cation" are read as well as the correct ones."""

    signs = ("**/img_txt.json",)
    layout = "group_K/img_txt.json, group_K/sampleN_ori.png, group_K/sampleN_tar.png"

    def find(self, path: Path) -> list[tuple[str, str, dict[str, str]]]:
        groups = sorted(f.parent.relative_to(path).as_posix() for f in path.rglob("img_txt.json"))
        return [(group, n, dict(row)) for group in groups for n, row in self.json(f"{group}/img_txt.json").items()]

    def raw(self, index: int) -> RawRecord:
        group, name, fields = self.found[index]
        record = f"{group}-{name}".replace("/", "-").removeprefix(".-")
        source, target = (self.inside(f"{group}/{name}_{end}.png", record) for end in ("ori", "tar"))
        said = str(fields.get("instruction") or fields.get("instuction") or "")
        before, after = fields.get("original_caption", ""), fields.get("target_caption") or fields.get("target_cation")
        captions = (str(before), str(after or ""))
        category = os.path.dirname(group)
        return RawRecord(
            record, source, target, [said], category=category, captions=captions if any(captions) else None
        )


class ReasonEdit(Folder):
    """ReasonEdit (SmartEdit, arXiv:2312.06739): numbered folders such as 6-Reasoning with NNN.png, NNN_mask.jpg (white
    on the object) and one text file, whose line i belongs to picture i in the order of names: "instruction CLIP:
    object". As test/metrics_evaluation.py of TencentARC/SmartEdit reads it. There are no true edits; the note ``CLIP``
    is the object that the CLIP score is computed for."""

    signs = ("**/*_mask.jpg",)
    layout = "N-NAME/NNN.png, N-NAME/NNN_mask.jpg, N-NAME/*.txt"

    def find(self, path: Path) -> list[tuple[str, str]]:
        found = []
        for words in sorted(path.rglob("*.txt")):
            lines = [line for line in self.text(words.relative_to(path).as_posix()).split("\n") if line.strip()]
            pictures = sorted(words.parent.glob("*.png"))
            if len(lines) != len(pictures):
                raise UserError(f"'{words}' has {len(lines)} lines for {len(pictures)} pictures")
            found += [(p.relative_to(path).as_posix()[:-4], line) for p, line in zip(pictures, lines, strict=True)]
        return found

    def raw(self, index: int) -> RawRecord:
        name, line = self.found[index]
        record = name.replace("/", "-")
        instruction, _, thing = line.partition("CLIP: ")
        source, mask = (self.inside(name + end, record) for end in (".png", "_mask.jpg"))
        category, notes = os.path.basename(os.path.dirname(name)), {"CLIP": thing.strip()}
        return RawRecord(record, source, None, [instruction.strip()], category=category, mask=mask, notes=notes)


class RiseBench(Folder):
    """RISEBench (arXiv:2504.02826): a JSON list of {"index", "category", "instruction", "image", "reference"...} beside
    CATEGORY_images/; as in gpt_eval.py and RISEBench++/data of PhoenixZ810/RISEBench. ``reference_img``, if a record
    has one, is the target, and may have another size. The fields for the judge are notes."""

    suffixes = (".json",)
    signs = ("*_reasoning_images",)
    layout = '[{"index", "category", "instruction", "image"}, ...]'
    categories = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
    names = ("datav2_total_w_subtask.json", "data_total.json", "overall_data.json")
    own = ("index", "category", "instruction", "image")

    def find(self, path: Path) -> list[dict[str, Any]]:
        there = [name for name in self.names if (path / name).is_file()]
        file = path.name if path.is_file() else [*there, self.names[0]][0]
        rows = [{**row, "image": _single(row["image"])} for row in self.json(file)]
        return [row for row in rows if row["image"]]

    def raw(self, index: int) -> RawRecord:
        row = self.found[index]
        fields = {"id": row.get("index"), "source": row["image"], "target": row.get("reference_img")}
        found = self.from_fields(fields | {k: row.get(k) for k in ("category", "instruction")}, index)
        found.notes = _notes(row, self.own)
        return found


class KrisBench(Folder):
    """KRIS-Bench (arXiv:2505.16707): TASK/annotation.json with {N: {"ori_img", "gt_img"?, "ins_en", "explain_en"}} and
    its pictures, as in mercurystraw/Kris_Bench. ``gt_img`` is the target, and may have another size. All records of
    temporal_prediction and multi-element_composition have several sources, so these two tasks are left out."""

    signs = ("*/annotation.json",)
    layout = 'TASK/annotation.json with {N: {"ori_img", "ins_en"}}'
    own = ("ori_img", "ins_en")

    def find(self, path: Path) -> list[tuple[str, str, dict[str, Any]]]:
        tasks = sorted(f.parent.name for f in path.glob("*/annotation.json"))
        rows = [(task, n, row) for task in tasks for n, row in self.json(f"{task}/annotation.json").items()]
        rows = [(task, n, {**row, "ori_img": _single(row["ori_img"])}) for task, n, row in rows]
        return [row for row in rows if row[2]["ori_img"]]

    def raw(self, index: int) -> RawRecord:
        task, number, row = self.found[index]
        fields = {"source": f"{task}/{row['ori_img']}", "id": f"{task}-{number}", "category": task}
        fields["target"] = f"{task}/{row['gt_img']}" if row.get("gt_img") else None
        found = self.from_fields(fields | {"instruction": row.get("ins_en")}, index)
        found.notes = _notes(row, self.own)
        return found


def _single(image: str | list[str]) -> str | None:
    """The source picture, or None if there are several."""
    return image if isinstance(image, str) else image[0] if len(image) == 1 else None


def _notes(row: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, str]:
    return {k: str(v) for k, v in row.items() if k not in own and v not in (None, "")}
