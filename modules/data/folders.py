"""Data sets published as folders of pictures with JSON or text files.

Each class names the code or paper that defines its layout. Records with several source pictures are skipped, since a
record has exactly one source.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from reasonbrain.data.reader import LARGEST, Reader
from reasonbrain.data.record import RawRecord
from reasonbrain.errors import UserError
from reasonbrain.utils.reading import parse_json

MORE_PICTURES = (".heic", ".heif", ".avif", ".jxl")  # suffixes that Pillow may not register
PART = re.compile(r"(.+)(_(?:source|target|mask))")


class Folder(Reader):
    """A folder whose records are listed by ``find`` when it is opened. ``layout``: its files, for error messages.

    ``path``: the folder, or a file in it. Raises UserError if it does not exist or contains no record in the layout."""

    layout: str

    def __init__(self, path: str) -> None:
        there = Path(path)
        if not there.exists():
            raise UserError(f"data.path: '{path}' does not exist")
        super().__init__(there if there.is_dir() else there.parent, path)
        try:
            self.found = self.find(there)
            names = Counter(self.path_of(entry).replace("/", "-") for entry in self.found)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{path}: not in the layout {self.layout} ({e!r})") from None
        if not self.found:
            raise UserError(f"{path}: no record in the layout {self.layout}")
        self.shared = {name for name, count in names.items() if name and count > 1}

    def __len__(self) -> int:
        return len(self.found)

    @abstractmethod
    def find(self, path: Path) -> list[Any]:
        """One entry per record, from which ``raw`` reads it."""

    def path_of(self, entry: Any) -> str:
        """The common path of a record's files without their endings, from which ``id`` makes its id; "" if the record
        has an id of its own."""
        return ""

    def id(self, path: str) -> str:
        """The id for a path: "/" becomes "-", unless two records would then have the same id."""
        flat = path.replace("/", "-")
        return path if flat in self.shared else flat

    def inputs(self) -> Iterator[Path]:
        yield from (file for file in sorted(Path(self.root).rglob("*")) if file.suffix.lower() in (".txt", ".json"))
        yield from super().inputs()

    def text(self, name: str) -> str:
        """The content of a text file of the data set. Raises UserError if it cannot be read, is not UTF-8, or is
        outside the folder."""
        file = self.inside(name, name)
        try:
            if not file.is_file():  # reading a pipe would block
                raise UserError(f"'{os.path.join(self.root, name)}' does not exist or is not a file")
            if file.stat().st_size > LARGEST:
                raise UserError(f"'{file}' has more than {LARGEST} bytes")
            return file.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as e:
            raise UserError(f"'{file}' cannot be read: {e}") from None

    def json(self, name: str) -> Any:
        try:
            return parse_json(self.text(name))
        except (ValueError, RecursionError) as e:
            raise UserError(f"'{os.path.join(self.root, name)}' is not JSON: {e}") from None


class Triples(Folder):
    """A folder with, at any depth, NAME.txt (the instruction) next to the pictures NAME_source, NAME_target and
    NAME_mask. The subfolder is the category. Target and mask are optional.

    A picture without its text, any other picture, and a link to a folder become records that cannot be read, so that
    nothing is skipped silently. Hidden files are ignored."""

    signs = ("**/*_source.*",)
    layout = "NAME.txt, NAME_source.png, NAME_target.png"

    def find(self, path: Path) -> list[tuple[str, tuple[str, ...]]]:
        """The common path of each record's files, and their endings: (".txt", "_source.png", "_target.png")."""
        pictures, found = {*Image.registered_extensions(), *MORE_PICTURES}, defaultdict(list)
        for folder, folders, files in os.walk(path):
            within = Path(folder).relative_to(path)
            folders[:] = [f for f in folders if f[0] != "."]
            for name in sorted(files) + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                stem, suffix = os.path.splitext(name)
                part = PART.fullmatch(stem) if suffix.lower() in pictures else None
                if name[0] != "." and (suffix.lower() in {".txt", *pictures} or name in folders):
                    found[(within / (part[1] if part else stem)).as_posix()].append((part[2] if part else "") + suffix)
        return sorted((name, tuple(ends)) for name, ends in found.items())

    def path_of(self, entry: tuple[str, tuple[str, ...]]) -> str:
        return entry[0]

    def raw(self, index: int) -> RawRecord:
        name, ends = self.found[index]
        files: dict[str, str] = {}
        for end in ends:
            part = end.rpartition(".")[0].lstrip("_") or ("instruction" if end.lower() == ".txt" else end)
            if part in files:
                raise self.wrong(self.id(name), f"'{files[part]}' and '{name}{end}' are both its {part}")
            files[part] = name + end
        if "instruction" not in files:
            raise self.wrong(self.id(name), f"'{name}.txt' does not exist, only '{name}{ends[0]}'")
        if "source" not in files:
            raise self.wrong(self.id(name), f"picture '{name}_source.png' does not exist")
        words = self.text(files["instruction"]).strip()
        return self.from_fields(files | {"instruction": words, "category": os.path.dirname(name)}, self.id(name))


