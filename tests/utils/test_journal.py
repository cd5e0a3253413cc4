"""Journals: added rows persist, a truncated line is removed."""

import os
import resource

import pytest

from reasonbrain.errors import UserError
from reasonbrain.utils.journal import Journal, read, read_by_id


def test_rows_come_back_in_order_and_the_later_of_two_counts(tmp_path):
    assert list(read(tmp_path / "j")) == []
    rows = [{"id": "ü\n", "n": [1.5, None]}, {"id": "b", "n": 2}, {"id": "b", "n": 3}]
    for row in rows:  # reopened for each, as by a resumed command
        with Journal(tmp_path / "j") as journal:
            journal.add(row)
    assert list(read(tmp_path / "j")) == rows
    assert read_by_id(tmp_path / "j") == {"ü\n": rows[0], "b": rows[2]}


def test_a_truncated_line_is_removed(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.add({"id": "1"})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"id": "2", "text": "cut o')
    assert list(read(tmp_path / "j")) == [{"id": "1"}]
    with Journal(tmp_path / "j") as journal:
        journal.add({"id": "3"})
    assert (tmp_path / "j").read_text() == '{"id": "1"}\n{"id": "3"}\n'


@pytest.mark.parametrize("line", ["{not json}", "[1]", "7", ""])
def test_a_damaged_line_is_named(line, tmp_path):
    (tmp_path / "j").write_text('{"id": "1"}\n' + line + "\n")
    with pytest.raises(UserError, match="j' line 2 is not a JSON object"):
        list(read(tmp_path / "j"))


def test_a_full_disk_leaves_complete_lines(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "j") as journal:
        journal.add({"id": "1"})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
            with pytest.raises(UserError, match="j' cannot be written: "):
                journal.add({"id": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        journal.add({"id": "2"})
    assert [row["id"] for row in read(tmp_path / "j")] == ["1", "2"]


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        Journal(tmp_path)


def test_a_link_is_not_followed_and_a_pipe_not_waited_for(tmp_path):
    """A folder from somebody else may hold one: an incomplete last line would be removed from the file it leads to."""
    (tmp_path / "key").write_text("secret without a last newline")
    (tmp_path / "j").symlink_to("key")
    os.mkfifo(tmp_path / "pipe")
    for name in ("j", "pipe"):
        with pytest.raises(UserError, match="cannot be written"):
            Journal(tmp_path / name)
    assert (tmp_path / "key").read_text() == "secret without a last newline"
