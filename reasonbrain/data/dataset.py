"""The interface of a data set. ``data.name`` names one, which a package registers in the entry-point group
``reasonbrain.data``; ``reader.py`` has the base class for data sets in files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reasonbrain.data.record import Record, Size
from reasonbrain.errors import UserError

SAMPLE = 4000  # records from whose instructions the vocabulary is built


class DataSet(ABC):
    """Numbered records, reached in any order, each picture at its own size.

    A parameter of ``__init__`` gets the value of the key of its name in the ``data`` section. A data set takes ``path``
    and ``size`` if it declares them; ``path`` without a default makes ``data.path`` required. All other parameters are
    keys of its own: their names and types are checked against the signature. They have defaults.

    Args:
        path: the data: a file, a folder, or a pattern of files such as ``"shards/*.tar"``
        size: pixel budget, ``size`` x ``size``

    ``files``: the files that its records are read from, apart from files of one picture.
    """

    files: Sequence[Path] = ()

    @classmethod
    def open(cls, **section: Any) -> DataSet:
        """Opens the data set. ``section``: the arguments for ``__init__``, from the configuration.

        Raises UserError for data that is missing or not in the layout, and for values out of range."""
        return cls(**section)

    @classmethod
    def validation(cls, **section: Any) -> dict[str, Any] | None:
        """The arguments that open the data set's validation split, given those of the training split. None if it has no
        validation split; ``data.validation`` then has to name other data."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Record ``index``. Raises UserError if it cannot be read."""

    def shape(self, index: int) -> Size | None:
        """Size of a record's source. None: it cannot be read. A data set that knows it without decoding the picture
        overrides this."""
        try:
            return self[index].source.size
        except UserError:
            return None

    def instructions(self, index: int) -> Sequence[str]:
        """The wordings of a record's instruction. A data set that knows them without decoding pictures overrides
        this. Raises UserError if the record cannot be read."""
        return self[index].instructions

    def vocabulary(self) -> Sequence[str]:
        """The words with which ``data.augment`` replaces others: all words of the instructions of ``SAMPLE`` records,
        evenly spread, in sorted order."""
        words: set[str] = set()
        for index in range(0, len(self), -(-len(self) // SAMPLE)):
            with suppress(UserError):  # training decides about a bad record
                words.update(word for text in self.instructions(index) for word in text.split())
        return sorted(words)
