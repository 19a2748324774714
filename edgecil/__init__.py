"""Class-incremental learning without old data, under a hard memory limit, for small devices.

``edgecil.init(...)``, ``edgecil.learn(...)``, ``edgecil.evaluate(...)``,
``edgecil.report_memory(...)`` and ``edgecil.export(...)`` do what the commands of the same names
do. Importing the package is cheap: torch is loaded when the first of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecil._version import __version__

if TYPE_CHECKING:
    from edgecil.api import evaluate, export, init, learn, predict, report_memory

__all__ = ["__version__", "evaluate", "export", "init", "learn", "predict", "report_memory"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from edgecil import api

        return getattr(api, name)
    raise AttributeError(f"module 'edgecil' has no attribute {name!r}")
