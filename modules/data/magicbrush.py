"""MagicBrush (arXiv:2306.10012). Its splits are published in two layouts: Parquet files, and a folder of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reasonbrain.data.reader import transparent
from reasonbrain.data.record import RawRecord
from reasonbrain.modules.data.folders import Folder
from reasonbrain.modules.data.parquet import Parquet


class MagicBrushSessions(Folder):
    """The test split, published as a zip file: edit_sessions.json with {ID: [{"input", "mask", "output",
    "instruction"}, ...]} and the named pictures in images/ID, as read by edit_cli_single_multi_turn.py of
    OSU-NLP-Group/MagicBrush. Masks are as in the other splits."""

    signs = ("edit_sessions.json",)
    layout = "edit_sessions.json, images/ID/ID-input.png, images/ID/ID-output1.png"
    mask = staticmethod(transparent)

    def find(self, path: Path) -> list[tuple[str, int, dict[str, str]]]:
        sessions = self.json("edit_sessions.json").items()
        return [(name, n, dict(turn)) for name, turns in sessions for n, turn in enumerate(turns, 1)]

    def raw(self, index: int) -> RawRecord:
        session, number, turn = self.found[index]
        named = {k: f"images/{session}/{turn[k]}" for k in ("input", "output", "mask") if turn.get(k)}
        fields = {"source": named.get("input"), "target": named.get("output"), "mask": named.get("mask")}
        return self.from_fields(fields | {"id": f"{session}-{number}", "instruction": turn.get("instruction")}, index)


class MagicBrush(Parquet):
    """MagicBrush (arXiv:2306.10012): the train and dev splits (osunlp/MagicBrush on the Hub), or the test split's
    folder with edit_sessions.json. Each turn of a session is a record; from turn 2 on, ``source_img`` is the target of
    the previous turn. ``mask_img`` is the source, transparent where the edit may change it."""

    columns = ("img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img")
    other_layouts = (MagicBrushSessions,)
    mask = staticmethod(transparent)

    def from_cells(self, cells: dict[str, Any], index: int) -> RawRecord:
        session, turn = (self.as_text(cells[name], name, index) for name in ("img_id", "turn_index"))
        named = {"id": f"{session}-{turn}", "mask": cells["mask_img"]}
        return self.from_fields(cells | named, index)
