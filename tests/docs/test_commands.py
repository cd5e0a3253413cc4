"""The commands in README.md, CONTRIBUTING.md and docs/*.md: each is run here, or listed with the reason why not.

A command in a document that is in neither table fails, and so does a row that is in no document any more.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import metadata, version
from importlib.util import find_spec
from pathlib import Path

import click
import layouts
import pytest
from click.testing import CliRunner

from reasonbrain.cli import main
from reasonbrain.config.loading import load_config
from reasonbrain.data.opening import open_reader
from reasonbrain.eval.ablation.plan import read_plan
from reasonbrain.eval.evaluation.edits import file_stem
from reasonbrain.modules.data.reasonmini.store import write_split

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# What changes in a command before it is run, so that it is short: pattern and replacement, all that match in order.
# Of two equal options or keys the last counts.
SMALLER = [
    (r"--nproc_per_node 8", r"--nproc_per_node 2"),
    (r"--nnodes 2", r"--nnodes 1"),
    (r"--workers 16", r"--workers 1"),
    (r"^(reasonbrain plan) reasonbrain_flux_qwen", r"\1 tiny"),
    (r"^(reasonbrain train .*|.* train/train.py .*)", r"\1 train.steps=2 train.batch_size=2 train.log_every=1"),
    (r"(.*/train.py (?!.*data\.)|^reasonbrain (train|data cache) (?!.*data\.name)).*", r"\g<0> data.count=4"),
    (r"^reasonbrain (edit|eval|bench edit) (?!.*--edits).*|^reasonbrain bench edit$", r"\g<0> edit.steps=1"),
    (r"^.* batch .*", r"\g<0> edit.steps=1"),
    (r"^reasonbrain eval (?!.*--checkpoint RUN -o REPORT$).*", r"\g<0> --limit 2"),
    (r"^reasonbrain eval .*(magicbrush|diary) .*", r"\g<0> --metric L1"),  # the others' networks are on a hub
    (r"^reasonbrain bench .*", r"\g<0> --warmup 0 --repeats 1"),
    (r"^reasonbrain bench train .*", r"\g<0> data.count=4 train.batch_size=2"),
    (r"^reasonbrain data mini .*", r"\g<0> --count 2"),
]

# Commands that are run one after the other in a folder of their own, as ``here`` makes it.
RUN = {
    "edit": [
        'reasonbrain edit docs/samples/ice.png "What would happen if this ice cube were left in the sun?" -o out.png '
        "--panel panel.png",
        'reasonbrain edit docs/samples/ice.png "Leave the ice in the sun." -o out.png --dtype nf4',
    ],
    "train, export, edit": [
        "reasonbrain train --config tiny -o runs/mine train.steps=500",
        "reasonbrain export runs/mine -o model",
        'reasonbrain edit docs/samples/ice.png "Leave the ice in the sun." -o out.png --checkpoint runs/mine',
    ],
    "all forms of a checkpoint": [
        "reasonbrain train --config tiny -o RUN",
        "reasonbrain export RUN -o DIR",
        "reasonbrain export RUN -o DIR --merged",
        "reasonbrain export RUN -o DIR --adapters",
    ],
    "features": [
        "reasonbrain data cache --config tiny -o FEATURES",
        "reasonbrain train --config tiny -o RUN data.features=FEATURES",
    ],
    "data": [
        "reasonbrain data check data/reason50k",
        "reasonbrain data check data/reason50k --limit 1000 -o problems.jsonl",
        "reasonbrain data show data/reason50k --limit 500 -o gallery.html",
        "reasonbrain data check data/editworld",
        "reasonbrain data show data/editworld -o gallery.html",
        'reasonbrain train --config tiny -o RUN data.name=magicbrush "data.path=data/MagicBrush/data/train-*.parquet"',
    ],
    "mini": [
        "reasonbrain data mini --split test --count 50 --seed 7 -o mini",
        "reasonbrain data score mini EDITS",
    ],
    "mini of version 2": ["reasonbrain data mini --version 2 --split picture --count 50 --seed 7 -o mini"],
    "evaluate": ["reasonbrain eval --benchmark mini -o report"],
    "evaluate into REPORT": ["reasonbrain eval --benchmark mini -o REPORT"],
    "evaluate a checkpoint": ["reasonbrain eval --benchmark mini --checkpoint RUN -o REPORT"],
    "evaluate others": [
        "reasonbrain eval --benchmark magicbrush --data DIR --checkpoint RUN -o REPORT",
        "reasonbrain eval --benchmark magicbrush --data DIR --edits THEIRS -o REPORT2",
        "reasonbrain eval --benchmark magicbrush --data DIR --edits OTHERS -o REPORT3 --against REPORT2",
    ],
    "batch": [
        "reasonbrain batch jobs.jsonl -o out",
        'grep -v \'"status": "error"\' out/results.jsonl > kept.jsonl; mv kept.jsonl out/results.jsonl',
    ],
    "batch of a folder": ['reasonbrain batch photos --instruction "What if it snowed?" -o out'],
    "measure": [
        "reasonbrain bench edit",
        "reasonbrain bench load --checkpoint tiny",
        "reasonbrain bench load --config tiny",
        "reasonbrain bench train --warmup 1 --repeats 6 data.count=512 train.batch_size=16",
    ],
    "show": [
        "reasonbrain modules",
        "reasonbrain modules cme:hybrid",
        "reasonbrain config tiny model.cme=null train.steps=500",
    ],
}
LONG = {
    "predict": ["reasonbrain plan reasonbrain_flux_qwen --gpus 8 --gpu-memory 80"],
    "measure features": [
        "reasonbrain data cache --config tiny -o FEATURES data.count=1024",
        "reasonbrain bench train --warmup 1 --repeats 4 data.count=1024",
        "reasonbrain bench train --warmup 1 --repeats 4 data.count=1024 data.features=FEATURES",
    ],
    "batch in two replicas": ["reasonbrain batch jobs.jsonl -o out --workers 2"],
    "batch under torchrun": ["torchrun --nproc_per_node 8 -m reasonbrain.cli batch jobs.jsonl -o out"],
    "train under torchrun": ["torchrun --nproc_per_node 2 train/train.py --config tiny -o RUN"],
    "extend": [
        "reasonbrain modules connector:mean",
        "reasonbrain train --config tiny -o RUN model.connector.name=mean model.connector.queries=8",
    ],
    "extend with data": [
        "reasonbrain data check DIR --name diary",
        "reasonbrain train --config tiny -o RUN data.name=diary data.path=DIR",
        "reasonbrain eval --benchmark diary --data DIR -o REPORT",
    ],
}

NOT_RUN = {
    "installs packages": [
        "make edit",
        'pip install -e ".[train,mini,eval]"',
        "pip install --require-hashes -r requirements.lock",
        "pip install --no-deps --no-build-isolation .",
    ],
    "is this test suite itself": [
        *("make test", "make test-long", "make golden", "make planted"),
        'make planted FAULTS="flux/ cme/"',
        "FUZZ=30 .venv/bin/python -m pytest tests/fuzz",
    ],
    "needs GPUs": [
        "deepspeed train/train.py --config reasonbrain_flux_qwen --deepspeed configs/deepspeed/zero3.json -o runs/flux "
        "data.path=data/reason50k/train.jsonl",
        "deepspeed train/train.py --config reasonbrain_flux_qwen --deepspeed configs/deepspeed/zero3.json -o RUN "
        "data.path=train.jsonl",
        "deepspeed train/train.py --config reasonbrain_flux_qwen --deepspeed configs/deepspeed/zero3.json -o RUN "
        "train.start=START data.path=train.jsonl",
        "reasonbrain bench train $CONFIG -o lora-512.json data.size=512 $ONE $LORA",
        "reasonbrain bench train $CONFIG -o lora-1024.json data.size=1024 $ONE $LORA "
        "train.checkpointing=[diffusion,mllm]",
        "reasonbrain bench train $CONFIG -o full-512.json data.size=512 $ONE $FULL "
        "train.checkpointing=[diffusion,mllm]",
        "reasonbrain bench train $CONFIG -o full-1024.json data.size=1024 $ONE $FULL "
        "train.checkpointing=[diffusion,mllm]",
        "reasonbrain bench edit $CONFIG -o edit-512.json edit.size=512 $LORA",
        "reasonbrain bench edit $CONFIG -o edit-1024.json edit.size=1024 $LORA",
        "reasonbrain bench load $CONFIG -o load.json $LORA",
    ],
    "needs published weights from a hub": [
        "reasonbrain init --config reasonbrain_flux_qwen -o START",
        'reasonbrain edit photo.jpg "Make it snow." --config instructpix2pix -o out.png',
        'reasonbrain edit photo.jpg "What if it had snowed here overnight?" --config mgie_fz -o out.png',
        "reasonbrain convert instructpix2pix instruct-pix2pix-00-22000.ckpt -o pix2pix",
        "reasonbrain convert mgie _ckpt -o mgie",
        "reasonbrain convert smartedit SmartEdit-7B -o smartedit",
    ],
    "needs a cluster": [
        "sbatch docs/slurm.sh reasonbrain_flux_qwen RUN",
        "torchrun --nnodes 2 --nproc_per_node 8 -m reasonbrain.cli batch jobs.jsonl -o out",
        "reasonbrain batch jobs.jsonl -o out --executor ray",
        "reasonbrain batch jobs.jsonl -o out --executor ray --workers 16",
        "reasonbrain ablate components -o DIR --executor ray",
    ],
    "needs a network endpoint": [
        "reasonbrain data build seeds.jsonl -o built --url URL --model LLM --pipeline PIPELINE",
        "reasonbrain data build seeds.jsonl -o built --url http://localhost:8000/v1 --model LLM --pipeline PIPELINE",
        "reasonbrain eval --benchmark risebench --data data/risebench --edits THEIRS -o REPORT "
        "--judge http://localhost:8000/v1 --judge-model Qwen/Qwen2.5-VL-72B-Instruct",
    ],
    "trains for hours": [
        "reasonbrain ablate components -o DIR",
        "reasonbrain ablate my_plan.yaml -o DIR",
        "reasonbrain ablate instruction_summary -o DIR",
        "reasonbrain ablate components -o ablations",
        "OMP_NUM_THREADS=1 reasonbrain ablate components -o runs/ablations",
        "OMP_NUM_THREADS=1 reasonbrain ablate visual_branches -o runs/ablations",
        "OMP_NUM_THREADS=1 reasonbrain ablate visual_guidance -o runs/ablations",
        "python -m reasonbrain.train.tiny.mllm --full -o runs/tiny/mllm_full",
    ],
    "is run by tests/train/distributed/test_zero.py": [
        "deepspeed train/train.py --config tiny --deepspeed configs/deepspeed/zero3.json -o runs/zero",
        "deepspeed --num_gpus 2 train/train.py --config tiny --deepspeed configs/deepspeed/zero2.json -o RUN "
        "train.batch_size=16 train.steps=900 train.lr=4e-4 train.warmup=20 data.seed=11",
    ],
    "is run, with fewer edits, by tests/eval/benchmarking/test_bench.py": [
        "reasonbrain bench batch --checkpoint tiny --warmup 0 --repeats 3"
    ],
    "is run, with fewer edits, by tests/eval/benchmarking/test_options.py": [
        "reasonbrain bench options --checkpoint tiny edit.steps=40 --warmup 1 --repeats 3"
    ],
    "is run, with fewer steps, by tests/train/tiny/test_tiny_editor.py": [
        "python -m reasonbrain.train.tiny.t5 -o runs/tiny_editor/t5",
        "python -m reasonbrain.train.tiny.editor --t5 runs/tiny_editor/t5 -o runs/tiny_editor/kontext",
        "reasonbrain data cache --config tiny_kontext_think -o runs/tiny_think/features",
        "reasonbrain train --config tiny_kontext_think -o runs/tiny_think/edit data.features=runs/tiny_think/features",
    ],
    "is run by tests/hub/test_rehearsal.py": [
        "reasonbrain data cache --config reasonbrain_kontext_think -o FEATURES data.path=data/reason50k/train.jsonl",
        "torchrun --nproc_per_node 8 train/train.py --config reasonbrain_kontext_think -o RUN "
        "data.path=data/reason50k/train.jsonl data.features=FEATURES",
    ],
    "is run by tests/hub/test_think.py": [
        'reasonbrain edit photo.jpg "What if it had snowed here overnight?" --config think_klein -o out.png'
    ],
    "serves until it is interrupted": [
        "tensorboard --logdir runs/mine",
        "tensorboard --logdir RUN",
        "reasonbrain data review built",
    ],
}
WRITTEN_BY_READERS = {"my_plan.yaml"}


def documented():
    """The command lines of the ``bash`` blocks, with the variables that the blocks set expanded."""
    commands, variables = [], {}
    for document in DOCUMENTS:
        for block in re.findall(r"^```bash\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                line = re.sub(r"(^|\s+)#.*", "", line).strip()
                if found := re.fullmatch(r'(\w+)="(.*)"', line):
                    variables[found[1]] = found[2]
                elif line:
                    commands.append(line)
    return commands, variables


def listed():
    return [command for table in (RUN, LONG, NOT_RUN) for commands in table.values() for command in commands]


def test_every_documented_command_is_listed_once():
    assert sorted(listed()) == sorted(set(documented()[0]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the documents' commands name."""
    monkeypatch.chdir(tmp_path)
    for name in ("docs", "train", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for seed in (1, 2):
        layouts.save(layouts.picture(seed), tmp_path / "photos" / f"{seed}.png")
    jobs = [{"id": str(i), "image": f"photos/{i}.png", "instruction": "What if it snowed?"} for i in (1, 2)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in jobs))
    layouts.manifest(tmp_path / "data" / "reason50k")
    layouts.editworld(tmp_path / "data" / "editworld")
    for seed, path in enumerate(sorted((tmp_path / "data" / "editworld").rglob("*.png"))):
        layouts.save(layouts.picture(seed), path)  # the layout repeats pictures, which the check reports
    layouts.magicbrush(tmp_path / "data" / "MagicBrush")
    parquet = tmp_path / "data" / "MagicBrush" / "data"
    (parquet / "dev-00000-of-00001.parquet").rename(parquet / "train-00000-of-00001.parquet")
    return tmp_path