class EditWorld(Folder):
    """EditWorld (arXiv:2405.14785): BRANCH/group_K/sampleN_{ori,tar}.png with img_txt.json, as written by
    t2i_branch_base.py of YangLing0818/EditWorld. The paths in img_txt.json are those of its authors' machine, so
    pictures are looked up next to it. Its misspelt keys "instuction" and "target_cation" are read like the correct
    ones."""

    signs = ("**/img_txt.json",)
    layout = "group_K/img_txt.json, group_K/sampleN_ori.png, group_K/sampleN_tar.png"

    def find(self, path: Path) -> list[tuple[str, str, dict[str, str]]]:
        groups = sorted(f.parent.relative_to(path).as_posix() for f in path.rglob("img_txt.json"))
        return [(group, n, dict(row)) for group in groups for n, row in self.json(f"{group}/img_txt.json").items()]

    def raw(self, index: int) -> RawRecord:
        group, name, fields = self.found[index]
        row = {"source": f"{group}/{name}_ori.png", "target": f"{group}/{name}_tar.png"}
        row |= {"instruction": fields.get("instruction") or fields.get("instuction") or ""}
        row |= {"source_caption": fields.get("original_caption"), "category": os.path.dirname(group)}
        row |= {"target_caption": fields.get("target_caption") or fields.get("target_cation")}
        return self.from_fields(row, self.id(self.path_of(self.found[index])))

    def path_of(self, entry: tuple[str, str, dict[str, str]]) -> str:
        return f"{entry[0]}/{entry[1]}".removeprefix("./")


class ReasonEdit(Folder):
    """ReasonEdit (SmartEdit, arXiv:2312.06739): numbered folders such as 6-Reasoning with NNN.png, NNN_mask.jpg (white
    on the object) and one text file, whose line i, "instruction CLIP: object", belongs to picture i in the order of
    names. Read as by test/metrics_evaluation.py of TencentARC/SmartEdit. There are no target pictures; the note
    ``CLIP`` is the object that the CLIP score is computed for."""

    signs = ("**/*_mask.jpg",)
    layout = "N-NAME/NNN.png, N-NAME/NNN_mask.jpg, N-NAME/*.txt"

    def find(self, path: Path) -> list[tuple[str, str]]:
        found = []
        for words in sorted(path.rglob("*.txt")):
            lines = [line for line in self.text(words.relative_to(path).as_posix()).split("\n") if line.strip()]
            pictures = sorted(p for p in words.parent.iterdir() if p.suffix.lower() == ".png" and p.name[0] != ".")
            if len(lines) != len(pictures):
                raise UserError(f"'{words}' has {len(lines)} lines for {len(pictures)} pictures")
            found += [(p.relative_to(path).as_posix(), line) for p, line in zip(pictures, lines, strict=True)]
        return found

    def path_of(self, entry: tuple[str, str]) -> str:
        return os.path.splitext(entry[0])[0]

    def raw(self, index: int) -> RawRecord:
        source, line = self.found[index]
        name = self.path_of(self.found[index])
        instruction, _, thing = line.partition("CLIP: ")
        row = {"source": source, "mask": f"{name}_mask.jpg", "instruction": instruction.strip()}
        row |= {"category": os.path.basename(os.path.dirname(name))}
        return self.from_fields(row, self.id(name), {"CLIP": thing.strip()})


class RiseBench(Folder):
    """RISEBench (arXiv:2504.02826): a JSON list of {"index", "category", "instruction", "image", "reference"...} next
    to CATEGORY_images/, as in gpt_eval.py and RISEBench++/data of PhoenixZ810/RISEBench. ``reference_img``, if a record
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
        return self.from_fields(
            fields | {k: row.get(k) for k in ("category", "instruction")}, index, _notes(row, self.own)
        )


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
        return self.from_fields(fields | {"instruction": row.get("ins_en")}, index, _notes(row, self.own))


def _single(image: str | list[str]) -> str | None:
    """The source picture, or None if there are several."""
    return image if isinstance(image, str) else image[0] if len(image) == 1 else None


def _notes(row: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, str]:
    return {k: str(v) for k, v in row.items() if k not in own and v not in (None, "")}
