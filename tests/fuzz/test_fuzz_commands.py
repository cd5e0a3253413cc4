"""Fuzzed configurations, overrides, plans, jobs, checkpoints, reports and answers of an endpoint."""

import csv
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import layouts
import pytest
import yaml
from hostile import LEAVES, WORDS, changed, damaged, examples, jsons, survives, text_of
from hypothesis import given
from hypothesis import strategies as st
from layouts import picture

from reasonbrain.checkpoint import save_model
from reasonbrain.config.loading import dump_config, load_config

KEYS = [f"{a}.{b}" for a, section in yaml.safe_load(dump_config(load_config("tiny"))).items() for b in section]
KEYS += [
    "model.cme.blocks",
    "model.cme.name",
    "model.frce.patch.heads",
    "data.turns.x",
    "data.mixture[0].path",
    "x",
    "",
]


def yamls(value):
    """Strategy: a YAML file that was changed as a value or as bytes."""
    whole = yaml.safe_dump(value).encode()
    return st.one_of(changed(value).map(lambda v: yaml.safe_dump(v).encode(errors="replace")), damaged(whole))


@pytest.fixture(scope="module")
def saved(model, settings, tmp_path_factory):
    """A checkpoint of a small model."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, settings(), folder, max_shard_size="100KB")
    return folder


def test_configurations(box):
    whole = yaml.safe_load(dump_config(load_config("tiny")))

    @examples(60)
    @given(yamls(whole))
    def fuzz(data):
        (box / "c.yaml").write_bytes(data)
        survives(box / "out", "config", "c.yaml")

    fuzz()


def test_overrides(box):
    values = st.one_of(st.sampled_from([str(leaf) for leaf in LEAVES if "\0" not in str(leaf)]), st.text(max_size=20))
    words = st.tuples(st.sampled_from(KEYS), st.sampled_from(["=", "", "==", "={"]), values).map("".join)

    @examples(80)
    @given(st.lists(words, min_size=1, max_size=3))
    def fuzz(overrides):
        survives(box / "out", "config", "tiny", "--", *overrides)

    fuzz()


def test_plans_of_ablations(box):
    study = {
        "ablated_part": "CME",
        "action": "REMOVE",
        "overrides": ["model.cme=null"],
        "metrics": ["L1"],
        "seeds": [0],
    }
    plan = {"budget": "b.yaml", "overrides": [], "studies": [study]}
    budget = {"config": "tiny", "overrides": ["train.steps=1"], "benchmark": "none", "limit": 1}

    @examples(40)
    @given(yamls(plan), yamls(budget))
    def fuzz(plan, budget):
        (box / "p.yaml").write_bytes(plan)
        (box / "b.yaml").write_bytes(budget.replace(b"mini", b"none"))  # a plan that fits would be carried out
        survives(box / "out", "ablate", "p.yaml", "-o", "out")

    fuzz()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".json", ".parquet"])
def test_jobs(suffix, box, saved):
    picture(0).save(box / "a.png")
    row = {"id": "a", "image": "gone.png", "instruction": "melt it", "seed": 1, "steps": 1, "n": 1, "reasoning": False}
    table = io.StringIO()
    writer = csv.DictWriter(table, row, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerow(row)
    found = damaged(table.getvalue().encode()) if suffix in (".csv", ".tsv") else jsons(row)
    if suffix == ".parquet":
        found = damaged(open(layouts.parquet(box / "whole.parquet", [row]), "rb").read())

    @examples(6)
    @given(found)
    def fuzz(data):
        (box / f"jobs{suffix}").write_bytes(data)
        shutil.rmtree(box / "out", ignore_errors=True)
        survives(box / "out", "batch", f"jobs{suffix}", "-o", "out", "--checkpoint", saved)

    fuzz()


def test_journals_of_a_batch(box, saved):
    (box / "jobs.jsonl").write_text(json.dumps({"id": "a", "image": "gone.png", "instruction": "melt it"}))
    command = ["batch", "jobs.jsonl", "-o", "out", "--checkpoint", saved]
    survives(box / "out", *command)
    run, line = (json.loads((box / "out" / name).read_text()) for name in ("run.json", "results.jsonl"))

    @examples(10)
    @given(st.one_of(st.just(text_of(run)), jsons(run)), jsons(line))
    def fuzz(run, line):
        (box / "out" / "run.json").write_bytes(run)
        (box / "out" / "results.jsonl").write_bytes(line + b"\n")
        survives(box / "out", *command)

    fuzz()


def test_checkpoints(box, saved):
    picture(0).save(box / "in.png")
    names = sorted(
        str(f.relative_to(saved)) for f in saved.rglob("*") if f.suffix in (".json", ".yaml", ".safetensors")
    )
    names = [name for name in names if "-of-" not in name or "00001" in name]

    @examples(30)
    @given(st.sampled_from(names), st.data())
    def fuzz(name, data):
        whole = (saved / name).read_bytes()
        drawn = damaged(whole, 0, 400)
        if name.endswith(".json") and "tokenizer.json" not in name:
            drawn = jsons(json.loads(whole))
        elif name.endswith(".yaml"):
            drawn = yamls(yaml.safe_load(whole))
        shutil.copytree(saved, box / "ck", copy_function=lambda a, b: None if a.endswith(name) else shutil.copy(a, b))
        try:
            (box / "ck" / name).write_bytes(data.draw(drawn))
            survives(box / "out", "edit", "in.png", "melt it", "--checkpoint", "ck", "-o", "out/o.png", "edit.steps=1")
        finally:
            shutil.rmtree(box / "ck")

    fuzz()


def test_pictures_that_are_edited(box, saved):
    whole = layouts.encoded(picture(0))

    @examples(12)
    @given(st.one_of(damaged(whole, 0, 60), st.binary(max_size=60)))
    def fuzz(data):
        (box / "in.png").write_bytes(data)
        survives(box / "out", "edit", "in.png", "melt it", "--checkpoint", saved, "-o", "out/o.png", "edit.steps=1")

    fuzz()


EVAL = ["eval", "--benchmark", "manifest", "--data", "d/manifest.jsonl", "--edits", "e"]


@pytest.fixture
def edits(box):
    layouts.manifest(box / "d", 1)
    layouts.save(picture(3), box / "e" / "r0.png")


def test_reports(box, edits):
    survives(box / "other", *EVAL, "--metric", "L1", "-o", "other")
    report = json.loads((box / "other" / "report.json").read_text())

    @examples(40)
    @given(jsons(report))
    def fuzz(data):
        (box / "other" / "report.json").write_bytes(data)
        survives(box / "out", *EVAL, "--metric", "L1", "-o", "out", "--against", "other")

    fuzz()


class Answer(BaseHTTPRequestHandler):
    """Sends ``server.raw`` as it is."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.server.raw)
        self.close_connection = True

    def log_message(self, *_):
        pass


