"""Data sets that are folders of pictures beside JSON or text files, each in its public layout.

Where a layout was taken from is said at each class. A benchmark's record with several source pictures is left out: a
record has one source, as has every model here.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonbrain.data.reader import Reader, Row, transparent
from reasonbrain.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Folder(Reader):
    """A folder whose records are found when it is opened: ``find`` gives for each what ``build`` makes a row of.

    Raises UserError where there is no such folder, or it holds no record in the layout."""

    layout: str

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"data.path: '{path}' does not exist")
        super().__init__(path if path.is_dir() else path.parent, path)
        try:
            self.found = self.find(path)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{path}: not in the layout {self.layout} ({e!r})") from None
        if not self.found:
            raise UserError(f"{path}: holds no record in the layout {self.layout}")

    def __len__(self) -> int:
        return len(self.found)

    @abstractmethod
    def find(self, path: Path) -> list[Any]:
        """What there is of each record, for ``row``."""

    def text(self, name: str) -> str:
        """A text file of the data set. Raises UserError where it cannot be read, is no text, or leads outside."""
        file = self.inside(name, name)
        try:
            if not file.is_file():  # reading a pipe would wait for ever
                raise UserError(f"'{file}' does not exist or is no file")
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            raise UserError(f"'{file}' cannot be read: {e}") from None

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as e:
            raise UserError(f"'{os.path.join(self.root, name)}' is not JSON: {e}") from None


class Triples(Folder):
    """Any folder, at any depth: NAME.txt with the instruction beside NAME_source, NAME_target and NAME_mask as
    pictures; the sub-folder is the category. A record may lack target and mask."""

    layout = "NAME.txt, NAME_source.png, NAME_target.png"

    def find(self, path: Path) -> list[str]:
        return sorted(p.relative_to(path).as_posix()[:-4] for p in path.rglob("*.txt"))

    def row(self, index: int) -> Row:
        name = self.found[index]
        record = name.replace("/", "-")
        instruction = self.text(name + ".txt").strip()
        source, target, mask = (self._picture(f"{name}_{part}", record) for part in ("source", "target", "mask"))
        if source is None:
            raise self.wrong(record, f"picture '{name}_source.png' does not exist")
        return Row(record, source, target, [instruction], category=os.path.dirname(name), mask=mask)

    def _picture(self, name: str, record: str) -> Path | None:
        there = (name + suffix for suffix in SUFFIXES if os.path.lexists(os.path.join(self.root, name + suffix)))
        found = next(there, None)
        return None if found is None else self.inside(found, record)


class EditWorld(Folder):
    """EditWorld (arXiv:2405.14785): BRANCH/group_K/sampleN_{ori,tar}.png with img_txt.json, as written by
    t2i_branch_base.py of YangLing0818/EditWorld. The paths in that file are those of its authors' machine: pictures are
    looked for beside it. It spells "instuction" and "target_cation"; both spellings are read."""

    layout = "group_K/img_txt.json, group_K/sampleN_ori.png, group_K/sampleN_tar.png"

    def find(self, path: Path) -> list[tuple[str, str, dict[str, str]]]:
        groups = sorted(f.parent.relative_to(path).as_posix() for f in path.rglob("img_txt.json"))
        return [(group, n, dict(row)) for group in groups for n, row in self.json(f"{group}/img_txt.json").items()]

    def row(self, index: int) -> Row:
        group, name, fields = self.found[index]
        record = f"{group}-{name}".replace("/", "-").removeprefix(".-")
        source, target = (self.inside(f"{group}/{name}_{end}.png", record) for end in ("ori", "tar"))
        said = str(fields.get("instruction") or fields.get("instuction") or "")
        before, after = fields.get("original_caption", ""), fields.get("target_caption") or fields.get("target_cation")
        captions = (str(before), str(after or ""))
        category = os.path.dirname(group)
        return Row(record, source, target, [said], category=category, captions=captions if any(captions) else None)


class ReasonEdit(Folder):
    """ReasonEdit (SmartEdit, arXiv:2312.06739): numbered folders such as 6-Reasoning with NNN.png, NNN_mask.jpg (white
    on the object) and one text file, whose line i belongs to picture i in the order of names: "instruction CLIP:
    object". As test/metrics_evaluation.py of TencentARC/SmartEdit reads it. There are no true edits; the object that
    the CLIP score is told is the note ``CLIP``."""

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

    def row(self, index: int) -> Row:
        name, line = self.found[index]
        record = name.replace("/", "-")
        instruction, _, thing = line.partition("CLIP: ")
        source, mask = (self.inside(name + end, record) for end in (".png", "_mask.jpg"))
        category, notes = os.path.basename(os.path.dirname(name)), {"CLIP": thing.strip()}
        return Row(record, source, None, [instruction.strip()], category=category, mask=mask, notes=notes)


class Pix2PixFolder(Folder):
    """InstructPix2Pix (arXiv:2211.09800) as its authors publish it: seeds.json with [[PROMPT, [SEED, ...]], ...], and
    PROMPT/prompt.json ("edit", "input", "output"), PROMPT/SEED_0.jpg, PROMPT/SEED_1.jpg, as read by edit_dataset.py of
    timothybrooks/instruct-pix2pix. Every seed is a record."""

    layout = "seeds.json, PROMPT/prompt.json, PROMPT/SEED_0.jpg, PROMPT/SEED_1.jpg"

    def find(self, path: Path) -> list[str]:
        return [f"{prompt}/{seed}" for prompt, seeds in self.json("seeds.json") for seed in seeds]

    def row(self, index: int) -> Row:
        name = self.found[index]
        record = name.replace("/", "-")
        said = self.json(os.path.dirname(name) + "/prompt.json")
        if not isinstance(said, dict) or not isinstance(said.get("edit"), str):
            raise self.wrong(record, "prompt.json has no 'edit'")
        source, target = (self.inside(name + end, record) for end in ("_0.jpg", "_1.jpg"))
        captions = (str(said.get("input", "")), str(said.get("output", "")))
        return Row(record, source, target, [said["edit"]], captions=captions if any(captions) else None)


class MagicBrushSessions(Folder):
    """MagicBrush's test split (arXiv:2306.10012), which is a zip file: edit_sessions.json with {ID: [{"input", "mask",
    "output", "instruction"}, ...]} and images/ID/<those names>, as read by edit_cli_single_multi_turn.py of
    OSU-NLP-Group/MagicBrush. Masks as in its other splits."""

    layout = "edit_sessions.json, images/ID/ID-input.png, images/ID/ID-output1.png"
    mask = staticmethod(transparent)

    def find(self, path: Path) -> list[tuple[str, int, dict[str, str]]]:
        sessions = self.json("edit_sessions.json").items()
        return [(name, n, dict(turn)) for name, turns in sessions for n, turn in enumerate(turns, 1)]

    def row(self, index: int) -> Row:
        session, number, turn = self.found[index]
        named = {k: f"images/{session}/{turn[k]}" for k in ("input", "output", "mask") if turn.get(k)}
        fields = {"source": named.get("input"), "target": named.get("output"), "mask": named.get("mask")}
        return self.from_fields(fields | {"id": f"{session}-{number}", "instruction": turn.get("instruction")}, index)


class RiseBench(Folder):
    """RISEBench (arXiv:2504.02826): a JSON list of {"index", "category", "instruction", "image", "reference"...} beside
    CATEGORY_images/; as in gpt_eval.py and RISEBench++/data of PhoenixZ810/RISEBench. ``reference_img``, where there
    is one, is the target, and may have another size; the fields for the judge are the notes."""

    layout = '[{"index", "category", "instruction", "image"}, ...]'
    categories = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
    names = ("datav2_total_w_subtask.json", "data_total.json", "overall_data.json")
    own = ("index", "category", "instruction", "image")

    def find(self, path: Path) -> list[dict[str, Any]]:
        there = [name for name in self.names if (path / name).is_file()]
        file = path.name if path.is_file() else [*there, self.names[0]][0]
        rows = [{**row, "image": _single(row["image"])} for row in self.json(file)]
        return [row for row in rows if row["image"]]

    def row(self, index: int) -> Row:
        row = self.found[index]
        fields = {"id": row.get("index"), "source": row["image"], "target": row.get("reference_img")}
        found = self.from_fields(fields | {k: row.get(k) for k in ("category", "instruction")}, index)
        found.notes = _notes(row, self.own)
        return found


class KrisBench(Folder):
    """KRIS-Bench (arXiv:2505.16707): TASK/annotation.json with {N: {"ori_img", "gt_img"?, "ins_en", "explain_en"}} and
    its pictures, as in mercurystraw/Kris_Bench. ``gt_img`` is the target, and may have another size. All records of
    temporal_prediction and multi-element_composition have several sources, so these two tasks are left out."""

    layout = 'TASK/annotation.json with {N: {"ori_img", "ins_en"}}'
    own = ("ori_img", "ins_en")

    def find(self, path: Path) -> list[tuple[str, str, dict[str, Any]]]:
        tasks = sorted(f.parent.name for f in path.glob("*/annotation.json"))
        rows = [(task, n, row) for task in tasks for n, row in self.json(f"{task}/annotation.json").items()]
        rows = [(task, n, {**row, "ori_img": _single(row["ori_img"])}) for task, n, row in rows]
        return [row for row in rows if row[2]["ori_img"]]

    def row(self, index: int) -> Row:
        task, number, row = self.found[index]
        fields = {"source": f"{task}/{row['ori_img']}", "id": f"{task}-{number}", "category": task}
        fields["target"] = f"{task}/{row['gt_img']}" if row.get("gt_img") else None
        found = self.from_fields(fields | {"instruction": row.get("ins_en")}, index)
        found.notes = _notes(row, self.own)
        return found


def _single(image: str | list[str]) -> str | None:
    """The one source; None where there are several."""
    return image if isinstance(image, str) else image[0] if len(image) == 1 else None


def _notes(row: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, str]:
    return {k: str(v) for k, v in row.items() if k not in own and v not in (None, "")}
