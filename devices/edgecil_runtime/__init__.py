"""On-device runtime for classifiers exported by edgecil."""

from __future__ import annotations

__version__ = "0.1.0"
