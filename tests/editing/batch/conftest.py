"""A tiny checkpoint and its pipeline, for the tests of batches."""

import pytest

from reasonbrain.checkpoint import save_model
from reasonbrain.editing.pipeline import ReasonBrainPipeline


@pytest.fixture(scope="module")
def checkpoint(model, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(model, settings("edit.steps=1"), folder)
    return folder


@pytest.fixture(scope="module")
def pipe(checkpoint):
    pipe = ReasonBrainPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe
