"""ReasonMini on disk: a folder of pictures and masks with ``manifest.jsonl``, one record per line.

write_split("test", count=50, seed=7, folder="mini-test")
for record in read_manifest("mini-test"): ...
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini.versions import WORLDS
from reasonbrain.utils.files import inside, whole_file
from reasonbrain.utils.reading import parse_json
from reasonbrain.utils.text import is_text

MANIFEST, PARTS = "manifest.jsonl", ("images", "masks")
LARGEST = 4096  # pixels on a side
FIELDS = {  # of a record, see Sample.record
    **dict.fromkeys(("id", "category", "src_image", "tgt_image", "instruction", "target_caption"), str),
    **dict.fromkeys(("mask", "scene", "kind"), str),
    "objects": list,
    "params": dict,
}


def write_split(
    split: str, count: int, seed: int, folder: str | Path, size: int | None = None, version: int = 1
) -> Path:
    """Writes the first ``count`` records of a split, ``size`` x ``size`` pixels each, and returns the manifest's path.
    size: None for that of the world. version: of the world, 1 or 2.

    Writes images/<id>_src.png, images/<id>_tgt.png, masks/<id>.png (white where the picture changes) and, last,
    manifest.jsonl to ``folder``. The same arguments give the same bytes. Raises UserError for an unknown split, a
    number out of range, a folder that is not empty, and one that cannot be written, which is left empty.
    """
    world = WORLDS[version]
    size = world.size if size is None else size
    if split not in world.splits:
        raise UserError(f"split '{split}' is not one of {', '.join(world.splits)}")
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("size", size, 16)):
        if value < least:
            raise UserError(f"{name} is {value}, but must be {least} or more")
    if size > LARGEST:
        raise UserError(f"size is {size}, but must be {LARGEST} or less")
    folder = Path(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"folder '{folder}' is not empty: name a new or an empty one")
    except OSError as error:
        raise UserError(f"cannot write to folder '{folder}': {error.strerror}") from error
    lines = []
    try:
        for part in PARTS:
            (folder / part).mkdir(parents=True)
        for sample in (world.make(split, index, seed, size) for index in range(count)):
            record = sample.record()
            sample.source.save(folder / record["src_image"])
            sample.target.save(folder / record["tgt_image"])
            Image.fromarray(sample.mask).convert("L").save(folder / record["mask"])
            lines.append(json.dumps(record) + "\n")
        with whole_file(folder / MANIFEST) as file:
            file.writelines(lines)
    except BaseException as error:  # also if interrupted, so that the same command can be repeated
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write to folder '{folder}': {error.strerror or error}") from error
        raise
    return folder / MANIFEST


def read_manifest(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a folder that ``write_split`` wrote, in order.

    Raises UserError if there is no manifest and, naming the line, if one is not a record of ReasonMini or names a
    picture outside the folder.
    """
    path = Path(folder) / MANIFEST
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for a writer
            raise UserError(f"'{path}' is not a file")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{path}' line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"'{path}' line {number} is not a JSON object")
        wrong = [name for name, kind in FIELDS.items() if not isinstance(record.get(name), kind)]
        wrong += [name for name, value in record.items() if isinstance(value, str) and not is_text(value)]
        if wrong:
            raise UserError(
                f"'{path}' line {number} is not a record of ReasonMini: missing or wrong {', '.join(wrong)}"
            )
        for name in (record["id"], *(record[part] for part in ("src_image", "tgt_image", "mask"))):
            inside(folder, name, f"the folder of '{path}', in line {number}")
        yield record
