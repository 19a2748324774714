"""On-device runtime for classifiers exported by edgecil.

    from edgecil_runtime import Classifier

    classifier = Classifier("birds-v3", memory_limit="96MB")
    print(classifier.predict("photo.jpg").label)

Nothing heavy is imported before it is used: the workstation reads bundles, containers and
images through this package without loading onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecil_runtime._environment import prepare_device, silence_telemetry
from edgecil_runtime.errors import (
    BundleError,
    DeadlineError,
    ImageError,
    InputError,
    MemoryLimitError,
    RuntimeFault,
    RuntimeMissing,
    WorkerError,
)

if TYPE_CHECKING:
    from edgecil_runtime.classifier import Classifier

__version__ = "0.1.0"
__all__ = [
    "BundleError",
    "Classifier",
    "DeadlineError",
    "ImageError",
    "InputError",
    "MemoryLimitError",
    "RuntimeFault",
    "RuntimeMissing",
    "WorkerError",
    "__version__",
]

silence_telemetry()


def __getattr__(name: str) -> Any:
    if name != "Classifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_device()
    from edgecil_runtime.classifier import Classifier

    return Classifier
