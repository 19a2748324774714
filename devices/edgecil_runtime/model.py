"""A verified model loaded into this process: chosen to fit, and asked for scores."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

import numpy as np

from edgecil_runtime import baking, memory
from edgecil_runtime.bundle import Bundle, check_unchanged
from edgecil_runtime.errors import (
    BundleError,
    ImageError,
    InputError,
    MemoryLimitError,
    RuntimeFault,
)
from edgecil_runtime.images import (
    PathLike,
    fit_square,
    read_image,
    resized_shape,
)
from edgecil_runtime.manifest import Manifest
from edgecil_runtime.session import (
    create_session,
    is_first_session,
    load_onnxruntime,
    one_line,
    raise_if_memory,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecil_runtime.own_process import OwnProcess

Choice = Tuple[memory.Plan, memory.Need]

# What a process uses before it loads a model differs by some 100 kB from one start to the next.
_START_VARIES = 1_000_000


class Model:
    """A model of a verified bundle, ready to compute scores; may be used by several threads.

    ``limit`` in bytes bounds what it adds to the process, or with ``process`` the peak of the
    process, what it uses already included. ``baked`` is the folder of a baked form of it,
    looked for beside the bundle by default.

    Raises:
        BundleError: the model does not load here, or is not what the manifest says.
        MemoryLimitError: it does not fit; the message says what would do.
        RuntimeMissing: no suitable onnxruntime is installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        limit: Optional[int] = None,
        threads: int = 1,
        process: Optional[OwnProcess] = None,
        baked: Optional[PathLike] = None,
    ) -> None:
        self._bundle = bundle
        self._limit = limit
        self._threads = threads
        self._process = process
        self.manifest: Manifest = bundle.manifest
        self._outputs = [self.manifest.output_name]
        load_onnxruntime(self.manifest.requires.onnxruntime)  # part of "before", not of the need
        found = baking.find(bundle, baked)
        self.baked = found if isinstance(found, baking.BakedInfo) else None
        self.not_baked = found if isinstance(found, str) else None
        """Why no baked form is used; None when one is."""
        before = 0 if process is None else process.in_use()
        self._choices = fitting(self.manifest, limit, self.baked is not None, before)
        self._lock = threading.Lock()
        if process is not None:
            process.before_loading(self.need)
        self._session: Any = self._load()
        memory.trim()
        if process is not None:
            baked_files = [] if self.baked is None else sorted(self.baked.folder.iterdir())
            process.after_loading([bundle.model_path, *baked_files])

    @property
    def plan(self) -> memory.Plan:
        """The way it is loaded."""
        return self._choices[0][0]

    @property
    def need(self) -> memory.Need:
        """The peak that was predicted for that."""
        return self._choices[0][1]

    def _load(self) -> Any:
        """Return a session by the first plan that gets the memory it asks for."""
        while True:
            baked = self.plan in memory.BAKED.values() and self.baked is not None
            path = self.baked.model_path if baked and self.baked else self._bundle.model_path
            try:
                session = create_session(path, self.manifest, self.plan, self._threads)
            except MemoryError as error:
                if len(self._choices) == 1:
                    raise self.exceeded("loading the model", error) from None
                del self._choices[0]
                memory.trim()
            else:
                check_unchanged(self._bundle)
                return session

    def read(self, path: PathLike) -> NDArray[np.uint8]:
        """Return an image file as uint8 RGB ``(H, W, 3)``.

        Raises:
            ImageError: the file cannot be read, or the image has too many pixels.
            MemoryLimitError: the image does not fit beside the model.
        """
        room = None if self._limit is None else self._limit - self.need.total + self.need.image
        try:
            return read_image(path, self.manifest.max_pixels, room)
        except MemoryError as error:
            raise self.exceeded(f"reading {os.fspath(path)}", error) from None

    def file_scores(self, path: PathLike) -> Tuple[NDArray[np.float32], float]:
        """Return the scores ``(C,)`` of an image file, and the seconds without reading it.

        Raises:
            RuntimeFault: see :meth:`read` and :meth:`scores`.
        """
        pixels = self.read(path)
        start = time.perf_counter()
        scores = self.scores(pixels)
        return scores, time.perf_counter() - start

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores ``(C,)`` of uint8 RGB ``(H, W, 3)``, in the order of the labels.

        Raises:
            ImageError: the image is so elongated that resizing it would exceed ``max_pixels``.
            MemoryLimitError: no way to compute them fits the memory.
            BundleError: the model fails, or answers with something other than C numbers.
        """
        feed = {self.manifest.input_name: self._fitted(pixels)[np.newaxis]}
        result = self._run(feed)
        if result.shape != (1, len(self.manifest.labels)) or not np.isfinite(result).all():
            raise BundleError(
                f"{self._bundle.model_path}: expected {len(self.manifest.labels)} finite scores, "
                f"got shape {result.shape}"
            )
        if self._process is not None:
            self._process.after_prediction()
        scores: NDArray[np.float32] = result[0]
        return scores

    def _run(self, feed: Any) -> Any:
        while True:
            session = self._session or self._after_reload()
            try:
                return session.run(self._outputs, feed)[0]
            except RuntimeFault:  # of the watch, which looks in at any time
                raise
            except Exception as error:
                try:
                    raise_if_memory(error)
                except MemoryError as no_memory:
                    self._make_leaner(session, no_memory)
                else:
                    raise BundleError(f"{self._bundle.model_path}: {one_line(error)}") from None

    def _after_reload(self) -> Any:
        """Return the session once the thread that loads it again is done."""
        with self._lock:
            if self._session is None:
                raise InputError(f"{self.manifest.directory_name}: the classifier is closed")
            return self._session

    def _make_leaner(self, failed: Any, error: MemoryError) -> None:
        """Load the model again by the next plan, unless another thread just did."""
        with self._lock:
            if self._session is not failed:
                return
            if len(self._choices) == 1:
                raise self.exceeded("predicting", error) from None
            del self._choices[0]
            # Both at once would not fit either: let go of the old one first.
            self._session = None
            del failed
            memory.trim()
            self._session = self._load()

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

    def usage(self) -> Optional[memory.Usage]:
        """Return the memory of the process that computes; None where the system does not tell."""
        return memory.usage()

    def close(self) -> None:
        """Free the model; it cannot be used again."""
        self._session = None
        memory.trim()

    def exceeded(self, doing: str, error: BaseException) -> MemoryLimitError:
        """Return the error that says what happened and what to try."""
        # The prediction said it would fit and it did not: ask for a quarter more. In somebody
        # else's process the limit is on what we add, and its peak says nothing about that.
        now = None if self._process is None else memory.usage()
        known = max(self.need.total, self._limit or 0, now.peak if now else 0)
        return MemoryLimitError(
            f"out of memory while {doing} (predicted {memory.format_size(self.need.total)}: "
            f"{self.need.describe()}): {one_line(error)}",
            hint=f"raise the limit to {memory.round_up(1.25 * known)}",
        )


def fitting(manifest: Manifest, limit: Optional[int], baked: bool, before: int) -> List[Choice]:
    """Return the ways to load that fit ``limit`` bytes, fastest first, with their needs.

    ``before`` is what counts against the limit already.

    Raises:
        MemoryLimitError: none fits; the message gives the breakdown and what would do.
    """
    side = manifest.preprocess.resize
    image = memory.decoding_bytes(side, side)
    first = is_first_session()
    choices = [
        (plan, memory.predict_need(manifest, plan, before, image, first=first))
        for plan in memory.plans(manifest.precision, baked)
    ]
    fit = [(plan, need) for plan, need in choices if limit is None or need.total <= limit]
    if fit:
        return fit
    least = min((need for _, need in choices), key=lambda need: need.total)
    raise memory.too_small(manifest, limit or 0, least, _START_VARIES)
