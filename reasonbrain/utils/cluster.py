"""The Ray cluster of ``--executor ray``, for batches, data builds and ablations.

ray = connect()
"""

from __future__ import annotations

import logging
from typing import Any

from reasonbrain.errors import UserError


def connect() -> Any:
    """The module ``ray``, connected to the cluster at RAY_ADDRESS, or to one started on this machine.

    Raises UserError if Ray is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install 'reasonbrain[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    return ray
