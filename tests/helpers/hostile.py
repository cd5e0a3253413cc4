"""Hostile inputs as hypothesis draws them, and what every command must do with them."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from click.testing import CliRunner
from hypothesis import settings
from hypothesis import strategies as st

from reasonbrain.cli import main

SECONDS = 30  # for one command
MEMORY = 6 << 30  # bytes of address space beyond what the process has; threads of libraries reserve some
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkdir": 1}  # and paths
CHANGES |= {"os.chmod": 1, "os.truncate": 1, "shutil.rmtree": 1, "shutil.move": 2}

LEAVES = [None, True, False, 0, -1, 1, 7, 10**9, 10**30, -(10**30), 1e308, 0.5, float("nan"), float("inf")]
LEAVES += ["", " ", "x", "null", "0", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a\0b", "\ud800", "a\nb", "=1+1"]
LEAVES += ["é" * 300, "x" * 5000, "${oc.env:HOME}", "${model}", "${package:../x}", "<script>", [], {}, [[]], {"": ""}]
WORDS = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"[" * 3000,
    b"}",
    b",",
    b"\t",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
]
WORDS += [b"NaN", b"1e999", b"\\ud800", b"\\u0000", b"-1", b"9" * 5000, b"${oc.env:HOME}"]
WORDS += [b"!!python/object:os.system", b"../../../etc/passwd"]


class Watch:
    """Collects what this process changes outside a folder, the programs it starts and the hosts it reaches."""

    def __init__(self):
        self.allowed, self.seen = None, []
        sys.addaudithook(self.hook)  # for as long as the process lives

    def hook(self, event, args):
        if self.allowed is None:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            self.path(event, args[0])
        elif event in CHANGES:
            inside = args[-1] if event in ("os.remove", "os.rmdir") and args[-1] >= 0 else None  # an open folder
            for path in args[: CHANGES[event]]:
                self.path(event, path if inside is None else Path(os.readlink(f"/proc/self/fd/{inside}"), path))
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            self.seen.append((event, args[0]))
        elif event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] != "127.0.0.1":
            self.seen.append((event, args[1]))

    def path(self, event, path):
        if isinstance(path, int) or os.fspath(path) in (b"/dev/null", "/dev/null"):
            return
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith((f"{self.allowed}/", f"{tempfile.gettempdir()}/tmp")) and name != self.allowed:
            self.seen.append((event, name))


WATCH = Watch()
TALLY: Counter[int] = Counter()  # commands that survived, by exit code


@contextmanager
def bounded():
    """Ends the block with an error when it takes too long, and lets memory run out before the machine's does."""

    def late(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    heard = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, heard)


def survives(out, *args):
    """Runs a command that may write to the folder ``out`` alone. It ends soon with exit code 0, 2 or 3, and says
    an error in one line. Returns the exit code."""
    WATCH.allowed, WATCH.seen = os.path.abspath(out), []
    try:
        with bounded():
            done = CliRunner().invoke(main, [str(a) for a in args])
    finally:
        WATCH.allowed = None
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 2, 3), (done.exit_code, done.stderr)
    assert "Traceback" not in done.stderr
    if done.exit_code == 2 and "Usage:" not in done.stderr:
        said = done.stderr.replace("\r", "\n").strip().splitlines()[-1]
        assert said.startswith("error: ") and said.isprintable(), done.stderr
    assert not WATCH.seen, WATCH.seen
    TALLY[done.exit_code] += 1
    return done.exit_code


def _places(value, at=()):
    yield at
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(part, (*at, key))


@st.composite
def changed(draw, value):
    """A JSON value in which one to three parts are replaced, removed or repeated."""
    value = deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(_places(value))[1:] or [("",)]))
        parent = value
        for key in path:
            parent = parent[key]
        act = draw(st.sampled_from(["replace", "replace", "replace", "remove", "nest", "more"]))
        if act == "remove":
            del parent[last]
        elif act == "nest":
            parent[last] = draw(st.sampled_from([[parent[last]], {"name": parent[last]}, [parent[last]] * 300]))
        elif act == "more" and isinstance(parent, dict):
            name = draw(st.sampled_from(["", "x", "name", "\ud800", "_class_name", "__init__"]))
            parent[name] = deepcopy(parent[last])
        else:
            parent[last] = deepcopy(draw(st.sampled_from(LEAVES)))
        if not isinstance(value, (dict, list)) or not value:
            break
    return value


@st.composite
def damaged(draw, data, first=0, last=None):
    """Bytes with up to eight places overwritten, put in or cut out, between ``first`` and ``last``; or cut short."""
    data = bytearray(data)
    end = len(data) if last is None else min(last, len(data))
    if draw(st.integers(0, 9)) == 0:
        return bytes(data[: draw(st.integers(0, len(data)))])
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(min(first, end), end))
        new = draw(st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(WORDS)))
        data[at : at + draw(st.sampled_from([0, len(new), len(new), 1, 40]))] = new
    return bytes(data)


def text_of(value):
    """JSON as a strategy's value gives it; what JSON cannot hold as Python writes it."""
    return json.dumps(value).encode()


def jsons(value):
    """Strategy: a JSON file that was changed as a value, as bytes, or both."""
    whole = changed(value).map(text_of)
    return st.one_of(whole, whole, damaged(text_of(value)), st.sampled_from([b"", b"null", b"[]", b"[" * 100_000]))


def examples(few):
    """The settings of a test: so many examples in CI, and FUZZ where that is set."""
    return settings(max_examples=int(os.environ.get("FUZZ") or few))
