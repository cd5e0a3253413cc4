"""Checks a data set for problems before training. Nothing is changed or deleted.

reasonbrain data check data/reason50k -o problems.jsonl
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from reasonbrain.data.reader import Reader
from reasonbrain.data.record import Picture, RawRecord
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.images import load_image

# substring of an error message -> kind of the problem
SAID = {
    "leads outside": "outside the folder",
    "does not exist": "missing",
    "is not a file": "not a file",
    "not valid Unicode": "not valid text",
    "codec can't decode": "not valid text",
    "empty file": "truncated",
    "damaged or truncated": "truncated",
    "not a picture": "not a picture",
    "million pixels": "too large",
}
CHUNK = 32  # records a thread takes at a time
WINDOW = 256  # chunks that are waited for together
NEAR = 3  # bits of 128 in which two records that look alike may differ
BITS = np.array([n.bit_count() for n in range(256)], np.uint8)

Problem = tuple[str, str]  # kind, detail


def check(reader: Reader, output: Path, limit: int | None = None) -> tuple[Counter[str], int]:
    """Examines every record in threads, and writes ``output``: a JSON line {"record", "id", "problem", "detail"} for
    each problem. ``limit``: number of records whose pictures are decoded, evenly spread; for the others only the texts
    and the existence of files are checked.

    Duplicates have the same id; the same text and pixels; or the same text and similar pictures (perceptual hashes
    (pHash) of source and target that differ in at most 3 of 128 bits).

    Returns the number of problems of each kind, and the number of decoded records. Uses 40 bytes of memory per record.
    Raises UserError if ``imagehash`` is not installed, and if ``output`` cannot be written or is a file of the data."""
    try:
        import imagehash  # noqa: F401
    except ImportError:
        raise UserError("data check needs imagehash: pip install 'reasonbrain[data]'") from None
    reader.check_output(output)
    count = len(reader)
    step = max(1, -(-count // limit)) if limit else 1
    keys = np.zeros((count, 5), np.uint64)  # of id; words and pixels; words; source; target. 0: not known
    counts: Counter[str] = Counter()
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with whole_file(output) as file, tqdm(total=count, desc="records", unit="record", disable=None) as bar:

        def say(index: int, name: str, kind: str, detail: str) -> None:
            counts[kind] += 1
            line = {"record": index, "id": name, "problem": kind, "detail": detail}
            file.write(json.dumps(line) + "\n")

        with ThreadPoolExecutor() as pool:
            for some in (chunks[i : i + WINDOW] for i in range(0, len(chunks), WINDOW)):
                for chunk in pool.map(partial(examine, reader, keys, step), some):
                    for index, name, kind, detail in chunk:
                        say(index, name, kind, detail)
                bar.update(sum(map(len, some)))
        for index, other, kind in duplicates(keys):
            names = reader.raw(index).id, reader.raw(other).id
            say(index, names[0], kind, f"as record {other}, '{names[1]}'")
    return counts, len(range(0, count, step))


def examine(reader: Reader, keys: np.ndarray, step: int, indices: range) -> list[tuple[int, str, str, str]]:
    """The problems of some records: record, id, kind, detail. Fills in their keys."""
    found = []
    for index in indices:
        try:
            row = reader.raw(index)
        except UserError as e:
            found.append((index, "", *problem(e, "malformed")))
            continue
        keys[index, 0] = key(row.id)
        decode = index % step == 0
        found += [(index, row.id, kind, detail) for kind, detail in of_words(row, reader)]
        images = {}
        for part in ("source", "target", "mask"):
            picture: Picture | None = getattr(row, part)
            try:
                if decode and picture is not None:
                    images[part] = (reader.mask if part == "mask" else load_image)(picture)
                elif isinstance(picture, Path) and not os.path.isfile(picture):
                    there = "is not a file" if os.path.exists(picture) else "does not exist"
                    raise UserError(f"image '{picture}' {there}")
            except UserError as e:
                found.append((index, row.id, *problem(e, "unreadable")))
        for part in images.keys() - {"source"}:
            if "source" in images and images[part].size != images["source"].size:
                sizes = ["{}x{}".format(*images[name].size) for name in ("source", part)]
                found.append((index, row.id, "size mismatch", f"source is {sizes[0]}, {part} is {sizes[1]}"))
        if "source" in images and ("target" in images or row.target is None):
            pair = [images[name] for name in ("source", "target") if name in images]
            words = " ".join(row.instructions).casefold()
            keys[index, 1:3] = key(words, *(image.tobytes() for image in pair)), key(words)
            keys[index, 3 : 3 + len(pair)] = [look(image) for image in pair]
    return found


def of_words(row: RawRecord, reader: Reader) -> Iterator[Problem]:
    """Problems of a record's instructions and category."""
    if not any(words.strip() for words in row.instructions):
        yield "empty instruction", ""
    if reader.categories and row.category and row.category.casefold() not in reader.categories:
        yield "wrong category", f"'{row.category}' is not one of {', '.join(reader.categories)}"


def problem(error: UserError, otherwise: str) -> Problem:
    """The kind of problem that the error's message tells, or ``otherwise``, and the message."""
    return next((kind for said, kind in SAID.items() if said in str(error)), otherwise), str(error)


def key(*parts: str | bytes) -> int:
    """64 bits, never 0."""
    sum_ = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        sum_.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(sum_.digest(), "big") or 1


def look(image: Image.Image) -> int:
    """The perceptual hash: 64 signs of the picture's lowest frequencies."""
    import imagehash

    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")


def duplicates(keys: np.ndarray) -> Iterator[tuple[int, int, str]]:
    """Yields the index of a duplicate, the index of the earlier record, and the kind of duplicate. ``keys``: [records,
    5] as in ``check``."""
    for column, kind in ((0, "duplicate id"), (1, "duplicate")):
        _, first, inverse = np.unique(keys[:, column], return_index=True, return_inverse=True)
        other = first[inverse]
        for index in np.flatnonzero((other < np.arange(len(keys))) & (keys[:, column] != 0)).tolist():
            yield index, int(other[index]), kind
        known = np.flatnonzero((other == np.arange(len(keys))) & (keys[:, column] != 0))
    # The remaining records are sorted by text and one quarter of their hashes, and neighbours are compared: two hashes
    # that differ in at most 3 bits agree in at least one quarter.
    words, looks = keys[known, 2], np.ascontiguousarray(keys[known, 3:])
    alike = np.full(len(known), -1)
    for quarter in range(4):
        order = np.lexsort((looks[:, 1], looks[:, 0], looks.view(np.uint32)[:, quarter], words))
        one, two = order[:-1], order[1:]
        bits = BITS[(looks[one] ^ looks[two]).view(np.uint8)].sum(1)
        same = (words[one] == words[two]) & (bits <= NEAR)
        alike[np.maximum(one, two)[same]] = np.minimum(one, two)[same]
    for index in np.flatnonzero(alike >= 0).tolist():
        yield int(known[index]), int(known[alike[index]]), "near duplicate"


def table(reader: Reader, counts: Counter[str], decoded: int) -> str:
    """The number of problems of each kind as text."""
    lines = [f"{reader.name}: {len(reader)} records, {decoded} decoded"]
    width = max(map(len, counts), default=0)
    lines += [f"{kind:{width}}  {number:8d}" for kind, number in counts.most_common()]
    return "\n".join(lines if counts else [*lines, "no problems"])
