"""SHA-256 without the cost of loading OpenSSL."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def sha256(data: bytes = b"") -> Any:
    """Return a SHA-256 object as :mod:`hashlib` has it, already fed with ``data``."""
    # Python's own code first: hashlib would load OpenSSL, 4 MB of a small board's memory.
    for name in ("_sha2", "_sha256"):  # from Python 3.12, until 3.11
        try:
            return import_module(name).sha256(data)
        except (ImportError, AttributeError):
            continue
    import hashlib

    return hashlib.sha256(data)
