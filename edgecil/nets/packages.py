"""Packages that some networks need: torchvision must be of the build that torch is of."""

from __future__ import annotations

from typing import Any

import torch

from edgecil.errors import DependencyMissing


def torchvision_models() -> Any:
    """Return the module ``torchvision.models``.

    Raises:
        DependencyMissing: it is not installed, or was built for another torch.
    """
    try:
        import torchvision.models
    except (ImportError, RuntimeError, OSError) as error:
        if "torchvision::" in str(error) or "undefined symbol" in str(error):
            reason = f"it was built for another torch than the installed {torch.__version__}"
        else:
            reason = str(error)
        raise DependencyMissing(
            f"torchvision cannot be imported: {reason}",
            hint="install both from one index: pip install --force-reinstall torch torchvision",
        ) from error
    return torchvision.models
