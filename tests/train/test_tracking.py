"""What a run logs, read by TensorBoard's own reader; wandb and trackio if they are installed."""

import json
import resource
import signal
import time

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reasonbrain.config.loading import load_config
from reasonbrain.errors import UserError
from reasonbrain.train.run import train
from reasonbrain.train.tracking import Tracker

QUICK = ["data.count=8", "train.batch_size=4", "train.warmup=2", "train.log_every=1", "train.tracker=tensorboard"]


def read(run):
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    return found


def test_a_run_logs_its_metrics(settings, tmp_path):
    """Losses, also by noise level; rates and gradient norms by slot; speed, memory, edits; also of a resumed run."""
    train(settings(*QUICK, "train.steps=2", "train.validate_every=2"), tmp_path)
    train(settings(*QUICK, "train.steps=4", "train.validate_every=2"), tmp_path)
    seen = read(tmp_path)
    names = set(seen.Tags()["scalars"])
    assert {"loss", "lm", "dm", "dm/0.25-0.50", "norm", "norm/cme", "lr/mllm", "seconds_per_step", "gib"} <= names
    assert {"validation/dm", "seconds_waiting_for_data"} <= names and seen.Tags()["images"] == ["edits"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e.step, pytest.approx(e.value)) for e in seen.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines if "loss" in line
    ]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    for line in lines:
        if "norm" in line:
            slots = [v for k, v in line.items() if k.startswith("norm/")]
            assert line["norm"] == pytest.approx(sum(v**2 for v in slots) ** 0.5, rel=1e-4) and len(slots) > 4


def test_steps_repeated_after_a_kill_are_not_shown_twice(tmp_path):
    first = Tracker("tensorboard", tmp_path, 0, {})
    for step in range(1, 6):
        first.log({"loss": float(step)}, step)
    first.close()
    time.sleep(1.1)  # TensorBoard orders files by second, then by a number as text: of one process, 10 before 9
    second = Tracker("tensorboard", tmp_path, 3, {})
    second.log({"loss": 40.0}, 4)
    second.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_failed_tracker_does_not_end_the_run(tmp_path, caplog):
    tracker = Tracker("tensorboard", tmp_path, 0, {})
    tracker.log({"loss": object()}, 1)
    tracker.picture("edits", Image.new("RGB", (4, 4)), 2)
    tracker.close()
    assert len(caplog.records) == 1 and "the run continues without it" in caplog.text


def test_a_tracker_that_fails_without_a_message_does_not_end_the_run(tmp_path, caplog):
    def timeout():
        raise TimeoutError

    tracker = Tracker("tensorboard", tmp_path, 0, {})
    tracker._send(timeout)
    assert "tensorboard failed (TimeoutError); the run continues without it" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tracker = Tracker("tensorboard", tmp_path, 0, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for step in range(200):
            tracker.log({"loss": 1.0}, step)
            tracker._send(tracker.backend.flush)
        tracker.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(caplog.records) == 1 and "File too large" in caplog.text


def test_an_unknown_or_missing_tracker_is_an_error(tmp_path):
    with pytest.raises(UserError, match="train.tracker: 'paper' is not one of tensorboard, wandb, trackio, null"):
        load_config("tiny", ["train.tracker=paper"])
    with pytest.raises(UserError, match="mlpaper is not installed"):
        Tracker("mlpaper", tmp_path, 0, {})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers(name, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # heeded if trackio was not imported before
    run = tmp_path / "run"
    run.mkdir()
    for step in (0, 2):
        tracker = Tracker(name, run, step, {"train": {"lr": 1e-3}})
        tracker.log({"loss": 1.0}, step + 1)
        tracker.picture("edits", Image.new("RGB", (8, 8)), step + 2)
        tracker.close()
        assert tracker.alive
