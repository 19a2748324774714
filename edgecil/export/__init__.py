"""From a version to a bundle. Calling the package is calling ``edgecil.api.export``.

``edgecil.export`` is both: the function that users call and this package, which Python puts
in its place as soon as one of its modules is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Export(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from edgecil import api

        return api.export(*args, **settings)


sys.modules[__name__].__class__ = _Export
