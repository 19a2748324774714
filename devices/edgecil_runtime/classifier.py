"""The classifier of a device app: verified, predicted to fit, loaded, and asked one by one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from edgecil_runtime import memory
from edgecil_runtime.bundle import open_bundle, read_selftest
from edgecil_runtime.errors import BundleError, InputError
from edgecil_runtime.evaluation import Evaluation, evaluate_folder
from edgecil_runtime.images import PathLike, check_array
from edgecil_runtime.limits import resolve
from edgecil_runtime.manifest import Manifest
from edgecil_runtime.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecil_runtime.isolation import Worker
    from edgecil_runtime.own_process import OwnProcess

    Image = Union[PathLike, NDArray[np.uint8]]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says about one image: best class, its score, and all scores ``(C,)``."""

    label: str
    index: int
    score: float
    scores: NDArray[np.float32]


class SelfTestResult(NamedTuple):
    """A passed self-test: images, and the largest difference of a score from the recorded one."""

    images: int
    max_difference: float
    tolerance: float


class Classifier:
    """A model from a bundle, ready to predict.

    ``memory_limit`` (``"96MB"``, bytes, ``"auto"`` or None) bounds what this object adds to the
    process: the need is predicted and refused before anything is loaded, and images too large
    for what is left are refused before they are decoded. ``"auto"`` is what the memory cgroup,
    the resource limits and the machine leave. ``threads`` are onnxruntime's.

    With ``isolate`` the model runs in a process of its own, whose peak ``memory_limit`` then
    bounds. Whatever happens there (a crash, a kill, too little memory, no answer within
    ``deadline`` seconds) arrives as an error, and the next call starts another process.

    ``baked`` is the folder of a baked form (see :mod:`~.baking`), looked for beside the bundle
    by default. ``process`` belongs to the command line. One object may be used from several
    threads, and several objects in one process. :meth:`close`, a ``with`` block or garbage
    collection frees it.

    Raises:
        BundleError: the bundle is damaged, or its model does not load here.
        MemoryLimitError: the model does not fit; the message says what would do.
        RuntimeMissing: no suitable onnxruntime is installed.
        WorkerError: the isolated process ended while it was loading.
        InputError: no bundle there, or an option that makes no sense.
    """

    def __init__(
        self,
        path: PathLike,
        memory_limit: Union[str, int, None] = None,
        threads: int = 1,
        *,
        isolate: bool = False,
        deadline: Optional[float] = None,
        baked: Optional[PathLike] = None,
        process: Optional[OwnProcess] = None,
    ) -> None:
        if type(threads) is not int or not 1 <= threads <= 1024:
            raise InputError(f"threads must be a whole number in [1, 1024], got {threads!r}")
        if deadline is not None and not (isolate and deadline > 0):
            raise InputError(
                f"deadline must be positive seconds, with isolate=True, got {deadline!r}"
            )
        limit = resolve(memory_limit)
        self._bundle = open_bundle(path)
        self.manifest: Manifest = self._bundle.manifest
        self.labels: Tuple[str, ...] = tuple(label.name for label in self.manifest.labels)
        self.memory_limit = None if limit is None else limit.bytes
        self._model: Union[Model, Worker]
        if isolate:
            from edgecil_runtime.isolation import Worker

            self._model = Worker(self._bundle, self.memory_limit, threads, deadline, baked)
        else:
            if limit is not None and memory_limit == "auto" and process is None:
                now = memory.usage()
                self.memory_limit = max(0, limit.bytes - (now.resident if now else 0))
            self._model = Model(self._bundle, self.memory_limit, threads, process, baked)

    @property
    def plan(self) -> str:
        """The way the model is loaded: ``"baked"``, ``"fast"``, or one that needs less memory."""
        return self._model.plan.name

    @property
    def need(self) -> memory.Need:
        """The predicted peak, by what takes it."""
        return self._model.need

    @property
    def not_baked(self) -> Optional[str]:
        """Why the portable model is used and no baked one; None when a baked one is."""
        return self._model.not_baked

    def predict(self, image: Image) -> Prediction:
        """Return the best class of one image: a path, or a uint8 RGB array ``(H, W, 3)``.

        Raises:
            ImageError: the file cannot be read, or the image has too many pixels.
            MemoryLimitError: the image does not fit beside the model.
            WorkerError: the isolated process ended, or did not answer in time.
            InputError: neither a path nor such an array.
        """
        if isinstance(image, (str, os.PathLike)):
            scores, _ = self._model.file_scores(image)
        else:
            scores = self._model.scores(check_array(image, self.manifest.max_pixels))
        index = int(scores.argmax())
        return Prediction(self.labels[index], index, float(scores[index]), scores)

    def predict_batch(self, images: Iterable[Image]) -> List[Prediction]:
        """Return the predictions of several images, which go through the model one at a time."""
        return [self.predict(image) for image in images]

    def read(self, image: Image) -> NDArray[np.uint8]:
        """Return an image as the array that :meth:`scores` takes; arrays are only checked.

        Raises:
            RuntimeFault: see :meth:`predict`.
        """
        if isinstance(image, (str, os.PathLike)):
            return self._model.read(image)
        return check_array(image, self.manifest.max_pixels)

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores ``(C,)`` of uint8 RGB ``(H, W, 3)``, in the order of ``labels``.

        Raises:
            RuntimeFault: see :meth:`predict`.
        """
        return self._model.scores(check_array(pixels, self.manifest.max_pixels))

    def file_scores(self, path: PathLike) -> Tuple[NDArray[np.float32], float]:
        """Return the scores ``(C,)`` of an image file, and the seconds without reading it.

        Raises:
            RuntimeFault: see :meth:`predict`.
        """
        return self._model.file_scores(path)

    def usage(self) -> Optional[memory.Usage]:
        """Return the memory of the process that computes; None where the system does not tell."""
        return self._model.usage()

    def evaluate(
        self,
        folder: PathLike,
        on_progress: Optional[Progress] = None,
        *,
        ignore_unknown: bool = False,
        skip_bad: bool = False,
        resume_file: Optional[PathLike] = None,
    ) -> Evaluation:
        """Return accuracy, confusion, latency and memory over a folder of class folders.

        Images are read one at a time. ``on_progress(done, total)`` is called after each.
        ``ignore_unknown`` passes over folders whose name is not a class of the model,
        ``skip_bad`` over images that cannot be read (they are counted). ``resume_file`` keeps
        what was found so far: the same call after a power cut continues there.

        Raises:
            InputError: no images, folders that are not classes of the model, or a resume file
                of another evaluation.
            ImageError: an image cannot be read, unless ``skip_bad``.
        """
        return evaluate_folder(self, folder, on_progress, ignore_unknown, skip_bad, resume_file)

    def selftest(self) -> SelfTestResult:
        """Return the result of predicting the images that came with the bundle.

        Raises:
            BundleError: a score differs from the recorded one by more than the tolerance.
        """
        test = read_selftest(self._bundle)
        worst = 0.0
        for index, image in enumerate(test.images):
            difference = float(np.abs(self.scores(image) - test.scores[index]).max())
            if difference > test.tolerance:
                raise BundleError(
                    f"{self._bundle.path}: self-test image {index}: a score differs by "
                    f"{difference:.4g} from the recorded one, at most {test.tolerance:.4g} allowed",
                    hint="this onnxruntime or CPU computes the model differently; do not use it",
                )
            worst = max(worst, difference)
        return SelfTestResult(len(test.images), worst, test.tolerance)

    def close(self) -> None:
        """Free the model, and end the process of an isolated one."""
        self._model.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
