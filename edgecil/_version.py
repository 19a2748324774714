"""The version of both distributions, declared once by the device runtime."""

from edgecil_runtime import __version__

__all__ = ["__version__"]
