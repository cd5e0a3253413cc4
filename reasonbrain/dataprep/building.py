"""Reason50K's construction: target pictures and prompts become triples of source, hypothetical instruction and target.

reasonbrain data build seeds.jsonl -o built --url http://localhost:8000/v1 --model LLM --pipeline PIPELINE
reasonbrain data review built
reasonbrain data build ...                         # the same command again: writes train.jsonl, val.jsonl, test.jsonl

The output folder:

    settings.json       the settings; must be the same on resume
    answers/            the endpoint's answers; no question is asked twice
    STAGE.jsonl         the finished rows of each stage
    pictures/ID/        target.png, mask.png, and the candidates for the source: 0.png, 1.png, ...
    review.jsonl        verdicts of the review
    dropped.jsonl       dropped rows and candidates with the reasons
    train.jsonl ...     the splits: manifests in Reason50K's format
    lock                locked while a command builds here

A stage has finished a row when its line is in STAGE.jsonl, so the same command resumes an interrupted build.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from reasonbrain.data.record import SCENARIOS
from reasonbrain.dataprep.executors import EXECUTORS
from reasonbrain.dataprep.rows import ID, check_seeds, check_settings, read_rows, read_verdicts
from reasonbrain.dataprep.split import SPLITS, write_splits
from reasonbrain.dataprep.stages import STAGES, Stage, Tools
from reasonbrain.errors import UserError
from reasonbrain.objects import finder_name
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.journal import Journal, JsonRow
from reasonbrain.utils.locks import alone
from reasonbrain.utils.reading import parse_json

log = logging.getLogger(__name__)

LONGEST_ID = 200  # maximum number of bytes of an id


def build(seeds: Path, tools: Tools, executor: str, review: bool, shares: Sequence[float]) -> str:
    """Runs every seed through all stages, writes the splits of the accepted rows, and returns a summary as text.

    ``executor``: a key of EXECUTORS. ``review``: True accepts only rows that a person accepted; False accepts all that
    passed the filters and were not rejected. ``shares``: of train, val and test, relative to their sum.

    Raises UserError for malformed seeds, for a folder that was built with other settings or is being built by another
    process, and for a tool that cannot be loaded."""
    rows = read_seeds(seeds)
    folder = tools.folder
    with alone(folder / "lock", busy=f"output '{folder}' is being built by another process"):
        settings = dataclasses.asdict(tools.settings)
        stages = [f"{stage.name}.jsonl" for stage in STAGES]
        splits = [f"{name}.jsonl" for name in SPLITS]
        check_settings(folder, settings, [*stages, "pictures", "review.jsonl", "dropped.jsonl", *splits])
        check_seeds(folder, rows)
        with whole_file(folder / "settings.json") as out:
            json.dump(settings, out, indent=1)
        log.info("objects are found by %s", finder_name())
        lines, ended = [], []
        for stage in STAGES:
            done = run_stage(stage, rows, tools, executor)
            rows = [row for row in done if "dropped" not in row]
            ended += [row for row in done if "dropped" in row]
            lines.append(f"{stage.name:12}{len(done):8d} rows, {len(rows)} of them passed")
        verdicts = read_verdicts(folder)
        said = {row["id"]: verdicts.get(row["id"], "" if review else "accept") for row in rows}
        ended += [row | {"dropped": "rejected in review"} if said[row["id"]] == "reject" else row for row in rows]
        dropped = [line for row in ended for line in left_out(row)]
        with whole_file(folder / "dropped.jsonl") as out:
            out.writelines(json.dumps(line) + "\n" for line in dropped)
        sizes = write_splits(folder, [row for row in rows if said[row["id"]] == "accept"], shares)
    counts = Counter(re.sub(r"'.*'|\d[\d.]*", "…", line["reason"]) for line in dropped)
    lines += [f"{number:8d} left out: {reason}" for reason, number in counts.most_common()]
    lines += [f"{name:12}{size:8d} records" for name, size in sizes.items()]
    if waiting := sum(not verdict for verdict in said.values()):
        lines.append(f"{waiting} not reviewed yet: reasonbrain data review {folder}")
    return "\n".join(lines)


def run_stage(stage: Stage, rows: Sequence[JsonRow], tools: Tools, executor: str) -> list[JsonRow]:
    """The rows after the stage, in their order. Rows in the stage's journal are not processed again."""
    path = tools.folder / f"{stage.name}.jsonl"
    done = read_rows(tools.folder, stage.name)
    todo = [row for row in rows if row["id"] not in done]
    with (
        Journal(path) as journal,
        tqdm(total=len(rows), initial=len(rows) - len(todo), desc=stage.name, disable=None) as bar,
    ):
        for row in EXECUTORS[executor](stage, todo, tools) if todo else ():
            journal.add(row)
            done[row["id"]] = row
            bar.update()
    return [done[row["id"]] for row in rows]


def left_out(row: JsonRow) -> list[JsonRow]:
    """Why a row and its candidates were dropped: {"id", "reason", "image"?} for each of them that was."""
    parts = [part for part in (row, *row.get("candidates", ())) if "dropped" in part]
    images = [{"image": part["image"]} if part is not row else {} for part in parts]
    return [{"id": row["id"], "reason": part["dropped"]} | image for part, image in zip(parts, images, strict=True)]


def read_seeds(path: Path) -> list[JsonRow]:
    """Reads lines of {"id", "image", "prompt", "category"?, "mask"?}; paths of pictures are relative to the file.

    Raises UserError, naming the line, for a malformed line, an id that is not a valid file name, and a repeated id."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, and a device need not end
        raise UserError(f"seeds '{path}' are not a file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON's texts may hold other ends of lines, as U+2028
    except (OSError, ValueError) as e:
        raise UserError(f"seeds '{path}' cannot be read: {e}") from None
    rows: dict[str, JsonRow] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = {key: value for key, value in parse_json(line).items() if value is not None}
            texts = ("image", "prompt", *({"category", "mask"} & row.keys()))
            name, wrong = str(row["id"]), [key for key in texts if not _is_text(row[key])]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f"seeds '{path}', line {number}: not a seed with id, image and prompt ({e!r})") from None
        if wrong:
            raise UserError(f"seeds '{path}', line {number}: {wrong[0]} is not text")
        if not ID.fullmatch(name) or len(name.encode()) > LONGEST_ID:
            raise UserError(
                f"seeds '{path}', line {number}: id '{name}' is not a file name of letters, digits, '.', '-', '_' "
                f"with at most {LONGEST_ID} bytes"
            )
        if name in rows:
            raise UserError(f"seeds '{path}', line {number}: id '{name}' is used twice")
        if row.get("category") and row["category"] not in SCENARIOS:
            choices = ", ".join(SCENARIOS)
            raise UserError(f"seeds '{path}', line {number}: category '{row['category']}' is not one of {choices}")
        rows[name] = row | {"id": name}
    if not rows:
        raise UserError(f"seeds '{path}' contain no seed")
    return list(rows.values())


def _is_text(value: object) -> bool:
    """Whether a value is a string of valid Unicode."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()
