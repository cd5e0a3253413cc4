"""Parquet files in the Hub's layout: a column a field, pictures as {"bytes", "path"}.

Read through ``datasets``, which turns the files into Arrow once, in its cache folder (HF_DATASETS_CACHE), and maps
that into memory: a record is then reached without decoding the hundreds of others in its row group.
Needs the extra [data].
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonbrain.data.reader import SOURCE, Reader, Row, transparent
from reasonbrain.errors import UserError


class Parquet(Reader):
    """``paths``: the files. Columns are named as in a manifest. Raises UserError for a file that is not Parquet, for
    missing columns, and where ``datasets`` is not installed or cannot write its cache."""

    needs: Sequence[str] = ()

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths[0].parent, paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
        table = load(paths)
        missing = [name for name in self.needs if name not in table.column_names]
        if missing or not set(table.column_names) & {*SOURCE, *self.needs}:
            lacks = ", ".join(missing or SOURCE)
            raise UserError(f"{self.name} has no column {lacks}, but {', '.join(table.column_names)}")
        self.table = table.with_format("arrow")  # pictures stay encoded

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Row:
        return self.named(self.table[index].to_pylist()[0], index)

    def named(self, cells: dict[str, Any], index: int) -> Row:
        return self.from_fields(cells, index)


class MagicBrush(Parquet):
    """MagicBrush's train and dev splits (arXiv:2306.10012; osunlp/MagicBrush on the Hub). Each turn of a session is a
    record: from turn 2 on ``source_img`` is the true edit of the turn before. ``mask_img`` is the source, transparent
    where the edit may change it."""

    needs = ("img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img")
    mask = staticmethod(transparent)

    def named(self, cells: dict[str, Any], index: int) -> Row:
        record = f"{cells['img_id']}-{cells['turn_index']}"
        return self.from_fields({"id": record, "mask": cells["mask_img"]} | _less(cells, "id"), index)


class EmuEdit(Parquet):
    """The Emu Edit test set (arXiv:2311.10089; facebook/emu_edit_test_set on the Hub): no true edits, captions of
    source and wanted result; its task is the category."""

    needs = ("instruction", "image", "task", "split", "idx", "hash", "input_caption", "output_caption")

    def named(self, cells: dict[str, Any], index: int) -> Row:
        captions = {"source_caption": cells["input_caption"], "target_caption": cells["output_caption"]}
        row = {"source": cells["image"], "category": cells["task"], **captions}
        found = self.from_fields({k: cells[k] for k in ("idx", "instruction")} | row, index)
        found.notes = {k: str(cells[k]) for k in ("split", "hash")}
        return found


class InstructPix2Pix(Parquet):
    """InstructPix2Pix on the Hub (arXiv:2211.09800; timbrooks/instructpix2pix-clip-filtered)."""

    needs = ("original_image", "edit_prompt", "edited_image")

    def named(self, cells: dict[str, Any], index: int) -> Row:
        captions = (cells.get("original_prompt") or "", cells.get("edited_prompt") or "")
        return self.from_fields(cells | dict(zip(("source_caption", "target_caption"), captions, strict=True)), index)


def _less(cells: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in cells.items() if k != name}


def load(paths: Sequence[Path]) -> Any:
    """The files as one memory-mapped ``datasets.Dataset``. Raises UserError."""
    try:
        import datasets
    except ImportError:
        raise UserError("Parquet is read with datasets: pip install 'reasonbrain[data]'") from None
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would say is raised here
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset("parquet", data_files=[str(p) for p in paths], split="train")
    except Exception as e:  # pyarrow's and datasets' errors have none in common
        cause: BaseException = e
        while cause.__cause__:
            cause = cause.__cause__
        raise UserError(f"'{paths[0]}' cannot be read as Parquet: {str(cause) or type(cause).__name__}") from None


def by_columns(paths: Sequence[Path]) -> str:
    """The reader whose columns these files have. Raises UserError."""
    columns = set(load(paths).column_names)
    named = {"magicbrush": MagicBrush, "emu_edit": EmuEdit, "instructpix2pix": InstructPix2Pix}
    return next((name for name, cls in named.items() if columns.issuperset(cls.needs)), "parquet")
