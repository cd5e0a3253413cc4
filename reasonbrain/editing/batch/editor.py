"""A replica of the model for batches. It writes pictures and yields the lines of results.jsonl."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from reasonbrain.editing.batch.jobs import Job
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.editing.batch.scheduler import Result, edit_rows
from reasonbrain.editing.placement import open_pipeline
from reasonbrain.utils.images import save_image, to_pil
from reasonbrain.utils.journal import JsonRow
from reasonbrain.utils.text import printable

PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*")  # safe as a file name on every system, unless reserved
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # reserved by Windows
LONGEST = 80  # maximum number of characters of an id in a file name
BEHIND = 1 << 27  # maximum number of pixels waiting to be written; a larger picture waits alone


def picture_path(row: EditRow, variant: int) -> str:
    """The path of a result's picture, relative to DIR. It is valid on every file system and unique among the rows."""
    stem = row.id
    if not PLAIN.fullmatch(stem) or RESERVED.match(stem) or len(stem) > LONGEST:
        digest = hashlib.blake2b(stem.encode(), digest_size=6).hexdigest()
        stem = re.sub(r"[^\w-]+", "_", stem)[: LONGEST // 2].strip("_") + "~" + digest  # "~" is in no plain name
    return f"pictures/{stem}{f'@{variant}' if row.n > 1 else ''}.png"


class Editor:
    """A replica of the model. Called with rows, it writes their pictures and yields their lines of results.jsonl."""

    def __init__(self, job: Job, index: int = 0) -> None:
        """index, and the errors raised: as for ``open_pipeline``."""
        self.job = job
        self.pipe = open_pipeline(job.checkpoint, job.overrides, job.config, index)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, rows: Iterable[EditRow]) -> Iterator[JsonRow]:
        """Yields lines in no particular order. Raises UserError if a picture cannot be written."""
        waiting: deque[tuple[int, Future[JsonRow]]] = deque()  # pixels, line
        with ThreadPoolExecutor(4) as pool:
            for result in edit_rows(self.pipe.core(), self.pipe.edit_settings, rows, self.job.batch_size):
                pixels = result.image.width * result.image.height if result.image else 0
                waiting.append((pixels, pool.submit(self._finish, result)))
                while waiting and (waiting[0][1].done() or sum(pixels for pixels, _ in waiting) > BEHIND):
                    yield waiting.popleft()[1].result()
            for _, line in waiting:
                yield line.result()

    def _finish(self, result: Result) -> JsonRow:
        row, file = result.row, None
        if result.image is not None:
            file = picture_path(row, result.variant)
            metadata = {"id": row.id, "variant": result.variant, "instruction": row.instruction, "seed": result.seed}
            metadata |= {"steps": row.steps or self.pipe.edit_settings.steps, "checkpoint": self.job.checkpoint}
            metadata |= {"reasoning": result.reasoning} if result.reasoning else {}
            metadata |= {"note": result.note} if result.note else {}
            save_image(result.image, self.job.output / file, {k: str(v) for k, v in metadata.items()})
        rounds = []
        for made in result.rounds:
            also = f"{str(file).removesuffix('.png')}~{made.number}.{made.candidate}.png"
            save_image(to_pil(made.image)[0], self.job.output / also)
            rounds.append(made.summary() | {"file": also})
        thinking = {"note": result.note, "rounds": rounds}
        return {
            "row": row.number,
            "id": row.id,
            "variant": result.variant,
            "status": "error" if result.error else "ok",
            "file": file,
            "seconds": round(result.seconds, 4),
            "seed": result.seed,
            "image": None if row.error else str(row.image),
            "instruction": row.instruction,
            "reasoning": result.reasoning,
            "objects": result.objects,
            "unread": result.unread or None,
            "error": printable(result.error) or None,
            **{key: value for key, value in thinking.items() if value},
        }
