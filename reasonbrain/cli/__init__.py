"""The ``reasonbrain`` command. Each subcommand calls one function elsewhere, which it imports only when it runs.

    reasonbrain edit candle.png "What if someone blew on the candle?" -o out.png --panel panel.png
    reasonbrain batch jobs.jsonl -o out
    reasonbrain train --config tiny -o runs/mine train.steps=100
    reasonbrain push runs/mine someone/melter
    reasonbrain plan reasonbrain_flux_qwen --gpus 8 --gpu-memory 80
    reasonbrain convert mgie _ckpt -o mgie
    reasonbrain bench train --config tiny
    reasonbrain eval --benchmark mini -o report
    reasonbrain ablate components -o ablations
    reasonbrain modules cme:hybrid
    reasonbrain config tiny model.cme=null
    reasonbrain data check data/reason50k
    reasonbrain data show data/reason50k -o gallery.html
    reasonbrain data mini --split test --count 50 --seed 7 -o mini-test
    reasonbrain data score mini-test edits
    reasonbrain data build seeds.jsonl -o built --url http://localhost:8000/v1 --model LLM --pipeline PIPELINE
    reasonbrain data review built

Results go to stdout, progress and errors to stderr. Exit codes: 0, 1 (training diverged or lost a process), 2 (user
error), 130 (interrupted), 3 (`data check` found problems, or some edits of `batch` failed).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings
from importlib.metadata import requires
from io import TextIOWrapper
from typing import Any

import click

from reasonbrain import __version__
from reasonbrain.cli import data, edit, evaluate, show, train
from reasonbrain.errors import RunError, UserError, out_of_memory
from reasonbrain.utils.redact import redacted
from reasonbrain.utils.text import printable

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # errors of a write, without the name of a file


class _Mistake(click.ClickException):
    """An error the user can fix: one line, without a traceback."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo("error: " + printable(redacted(" ".join(self.message.splitlines()))), file=file, err=True)


class _Failure(_Mistake):
    exit_code = 1


def _missing(package: str) -> _Mistake | None:
    """The error for a package that is not installed; None if no extra of this package installs it."""
    for requirement in requires("reasonbrain") or ():
        if found := re.match(rf"{re.escape(package)}\b.*extra == [\"'](\w+)", requirement, re.IGNORECASE):
            extra = found[1]
            return _Mistake(
                f"package '{package}' is not installed; it is in the extra [{extra}]: "
                f"pip install 'reasonbrain[{extra}]'"
            )
    return None


class _Commands(click.Group):
    """Turns errors that the user can fix into one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as e:  # without a file name it is about standard output, also that of --help
            if e.errno not in WRITING or e.filename is not None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more at exit
            _Mistake(f"standard output cannot be written: {e.strerror}").show()
            sys.exit(_Mistake.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as e:
            raise _Mistake(str(e)) from None
        except ModuleNotFoundError as e:
            if (mistake := _missing((e.name or "").partition(".")[0])) is None:
                raise
            raise mistake from None
        except FloatingPointError as e:
            raise _Failure(f"training diverged at {e}") from None
        except RunError as e:
            raise _Failure(str(e)) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
            raise _Failure(f"out of memory: {' '.join(str(e).split())[:200]}") from None


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """Edit images from hypothetical instructions ("What would happen if ...?")."""
    if isinstance(sys.stdout, TextIOWrapper):  # an encoding such as ASCII cannot hold every file name
        sys.stdout.reconfigure(errors="backslashreplace")
    # before the libraries are imported; a value that the user has set is kept
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["PYTHONSAFEPATH"] = "1"  # no child process imports files that lie in the working directory
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs its search for kernels on the hub
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


for command in (
    *(edit.edit, edit.batch, train.train, train.export, train.push, train.init, train.convert, train.plan),
    *(evaluate.bench, evaluate.evaluate, evaluate.ablate, show.modules, show.config, data.data),
):
    main.add_command(command)
