"""Removes secrets from texts that are printed or written.

redacted("http://me:pw@host/v1: 401 bad key sk-123456")  # http://***@host/v1: 401 bad key ***
"""

from __future__ import annotations

import os
import re

KEYS = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
SHORTEST = 6  # minimum length of a secret; shorter ones, such as "none", occur in ordinary text
USER = re.compile(r"(?<=//)[^/\s@]+@")  # in a URL


def redacted(text: str, *secrets: str) -> str:
    """``text`` without the values of the environment variables ``KEYS``, without ``secrets``, and without user names
    and passwords in URLs."""
    found = [*secrets, *(os.environ.get(key, "").strip() for key in KEYS)]
    for secret in sorted(found, key=len, reverse=True):  # longest first: one may be part of another
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "***")
    return USER.sub("***@", text)
