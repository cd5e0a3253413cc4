"""Folders that are written whole and replace only what was written here."""

import os
import shutil

import pytest

from reasonbrain.errors import UserError
from reasonbrain.utils.files import OURS, inside, whole_folder
from reasonbrain.utils.locks import alone


def write(folder, **files):
    with whole_folder(folder, last="config.yaml") as new:
        for name, text in {"config.yaml": "x: 1", **files}.items():
            (new / name.replace("__", "/")).parent.mkdir(exist_ok=True)
            (new / name.replace("__", "/")).write_text(text)


def shown(folder):
    files = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    return {str(f): (folder / f).read_text() for f in files if f.parts[0] != OURS}


def test_what_was_written_here_is_replaced_and_nothing_of_it_is_left(tmp_path):
    out = tmp_path / "a" / "out"
    write(out, model__1="old", model__2="old")
    write(out, model__1="new")
    assert shown(out) == {"config.yaml": "x: 1", "model/1": "new"}


@pytest.mark.parametrize("foreign", ["config.yaml", "notes.txt", "model/sub/notes.txt", ".git/HEAD"])
def test_what_is_not_ours_is_named_and_kept(tmp_path, foreign):
    out = tmp_path / "out"
    if foreign != "config.yaml":
        write(out, model__1="old")
    (out / foreign).parent.mkdir(parents=True, exist_ok=True)
    (out / foreign).write_text("mine")
    before = shown(out)
    with pytest.raises(UserError, match=f"'{out}' holds '{foreign}', which"):
        write(out)
    assert shown(out) == before and not (out / OURS / "new").exists()


def test_a_copy_beside_it_is_not_touched(tmp_path):
    """Temporary folders have no name that anybody else could have given."""
    for name in ("out.new", "out.old", "out.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years")
    write(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.rglob("thesis.txt")) == ["thesis.txt"] * 3


def test_links_and_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link", a="1")
    assert (tmp_path / "link").is_symlink() and set(shown(tmp_path / "disk")) == {"config.yaml", "a"}
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="gone' is a link to .*nowhere', which does not exist"):
        write(tmp_path / "gone")
    (tmp_path / "disk" / "photos").symlink_to(tmp_path)
    with pytest.raises(UserError, match="holds 'photos'"):
        write(tmp_path / "disk")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        write(type(tmp_path)("."), a="1")
    assert set(os.listdir(tmp_path / "here")) == {"config.yaml", "a", OURS}


@pytest.mark.parametrize("moment", ["writing", "moving"])
def test_a_killed_process_leaves_no_complete_folder_and_one_that_can_be_written_again(tmp_path, moment):
    out = tmp_path / "out"
    write(out, a="old", z="old")
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    else:
        try:
            with whole_folder(out, last="config.yaml") as new:
                (new / "config.yaml").write_text("x: 2")
                (new / "a").write_text("new")
                if moment == "writing":
                    os._exit(1)
                replace = os.replace
                os.replace = lambda a, b: replace(a, b) if b.name == "files.json" else os._exit(1)
        finally:  # never on as a second pytest
            os._exit(2)
    assert (out / "config.yaml").exists() == (moment == "writing")  # old and whole, or not whole
    write(out, a="newer")
    assert shown(out) == {"config.yaml": "x: 1", "a": "newer"}


def test_one_process_at_a_time_and_an_error_changes_nothing(tmp_path):
    out = tmp_path / "out"
    write(out, a="old")
    with alone(out / OURS / "lock"), pytest.raises(UserError, match="another process is writing to it"):
        write(out)
    with pytest.raises(RuntimeError), whole_folder(out, last="config.yaml") as new:
        (new / "a").write_text("half")
        raise RuntimeError
    assert shown(out) == {"config.yaml": "x: 1", "a": "old"}
    shutil.rmtree(out / OURS)
    with pytest.raises(UserError, match="holds 'a'"):
        write(out)


def test_a_folder_whose_name_begins_alike_is_outside(tmp_path):
    for name in ("data", "data-of-others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "data-of-others" / "a.png")
    assert inside(tmp_path / "data", "a.png") == (tmp_path / "data" / "a.png").resolve()
    for name in ("../data-of-others/a.png", "link.png"):
        with pytest.raises(UserError, match=f"'{name}' leads outside"):
            inside(tmp_path / "data", name)