def prepare(story, here):
    """Creates the files that the commands of this story read but do not write."""
    if story == "mini":
        write_split("test", 2, 7, here / "drawn", 64)
        (here / "EDITS").mkdir()
        for record in open_reader("manifest", str(here / "drawn" / "manifest.jsonl")):
            record.source.save(here / "EDITS" / f"{record.id}.png")
    if story in ("evaluate others", "evaluate a checkpoint"):
        (here / "RUN").symlink_to(ROOT / "configs" / "tiny")
    if story == "evaluate others":
        layouts.magicbrush(here / "DIR")
        for name in ("THEIRS", "OTHERS"):
            (here / name).mkdir()
            for record in open_reader("magicbrush", str(here / "DIR")):
                record.source.save(here / name / f"{file_stem(record.id)}.png")
    if story.startswith("extend"):
        package(here / "site")
    if story == "extend with data":
        for seed in range(4):
            layouts.save(layouts.picture(seed), here / "DIR" / f"{seed}.png")
        entries = [{"before": f"{i}.png", "after": f"{i + 1}.png", "edit": "Let it melt."} for i in (0, 2)]
        (here / "DIR" / "diary.json").write_text(json.dumps(entries))


def package(site):
    """The package of CONTRIBUTING.md, laid out as by an installer."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sources = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    for name, sign in (("mean", "class Mean("), ("diary", "class Diary("), ("benchmark", "class DiaryBench(")):
        (source,) = (source for source in sources if sign in source)
        (site / "my_package").mkdir(parents=True, exist_ok=True)
        (site / "my_package" / f"{name}.py").write_text(source)
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = "\n".join(re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S))
    points = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", points).replace('"', "")
    (info / "entry_points.txt").write_text(points)


PROGRAMS = {
    "reasonbrain": "-m reasonbrain.cli",
    "torchrun": "-m torch.distributed.run --standalone",
    "deepspeed": "-m deepspeed.launcher.runner",
}


def smaller(command):
    for pattern, replacement in SMALLER:
        command = re.sub(pattern, replacement, command)
    return command


def execute(command, here, process):
    """Runs one command line, which must succeed, and returns what it printed."""
    program, _, rest = command.partition(" ")
    if program == "reasonbrain" and not process:
        result = CliRunner().invoke(main, shlex.split(rest))
        assert result.exit_code == 0, (command, result.output, result.exception)
        return result.stdout
    if program in PROGRAMS:
        command = f"{shlex.quote(sys.executable)} {PROGRAMS[program]} {rest}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here / 'site'}"}
    done = subprocess.run(["bash", "-c", command], env=env, cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (command, done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout


@pytest.mark.parametrize("story", [*RUN, *(pytest.param(story, marks=pytest.mark.long) for story in LONG)])
def test_the_commands_run(story, here):
    """The paths that a command prints exist."""
    prepare(story, here)
    for command in (RUN | LONG)[story]:
        if command.startswith("reasonbrain export"):
            shutil.rmtree(here / "DIR", ignore_errors=True)
        printed = execute(smaller(command), here, story.startswith("extend"))
        target = re.search(r" -o ([\w./]+)", command)
        if target and not re.match("reasonbrain data check", command):
            assert (here / target[1]).exists(), command
        for line in printed.splitlines():
            if re.fullmatch(r"[\w/]+(\.\w+)?", line) and target and line.startswith(target[1]):
                assert (here / line).exists(), command


def test_the_same_command_resumes(here):
    command = smaller(RUN["train, export, edit"][0])
    execute(command, here, False)
    execute(f"{command} train.steps=3", here, False)
    lines = [json.loads(line) for line in (here / "runs/mine/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


@pytest.mark.parametrize("command", [command for commands in NOT_RUN.values() for command in commands])
def test_a_command_that_is_not_run_is_well_formed(command, here):
    """Its options, presets, overrides, files and packages exist."""
    for name, value in documented()[1].items():
        command = command.replace(f"${name}", value)
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    program, *rest = words
    for word in rest:
        if re.match(r"(configs|docs|train|tests)/|.*\.lock$", word):
            assert (ROOT / word).exists()
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "pip":
        extras = {extra for group in re.findall(r"\[(.*)\]", command) for extra in group.split(",")}
        assert rest[0] == "install" and extras <= {*metadata("reasonbrain").get_all("Provides-Extra")}
    elif program == "tensorboard":
        assert version("tensorboard")
    elif Path(program).name == "python":
        assert find_spec(rest[1])
    elif program == "sbatch":
        well_formed(["train", "--config", *rest[1:2], "-o", rest[2]])
    elif "train/train.py" in rest:
        well_formed(["train", *rest[rest.index("train/train.py") + 1 :]])
    elif "reasonbrain.cli" in rest:
        well_formed(rest[rest.index("reasonbrain.cli") + 1 :])
    else:
        assert program == "reasonbrain"
        well_formed(rest)


def well_formed(words):
    """Raises for a command line that click or the configuration rejects. Nothing is run."""
    command, rest = main, list(words)
    while isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    given = command.make_context(command.name, rest).params
    preset = given.get("config") or given.get("preset") or "tiny"
    if "overrides" in given:
        load_config(preset, given["overrides"])
    if command.name == "ablate" and given["plan"] not in WRITTEN_BY_READERS:
        read_plan(given["plan"])


def test_a_mistyped_command_is_detected(here):
    for words in ("edti a b -o c", "edit a b -o c --step 3", "train -o R train.stesp=3", "train --config tny -o R"):
        with pytest.raises(Exception, match="edti|--step|stesp|tny"):
            well_formed(words.split())
