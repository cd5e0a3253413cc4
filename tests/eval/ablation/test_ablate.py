"""Ablations: plans, shared runs, equal initial weights, a failing variant, a kill, and the numbers of the table."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
import yaml
from click.testing import CliRunner
from layouts import picture
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats

from reasonbrain.checkpoint import save_model
from reasonbrain.cli import main
from reasonbrain.config.loading import load_config
from reasonbrain.data.opening import open_reader
from reasonbrain.eval.ablation import ablate
from reasonbrain.eval.ablation.plan import Budget, Study, read_plan, shipped_plans
from reasonbrain.eval.ablation.report import markdown, summary
from reasonbrain.train.building import without_weights
from reasonbrain.train.optim import numel

BUDGET = ["data.count=8", "train.steps=3", "train.batch_size=2", "train.warmup=1", "train.log_every=1"]
NO_CME = {"ablated_part": "CME", "action": "REMOVE", "overrides": ["model.cme=null"]}
FAILS = {
    "ablated_part": "weight of L_MLLM",
    "action": "REPLACE",
    "replacement": "infinite",
    "overrides": ["train.lm_weight=1e39", "train.bad_steps=1"],  # infinite in float32
}


def write_plan(folder, overrides, *studies, seeds=(0, 1), **budget):
    """Writes plan.yaml with these studies, all with the same metrics and seeds, and budget.yaml."""
    shared = {"config": "tiny", "overrides": [*overrides, *BUDGET], "benchmark": "mini"}
    budget = {**shared, "data": "test", "limit": 3, **budget}
    (folder / "budget.yaml").write_text(yaml.safe_dump(budget))
    common = {"metrics": ["outcome", "L1 inside"], "seeds": list(seeds)}
    plan = {"budget": "budget.yaml", "studies": [common | study for study in studies]}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


def refused(plan, folder):
    result = CliRunner().invoke(main, ["ablate", str(plan), "-o", str(folder / "out")])
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (folder / "out").exists()
    return result.stderr


def test_shipped_plans_compare_with_one_full_model(tmp_path, monkeypatch):
    """Their runs share a budget, every variant builds, and only the named part differs. The full model of
    ``instruction_summary`` also reads the sentence, and differs from its variant in the MLLM alone."""
    names = ["components", "img_tokens", "instruction_summary", "source", "visual_branches", "visual_guidance"]
    assert shipped_plans() == names
    monkeypatch.chdir(tmp_path)
    trained = tmp_path / "runs" / "tiny" / "mllm_full"  # it does not ship
    trained.parent.mkdir(parents=True)
    trained.symlink_to(load_config("tiny").model.mllm["pretrained"])
    budgets = {}
    for name in names:
        title, budget, studies = read_plan(name)
        assert title == name
        budgets[name] = budget
        full = load_config(budget.config, budget.overrides)
        for study in studies:
            cfg = load_config(budget.config, [*budget.overrides, *study.overrides])
            assert len(study.seeds) >= 3
            if name == "instruction_summary":
                assert cfg.model.mllm.pop("pretrained") == "runs/tiny/mllm_full" != full.model.mllm.pop("pretrained")
                assert cfg == full
            else:
                assert numel_of(cfg) < numel_of(full)
        assert len(ablate.records_of(budget, cfg).names) == 8
    reads = budgets.pop("instruction_summary")
    (common,) = {str(budget): budget for budget in budgets.values()}.values()
    assert reads == replace(common, overrides=[*common.overrides, "model.encoders.reads=sentence"])


def numel_of(cfg):
    return sum(map(numel, without_weights(cfg).parameters()))


def test_variants_of_a_seed_start_from_the_same_weights(settings):
    def start(seed, *words):
        model = ablate.build(settings(f"train.seed={seed}", *words))
        return {name: p.detach() for name, p in model.named_parameters()}

    full, less, other = start(3), start(3, "model.cme=null", "model.frce.text=null"), start(4)
    assert less.keys() < full.keys()
    assert all(torch.equal(full[name], p) for name, p in less.items())
    assert not all(torch.equal(full[name], p) for name, p in other.items())


def test_runs_are_identified_by_their_whole_configuration(overrides, tmp_path):
    def run(*words, metrics=("outcome",)):
        return ablate.Run(Budget("tiny"), (*overrides, *words), metrics, tmp_path)

    same = run("train.steps=5", "model.cme.blocks=1")
    assert run("train.steps=5").folder == same.folder != run("train.steps=6").folder  # tiny has one block
    assert run("train.steps=5", "train.seed=1").folder != same.folder
    more = run("train.steps=5", metrics=("outcome", "L1"))
    assert more.folder == same.folder and more.result != same.result


def test_a_run_is_made_anew_when_its_data_have_changed(overrides, tmp_path):
    data = layouts.manifest(tmp_path / "d")
    words = (*overrides, "data.name=manifest", f"data.path={data}")

    def run():
        ablate._trained.cache_clear()
        ablate._content.cache_clear()
        one = ablate.Run(Budget("tiny", benchmark="manifest", data=data), words, ("L1",), tmp_path)
        return one.folder, one.result.name

    before = run()
    assert run() == before
    picture(5).save(open_reader("manifest", data).raw(0).source)
    assert all(now != then for now, then in zip(run(), before, strict=True))


def test_a_run_is_made_anew_when_its_initial_weights_have_changed(overrides, parts, model, settings, tmp_path):
    """Those of a published part, and those of train.start, in folders of the same names. The result of the old weights
    was taken for that of the new ones."""
    shutil.copytree(parts / "clip", tmp_path / "clip")
    save_model(model, settings(), tmp_path / "start")

    def folders():
        ablate._trained.cache_clear()
        words = (f"model.encoders.pretrained={tmp_path / 'clip'}", f"train.start={tmp_path / 'start'}")
        return [ablate.Run(Budget("tiny"), (*overrides, one), ("outcome",), tmp_path).folder for one in words]

    before = folders()
    assert folders() == before
    for number, path in enumerate(
        (next(tmp_path.glob("clip/*.safetensors")), tmp_path / "start/cme/model.safetensors")
    ):
        tensors = load_file(path)
        tensors[max(tensors)] = tensors[max(tensors)] + 1
        with safe_open(path, "pt") as file:
            save_file(tensors, path, file.metadata())
        now = folders()
        assert now[number] != before[number] and now[1 - number] == before[1 - number]
        before = now


def test_the_summarys_numbers():
    study = Study("CME", "REMOVE", None, ["model.cme=null"], ["outcome"], [0, 1, 2])
    of = {"validation loss": 1.0, "parameters": 10, "trained": 5, "flops": 7, "gib": 1.0, "seconds_per_step": 0.5}
    of["records"] = 80
    full, less = [0.9, 0.7, 0.5], [0.6, 0.5, 0.1]
    results = {("full model", s): of | {"outcome": v} for s, v in enumerate(full)}
    results |= {(study.name, s): of | {"outcome": v, "gib": s} for s, v in enumerate(less)}
    top, row = summary([study], results)
    assert "difference" not in top["scores"]["outcome"] and top["scores"]["outcome"]["mean"] == pytest.approx(0.7)
    change = row["scores"]["outcome"]["difference"]
    by_hand = stats.ttest_rel(less, full).confidence_interval()  # the paired t-test's own interval
    assert change["mean"] == pytest.approx(statistics.mean([-0.3, -0.2, -0.4])) and change["n"] == 3
    assert (change["low"], change["high"]) == pytest.approx((by_hand.low, by_hand.high))
    assert row["costs"]["gib"] == 2 and row["costs"]["seconds_per_step"] == 0.5

    results[study.name, 2]["records"] = 75
    said = markdown("x", {"config": "tiny", "overrides": [], "benchmark": "mini"}, summary([study], results), [], 80)
    assert said.count("could be edited") == 1
    assert "\n- REMOVE CME, seed 2: only 75 records could be edited and scored\n" in said

    results[study.name, 1] = {"failed": "memory"}
    results["full model", 2] = {"failed": "memory"}
    _, row = summary([study], results)
    assert row["seeds"] == [0, 2] and row["failed"] == {"1": "memory"}
    change = row["scores"]["outcome"]["difference"]  # of seed 0 alone, which has no interval
    assert change["mean"] == pytest.approx(-0.3) and change["n"] == 1 and change["low"] is None


def test_a_runs_costs_are_read_from_its_log(tmp_path):
    """The last validation, the highest peak, and the median step, whatever a line lacks."""
    lines = [{"seconds_per_step": s, "gib": g} for s, g in ((9.0, 1.0), (2.0, 3.0), (1.0, 2.0))]
    lines[1:1] = [{"validation/loss": 0.9}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (*lines, {"validation/loss": 0.5})))
    assert ablate.read_log(tmp_path) == {"validation loss": 0.5, "gib": 3.0, "seconds_per_step": 2.0}


def test_mistakes_in_a_plan_are_reported_before_training(overrides, tmp_path):
    assert "neither a shipped plan (components, img_tokens" in refused("componets", tmp_path)
    assert "does not exist" in refused(tmp_path / "no.yaml", tmp_path)
    assert "action 'DROP' is not one of REMOVE, REPLACE" in refused(
        write_plan(tmp_path, overrides, NO_CME | {"action": "DROP"}), tmp_path
    )
    assert "REPLACE needs a replacement" in refused(
        write_plan(tmp_path, overrides, NO_CME | {"action": "REPLACE"}), tmp_path
    )
    assert "metric 'beauty'" in refused(write_plan(tmp_path, overrides, NO_CME | {"metrics": ["beauty"]}), tmp_path)
    assert "model.cmee: unknown key" in refused(
        write_plan(tmp_path, overrides, NO_CME | {"overrides": ["model.cmee=null"]}), tmp_path
    )
    assert "'tets'" in refused(write_plan(tmp_path, overrides, NO_CME, data="tets"), tmp_path)
    assert "'seed' not in 'Study'" in refused(write_plan(tmp_path, overrides, NO_CME | {"seed": 0}), tmp_path)
    assert "missing mandatory value: action" in refused(
        write_plan(tmp_path, overrides, {"ablated_part": "CME"}), tmp_path
    )
    assert "two studies have the same" in refused(write_plan(tmp_path, overrides, NO_CME, NO_CME), tmp_path)


def test_a_plan_reads_nothing_else(overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    for value in ("${oc.env:SECRET}", "data.path=${oc.env:SECRET}", "${package:${oc.env:SECRET}}"):
        said = refused(write_plan(tmp_path, overrides, NO_CME | {"overrides": [value]}), tmp_path)
        assert "is not allowed" in said and "s3cr3t" not in said
    plan = write_plan(tmp_path, overrides, NO_CME)
    for budget in ("../budget.yaml", "/etc/hosts"):
        plan.write_text(yaml.safe_dump({"budget": budget, "studies": [NO_CME | {"metrics": ["L1"], "seeds": [0]}]}))
        assert "leads outside the folder" in refused(plan, tmp_path)


def test_foreign_tables_are_never_written_over(overrides, tmp_path):
    plan = write_plan(tmp_path, overrides, NO_CME)
    for name, text in (("plan.md", "notes"), ("plan.json", "{}"), ("plan.png", "")):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text(text)
        done = CliRunner().invoke(main, ["ablate", str(plan), "-o", str(out)])
        assert done.exit_code == 2 and f"holds '{name}', which this command did not write" in done.stderr
        assert [p.name for p in out.iterdir()] == [name] and (out / name).read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"outcome": 1}', "[" * 100_000])
def test_a_damaged_result_fails_its_run_with_one_line(text, overrides, tmp_path):
    run = ablate.Run(Budget("tiny"), tuple(overrides), ("outcome",), tmp_path)
    run.folder.mkdir(parents=True)
    run.result.write_text(text)
    (failed,) = ablate.local([run])
    assert failed.keys() == {"failed"} and str(run.result) in failed["failed"] and "\n" not in failed["failed"]


@pytest.mark.long
def test_a_run_whose_export_was_killed_is_trained_to_its_end(overrides, tmp_path):
    run = ablate.Run(Budget("tiny"), (*overrides, *BUDGET), ("outcome",), tmp_path)
    (run.folder / "model" / ".reasonbrain" / "new").mkdir(parents=True)  # as a kill during the export leaves it
    (run.folder / "log.jsonl").write_text("{}\n")  # so that the training ends as soon as it starts
    (failed,) = ablate.local([run])
    assert "holds 'log.jsonl', but no config.yaml of a run" in failed["failed"]


def test_no_file_of_the_working_directory_is_imported(tmp_path):
    for name in ("click", "torch", "json", "multiprocessing", "reasonbrain"):
        (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/PWNED', 'w')")
    subprocess.run([*ablate.COMMAND, "--version"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert not (tmp_path / "PWNED").exists()


def command(plan, out, *more):
    words = [sys.executable, "-m", "reasonbrain.cli", "ablate", str(plan), "-o", str(out), *more]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.long
def test_a_plan_is_killed_and_resumed(overrides, tmp_path):
    """Two variants with two seeds each, and one that fails. The command is killed during its second run."""
    plan, out = write_plan(tmp_path, overrides, NO_CME, FAILS | {"seeds": [0]}), tmp_path / "out"
    process = command(plan, out)
    while len(list(out.glob("runs/*/log.jsonl"))) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)  # the training that it started continues, and the next command waits for it
    process.wait()
    (done,) = out.glob("runs/*/result-*.json")
    before = done.stat().st_mtime_ns

    process = command(plan, out)
    stdout, stderr = process.communicate()
    assert process.returncode == 1 and "1 of 5 runs failed (REPLACE weight of L_MLLM: infinite, seed 0)" in stderr
    assert done.stat().st_mtime_ns == before and "being trained by another" not in stderr and not stdout
    table = (out / "plan.md").read_text()
    assert "failed: REPLACE weight of L_MLLM: infinite, seed 0: exit code 1: error: training diverged" in table
    assert (out / "plan.png").is_file()

    found = json.loads((out / "plan.json").read_text())
    full, less, broken = found["rows"]
    assert not broken["scores"] and broken["seeds"] == []
    _, budget, _ = read_plan(str(plan))
    words = [*budget.overrides, "train.validate_every=3"]
    inside = {}
    for row, more in ((full, []), (less, ["model.cme=null"])):
        for seed in (0, 1):
            folder = ablate.Run(budget, (*words, *more, f"train.seed={seed}"), (), out).folder
            assert len(list(folder.glob("edits/test-*.png"))) == 3
            inside[row["variant"], seed] = by_hand(folder, budget)
        mean = statistics.mean(inside[row["variant"], seed] for seed in (0, 1))
        assert row["scores"]["L1 inside"]["mean"] == pytest.approx(mean)
        assert row["costs"]["parameters"] == numel_of(load_config("tiny", [*words, *more]))
        assert row["costs"]["gib"] > 0.1 and row["costs"]["seconds_per_step"] > 0 and row["costs"]["flops"] > 1e6
    changes = [inside["REMOVE CME", s] - inside["full model", s] for s in (0, 1)]
    assert less["scores"]["L1 inside"]["difference"]["mean"] == pytest.approx(statistics.mean(changes))
    assert f"{statistics.mean(changes):+.3g} [" in table
    assert CliRunner().invoke(main, ["ablate", str(write_plan(tmp_path, overrides, NO_CME)), "-o", str(out)]).output


def by_hand(folder: Path, budget) -> float:
    """The mean absolute difference from the target inside the mask, averaged over records."""
    import numpy as np
    from PIL import Image

    records = ablate.records_of(budget, load_config("tiny", budget.overrides))
    values = []
    for i in range(3):
        record = records[i]
        edit, target, mask = (
            np.asarray(p, dtype=float)
            for p in (Image.open(folder / "edits" / f"{record.id}.png").convert("RGB"), record.target, record.mask)
        )
        values.append(abs(edit - target)[mask > 0].mean() / 255)
    return statistics.mean(values)


@pytest.mark.long
def test_a_plan_on_ray(overrides, tmp_path, monkeypatch):
    """Parallel runs on Ray give the same numbers as the local executor. A failing run does not stop the others. Either
    executor reuses the runs of the other."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or they starve beside whatever else runs here
    monkeypatch.chdir(tmp_path)  # the plan's paths start here, in Ray's processes, too
    (tmp_path / "clip").symlink_to(next(o.partition("=")[2] for o in overrides if ".encoders.pretrained=" in o))
    words = [*overrides, "model.encoders.pretrained=clip"]
    plan = write_plan(tmp_path, words, NO_CME, FAILS | {"seeds": [0]})
    process = command(plan, "ray", "--executor", "ray")
    _, stderr = process.communicate()
    assert process.returncode == 1 and "1 of 5 runs failed (REPLACE weight of L_MLLM: infinite, seed 0)" in stderr
    failed = "failed: REPLACE weight of L_MLLM: infinite, seed 0: exit code 1: error: training diverged"
    assert failed in Path("ray/plan.md").read_text()
    *by_ray, _ = json.loads(Path("ray/plan.json").read_text())["rows"]

    plan = write_plan(tmp_path, words, NO_CME)
    for out in ("local", "ray"):
        before = {file: file.stat().st_mtime_ns for file in Path(out).glob("runs/*/*")}
        process = command(plan, out)
        stdout, stderr = process.communicate()
        assert process.returncode == 0 and stdout == f"{out}/plan.md\n", stderr
        assert not before or before == {file: file.stat().st_mtime_ns for file in Path(out).glob("runs/*/*")}
    one, two = (
        {file.relative_to(out): json.loads(file.read_text()) for file in Path(out).glob("runs/*/result-*.json")}
        for out in ("local", "ray")
    )
    assert one.keys() == two.keys() and len(one) == 4
    for name, here in one.items():
        for score in ("outcome", "L1 inside", "validation loss"):
            assert two[name][score] == pytest.approx(here[score]), name
    for here, there in zip(json.loads(Path("local/plan.json").read_text())["rows"], by_ray, strict=True):
        assert here["variant"] == there["variant"] and here["costs"]["parameters"] == there["costs"]["parameters"]
        for score in ("L1 inside", "validation loss"):
            assert there["scores"][score]["mean"] == pytest.approx(here["scores"][score]["mean"])
    one, two = ({file.relative_to(out) for file in Path(out).glob("runs/*/edits/*")} for out in ("local", "ray"))
    assert one == two and len(one) >= 12
