"""The classifier of a device app: verified, predicted to fit, loaded, and asked one by one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from edgecil_runtime import memory
from edgecil_runtime.bundle import check_unchanged, open_bundle, read_selftest
from edgecil_runtime.errors import (
    BundleError,
    ImageError,
    InputError,
    MemoryLimitError,
)
from edgecil_runtime.evaluation import Evaluation, evaluate_folder
from edgecil_runtime.images import (
    PathLike,
    check_array,
    decoding_bytes,
    fit_square,
    read_image,
    resized_shape,
)
from edgecil_runtime.manifest import Manifest
from edgecil_runtime.session import create_session, load_onnxruntime, one_line, raise_if_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = Union[PathLike, NDArray[np.uint8]]

Progress = Callable[[int, int], None]

# What a process uses before it loads a model differs by some 100 kB from one start to the next.
_START_VARIES = 500_000


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

    ``memory_limit`` (``"96MB"``, bytes, or None) bounds what this object adds to the process:
    the need is predicted and refused before anything is loaded, and images too large for what
    is left are refused before they are decoded. With ``whole_process`` the limit is the peak
    of the process instead, what it uses already included. ``before_loading`` is called once the
    model is verified and predicted to fit (the command line sets its hard stop there, which must
    not come before the imports). ``threads`` are onnxruntime's. One
    object may be used from several threads, and several objects in one process.

    Raises:
        BundleError: the bundle is damaged, or its model does not load here.
        MemoryLimitError: the model does not fit; the message says what would do.
        RuntimeMissing: no suitable onnxruntime is installed.
        InputError: no bundle there, or an option that makes no sense.
    """

    def __init__(
        self,
        path: PathLike,
        memory_limit: Union[str, int, None] = None,
        threads: int = 1,
        *,
        whole_process: bool = False,
        before_loading: Optional[Callable[[], Any]] = None,
    ) -> None:
        if type(threads) is not int or not 1 <= threads <= 1024:
            raise InputError(f"threads must be a whole number in [1, 1024], got {threads!r}")
        limit = None if memory_limit is None else memory.parse_size(memory_limit)
        self._bundle = open_bundle(path)
        self.manifest: Manifest = self._bundle.manifest
        self.labels: Tuple[str, ...] = tuple(label.name for label in self.manifest.labels)
        self.memory_limit = limit
        load_onnxruntime(self.manifest.requires.onnxruntime)  # part of "before", not of the need
        self.plan, self.need = choose_plan(self.manifest, limit, whole_process)
        self._image_bytes = None if limit is None else limit - self.need.total + self.need.image
        if before_loading is not None:
            before_loading()
        try:
            self._session = create_session(
                self._bundle.model_path, self.manifest, self.plan, threads
            )
        except MemoryError as error:
            raise self._exceeded("loading the model", error) from None
        check_unchanged(self._bundle)
        memory.trim()
        self._outputs = [self.manifest.output_name]

    def predict(self, image: Image) -> Prediction:
        """Return the best class of one image: a path, or a uint8 RGB array ``(H, W, 3)``.

        Raises:
            ImageError: the file cannot be read, or the image has too many pixels.
            MemoryLimitError: the image does not fit beside the model.
            InputError: neither a path nor such an array.
        """
        scores = self.scores(self.read(image))
        index = int(scores.argmax())
        return Prediction(self.labels[index], index, float(scores[index]), scores)

    def predict_batch(self, images: Iterable[Image]) -> List[Prediction]:
        """Return the predictions of several images, which go through the model one at a time."""
        return [self.predict(image) for image in images]

    def read(self, image: Image) -> NDArray[np.uint8]:
        """Return an image as the array that :meth:`scores` takes; arrays are only checked.

        Raises:
            ImageError: see :meth:`predict`.
            MemoryLimitError: see :meth:`predict`.
            InputError: see :meth:`predict`.
        """
        if not isinstance(image, (str, os.PathLike)):
            return check_array(image, self.manifest.max_pixels)
        try:
            return read_image(image, self.manifest.max_pixels, self._image_bytes)
        except MemoryError as error:
            raise self._exceeded(f"reading {os.fspath(image)}", error) from None

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores ``(C,)`` of uint8 RGB ``(H, W, 3)``, in the order of ``labels``.

        Raises:
            ImageError: the image is so elongated that resizing it would exceed ``max_pixels``.
            BundleError: the model fails, or answers with something other than C numbers.
        """
        fitted = self._fitted(pixels)
        feed = {self.manifest.input_name: fitted[np.newaxis]}
        try:
            result: Any = self._session.run(self._outputs, feed)[0]
        except Exception as error:
            try:
                raise_if_memory(error)
            except MemoryError as no_memory:
                raise self._exceeded("predicting", no_memory) from None
            raise BundleError(f"{self._bundle.model_path}: {one_line(error)}") from None
        if result.shape != (1, len(self.labels)) or not np.isfinite(result).all():
            raise BundleError(
                f"{self._bundle.model_path}: expected {len(self.labels)} finite scores, "
                f"got shape {result.shape}"
            )
        scores: NDArray[np.float32] = result[0]
        return scores

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size, resize = self.manifest.preprocess.size, self.manifest.preprocess.resize
        height, width = pixels.shape[:2]
        if self.manifest.fixed_input:
            if (height, width) == (size, size) and size == resize:
                return np.ascontiguousarray(pixels)
            square, start = fit_square(pixels, resize), (resize - size) // 2
            return np.ascontiguousarray(square[start : start + size, start : start + size])
        tall, wide = resized_shape(height, width, resize)
        if tall * wide > max(self.manifest.max_pixels, 2 * resize * resize):
            raise ImageError(
                f"image of {width:,} x {height:,} pixels: too elongated: with its shorter side "
                f"at {resize} it would have {tall * wide:,} pixels, more than "
                f"{self.manifest.max_pixels:,}"
            )
        return np.ascontiguousarray(pixels)

    def evaluate(
        self,
        folder: PathLike,
        on_progress: Optional[Progress] = None,
        *,
        ignore_unknown: bool = False,
        skip_bad: bool = False,
    ) -> Evaluation:
        """Return accuracy, confusion, latency and memory over a folder of class folders.

        Images are read one at a time. ``on_progress(done, total)`` is called after each.
        ``ignore_unknown`` passes over folders whose name is not a class of the model,
        ``skip_bad`` over images that cannot be read (they are counted).

        Raises:
            InputError: no images, or folders that are not classes of the model.
            ImageError: an image cannot be read, unless ``skip_bad``.
        """
        return evaluate_folder(self, folder, on_progress, ignore_unknown, skip_bad)

    def selftest(self) -> SelfTestResult:
        """Return the result of predicting the images that came with the bundle.

        Raises:
            BundleError: a score differs from the recorded one by more than the tolerance.
        """
        test = read_selftest(self._bundle)
        worst = 0.0
        for index, image in enumerate(test.images):
            difference = float(np.abs(self.scores(self.read(image)) - test.scores[index]).max())
            if difference > test.tolerance:
                raise BundleError(
                    f"{self._bundle.path}: self-test image {index}: a score differs by "
                    f"{difference:.4g} from the recorded one, at most {test.tolerance:.4g} allowed",
                    hint="this onnxruntime or CPU computes the model differently; do not use it",
                )
            worst = max(worst, difference)
        return SelfTestResult(len(test.images), worst, test.tolerance)

    def _exceeded(self, doing: str, error: BaseException) -> MemoryLimitError:
        # The prediction said it would fit and it did not: ask for a quarter more.
        now = memory.usage()
        known = max(self.need.total, self.memory_limit or 0, now.peak if now else 0)
        return MemoryLimitError(
            f"out of memory while {doing} (predicted {memory.format_size(self.need.total)}: "
            f"{self.need.describe()}): {one_line(error)}",
            hint=f"raise the limit to {memory.round_up(1.25 * known)}",
        )


def choose_plan(
    manifest: Manifest, limit: Optional[int], whole_process: bool
) -> Tuple[memory.Plan, memory.Need]:
    """Return the fastest way to load that fits ``limit`` bytes, and its predicted need.

    Raises:
        MemoryLimitError: none fits; the message gives the breakdown and what would do.
    """
    now = memory.usage()
    process = now.resident if whole_process and now is not None else 0
    side = manifest.preprocess.resize
    image = decoding_bytes(side, side)
    needs = [
        (plan, memory.predict_need(manifest, plan, process, image))
        for plan in memory.PLANS[manifest.precision]
    ]
    for plan, need in needs:
        if limit is None or need.total <= limit:
            return plan, need
    least = min((need for _, need in needs), key=lambda need: need.total)
    heavy = manifest.precision == "fp32" and least.weights > 1_000_000
    smaller = ", or export the model as int8" if heavy else ""
    raise MemoryLimitError(
        f"{manifest.directory_name} needs {memory.format_size(least.total)}, the limit is "
        f"{memory.format_size(limit or 0)} ({least.describe()}); nothing was loaded",
        hint=f"raise the limit to {memory.round_up(least.total + _START_VARIES)}{smaller}",
    )
