"""Ray, where it is not installed. Where it is: test_batch.py, data/test_build_runs.py, eval/test_ablate.py."""

import sys

import pytest

from reasonbrain.errors import UserError
from reasonbrain.utils.cluster import connect


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--executor ray needs Ray: pip install 'reasonbrain\[ray\]'"):
        connect()
