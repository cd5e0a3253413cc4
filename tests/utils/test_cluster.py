"""The error if Ray is not installed. test_batch.py, test_build_runs.py and test_ablate.py test with Ray."""

import sys

import pytest

from reasonbrain.errors import UserError
from reasonbrain.utils.cluster import connect


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--executor ray needs Ray: pip install 'reasonbrain\[ray\]'"):
        connect()
