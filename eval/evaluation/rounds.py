"""What each round of ``edit.rounds`` gains and costs: a report's systems are the best edits after each round.

FOLDER/after-1/ID.png, FOLDER/after-2/ID.png, ...; each has the seconds that it took in a PNG text chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from PIL import Image

from reasonbrain.data.record import Record
from reasonbrain.editing.rounds import Round, best
from reasonbrain.utils.images import load_image, save_image, to_pil

SECONDS = "seconds"


def _folder(edits: Path, number: int) -> Path:
    return edits / f"after-{number}"


def save_rounds(edits: Path, file: str, tried: list[Round], rounds: int, metadata: Mapping[str, str]) -> None:
    """Writes the best edit after each of ``rounds`` rounds. After the last one that was needed it stays the same.

    edits: the folder. file: the name of the record's picture. metadata: its text chunks."""
    for number in range(1, rounds + 1):
        so_far = [one for one in tried if one.number <= number]
        _folder(edits, number).mkdir(exist_ok=True)
        seconds = f"{sum(one.seconds for one in so_far):.4f}"
        image = to_pil(best(so_far).image)[0]
        save_image(image, _folder(edits, number) / file, {**metadata, SECONDS: seconds})


def after_rounds(
    edits: Path, file: Callable[[str], str], rounds: int
) -> dict[str, Callable[[Record], Image.Image | None]]:
    """The systems of a report that are the best edit after each round but the last, whose best is the edit itself.

    edits: the folder. file: gives the name of a record's picture by its id."""

    def after(number: int) -> Callable[[Record], Image.Image | None]:
        return lambda record: load_image(_folder(edits, number) / file(record.id))

    return {f"{number} of {rounds} rounds": after(number) for number in range(1, rounds)}


def costs(edits: Path, files: Iterable[str], rounds: int) -> dict[str, float]:
    """The mean seconds of an edit, up to each round."""
    names = list(files)

    def seconds(path: Path) -> float:
        with Image.open(path, formats=("PNG",)) as image:
            return float(image.info[SECONDS])

    return {
        f"{number} of {rounds} rounds": sum(seconds(_folder(edits, number) / name) for name in names) / len(names)
        for number in range(1, rounds + 1)
    }
