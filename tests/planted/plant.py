"""Plants small faults one at a time and runs the tests that should notice them.

    .venv/bin/python tests/planted/plant.py                    # all faults of faults.py; takes most of an hour
    .venv/bin/python tests/planted/plant.py flux/ batch/       # those whose name begins with one of these
    .venv/bin/python tests/planted/plant.py --check            # only whether every old text occurs once
    .venv/bin/python tests/planted/plant.py --clean            # the same tests without a fault; all must pass

It is not collected by pytest and not run in CI. The working tree is copied to a temporary folder and the tests of the
copy run on the code of the copy, so that the tree itself is never changed. Each fault prints "noticed", with the first
test that failed, or "SURVIVED". The exit code is 1 if an old text does not occur exactly once, or if pytest could not
run a selection.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
MAPPED = ("modules", "train", "eval", "configs")  # as in setup.py
PRELOADED = (  # imported once: a test process is forked from one that has them
    *("torch", "torch._dynamo", "pytest", "PIL.Image", "skimage.segmentation", "scipy.stats", "omegaconf", "peft"),
    *("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.clip.modeling_clip"),
    *("transformers.models.auto.modeling_auto", "transformers.models.blip_2.modeling_blip_2"),
    *("diffusers.models.transformers.transformer_flux", "diffusers.models.autoencoders.autoencoder_kl"),
    *("diffusers.pipelines.pipeline_utils", "diffusers.schedulers.scheduling_flow_match_euler_discrete"),
)
LONGEST = 400  # seconds for the tests of one fault; one that makes them hang is noticed


def copy(to: Path) -> None:
    """Copies what git would commit, and lays the package out under its installed names in ``to``/installed."""
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    package = to / "installed" / "reasonbrain"
    package.mkdir(parents=True)
    for source in [*(to / "reasonbrain").iterdir(), *(to / top for top in MAPPED)]:
        (package / source.name).symlink_to(source)


def run_tests(tree: str, words: list[str], said: str) -> None:
    """Runs pytest in a forked process. The copy is found before the installed package, here and in subprocesses."""
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(tree)
    os.setsid()
    installed = f"{tree}/installed"
    sys.path.insert(0, installed)
    os.environ |= {"PYTHONPATH": installed, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    import pytest

    import reasonbrain.train as ours

    assert Path(ours.__file__).is_relative_to(installed), f"{ours.__file__} is not the copy"
    sys.exit(int(pytest.main([*words, "-x", "-q", "-m", "not long", "-p", "no:cacheprovider", "--durations=0"])))


def test(tree: Path, words: str, context) -> tuple[int | None, str]:
    """The exit code of pytest for a selection (None: it took too long), and what it printed."""
    said = tree / "said.txt"
    process = context.Process(target=run_tests, args=(str(tree), shlex.split(words), str(said)))
    process.start()
    process.join(LONGEST)
    if process.is_alive():
        os.killpg(process.pid, 9)
        process.join()
        return None, ""
    return process.exitcode, said.read_text(errors="replace")


def wrong(fault: Fault) -> str | None:
    """Why a fault cannot be planted."""
    count = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
    return None if count == 1 else f"{fault.name}: its old text occurs {count} times in {fault.file}"


def plant(fault: Fault, tree: Path, context) -> tuple[str, str]:
    """What became of a fault: "noticed", "survived" or "error"; and the test that noticed it, or what went wrong."""
    path = tree / fault.file
    good = path.read_text(encoding="utf-8")
    path.write_text(good.replace(fault.old, fault.new), encoding="utf-8")
    try:
        code, said = test(tree, fault.tests, context)
    finally:
        path.write_text(good, encoding="utf-8")
    if code is None:
        return "noticed", "the tests took too long"
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if code == 1 and first:
        return "noticed", first[1]
    return ("survived", "") if code == 0 else ("error", f"pytest ended with {code}: {said[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names")
    parser.add_argument("--check", action="store_true", help="plant nothing")
    parser.add_argument("--clean", action="store_true", help="run every selection once without a fault")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if not options.names or f.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error("no fault has such a name")
    errors = [why for fault in chosen if (why := wrong(fault))]
    print("\n".join(errors), end="\n" if errors else "")
    if errors or options.check:
        return bool(errors)
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        tree = Path(name)
        copy(tree)
        if options.clean:
            failed = 0
            for words in dict.fromkeys(f.tests for f in chosen):
                code, _ = test(tree, words, context)
                failed += code != 0
                print(f"{'passed' if code == 0 else f'FAILED ({code})'}: {words}", flush=True)
            return failed > 0
        survived = []
        for number, fault in enumerate(chosen, 1):
            start = time.monotonic()
            outcome, detail = plant(fault, tree, context)
            if outcome == "error":
                errors.append(fault.name)
            elif outcome == "survived":
                survived.append(fault)
            shown = outcome if outcome == "noticed" else outcome.upper()
            print(f"{number:3} {shown:8} {time.monotonic() - start:4.0f} s  {fault.name}  {detail}", flush=True)
    noticed = len(chosen) - len(errors) - len(survived)
    print(f"{noticed} of {len(chosen)} noticed ({noticed / len(chosen):.0%}), {len(survived)} survived")
    for fault in survived:
        print(f"  {fault.name} ({fault.file}): {fault.old!r} -> {fault.new!r}")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