def test_answers_of_an_endpoint(box, edits):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    judge = ["--metric", "MLLM Score", "--judge", f"http://127.0.0.1:{server.server_port}/v1", "--judge-model", "m"]
    said = {"choices": [{"message": {"role": "assistant", "content": "Good.\nscore: 7"}, "finish_reason": "stop"}]}
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    texts = st.lists(
        st.sampled_from(["score: 7", "\n", "score", ":", " ", "10", "-", "e9", "nan", "<think>", "9" * 400])
    )
    chat = texts.map(lambda t: text_of({"choices": [{"message": {"content": "".join(t)}}]}))

    @examples(40)
    @given(st.one_of(jsons(said), chat).map(lambda body: head + body) | damaged(head + text_of(said), 0, 60))
    def fuzz(raw):
        server.raw = raw
        shutil.rmtree(box / "out", ignore_errors=True)
        survives(box / "out", *EVAL, *judge, "-o", "out")

    fuzz()
    server.shutdown()
    server.server_close()


def test_arguments(box):
    """Names of files and instructions of any kind."""
    picture(0).save(box / "in.png")
    words = st.one_of(
        st.text(max_size=30), st.sampled_from([str(leaf) for leaf in LEAVES] + [w.decode("latin1") for w in WORDS])
    )
    words = words.filter(lambda word: not word.startswith("-"))

    @examples(60)
    @given(st.sampled_from(["modules", "config", "check", "score", "plan", "show", "edit"]), words)
    def fuzz(command, word):
        lines = {
            "modules": ["modules", word],
            "config": ["config", word],
            "check": ["data", "check", word, "-o", "out/p.jsonl"],
            "score": ["data", "score", word, word],
            "plan": ["plan", word, "--gpus", "1", "--gpu-memory", "8"],
            "show": ["data", "show", word, "-o", "out/g.html"],
            "edit": ["edit", word, word, "-o", "out/o.png"],
        }
        survives(box / "out", *lines[command])

    fuzz()
