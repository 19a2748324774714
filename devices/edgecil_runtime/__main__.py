"""``python -m edgecil_runtime`` is ``edgecil-device``."""

from __future__ import annotations

import sys

from edgecil_runtime.cli import main

sys.exit(main())
