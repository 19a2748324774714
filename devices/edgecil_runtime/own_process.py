"""What the runtime does to a process that is its own: the command line, or an isolated model.

All of it acts on the whole process, so none of it happens inside somebody else's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Optional

from edgecil_runtime import code_pages
from edgecil_runtime._environment import tighten_heap
from edgecil_runtime.errors import RuntimeFault
from edgecil_runtime.limits import FaultWatch, Limit, set_hard_stop
from edgecil_runtime.manifest import MAX_MANIFEST_BYTES, decode_manifest
from edgecil_runtime.memory import (
    Need,
    decoding_bytes,
    plans,
    predict_need,
    too_small,
    trim,
    usage,
)
from edgecil_runtime.plain_files import read_plain_file

if TYPE_CHECKING:
    from edgecil_runtime.images import PathLike

# Predictions after which the code that has come back is locked. Under a tight limit some of it
# is gone again by then, and is caught the next time.
_PIN_AFTER = (2, 4, 8, 16)
_CODE_COMES_BACK = 4_000_000  # of the interpreter and numpy, of what was let go
_LEAST_IN_USE = 24_000_000
# What numpy, onnxruntime and our own modules add to what Python has written to, measured with
# onnxruntime 1.31 on x86-64. Pillow, once it is imported, takes less than is reserved for it.
_IMPORTED, _IMPORTED_WITH_PILLOW = 25_500_000, 22_000_000
_IMPORTED_VARIES = 1_500_000
_TIGHT = 2  # a limit of more than this many times the peak needs no pages locked


class OwnProcess:
    """Keeps this process within ``limit``; without one it does nothing."""

    def __init__(self, limit: Optional[Limit], threads: int = 1) -> None:
        self.limit = limit
        self._threads = threads
        self._watch = FaultWatch(limit)
        self._predictions = 0

    def prepare(self, reads_files: bool = True) -> None:
        """Import everything now, one after the other without the code of the one before.

        Raises:
            RuntimeMissing: no onnxruntime is installed.
        """
        from edgecil_runtime.session import load_onnxruntime, share_arena

        if self.limit is None:
            return
        self._watch.start()
        tighten_heap()
        code_pages.shed()
        load_onnxruntime()
        share_arena()
        code_pages.shed()
        if reads_files:
            _import_pillow()
            code_pages.shed()
        trim()

    def in_use(self) -> int:
        """Return the bytes that this process needs before a model is loaded, 0 if unknown."""
        now = usage()
        shed = 0 if self.limit is None else _CODE_COMES_BACK
        return 0 if now is None else now.resident + shed

    def before_loading(self, need: Need) -> None:
        """Set the hard stop: imports fail in unclear ways once it is there."""
        if self.limit is not None:
            self._watch.needed = need.total
            set_hard_stop(self.limit.bytes, self._threads)

    def after_loading(self, files: Iterable[PathLike]) -> None:
        """Let go of what only loading needed: code, and ``files`` in the page cache."""
        if self.limit is not None:
            code_pages.shed()
            code_pages.forget(files)

    def after_prediction(self) -> None:
        """Hold on to the code that has come back with the first predictions."""
        if self.limit is None or self._predictions >= _PIN_AFTER[-1]:
            return
        self._predictions += 1
        if self._predictions in _PIN_AFTER:
            now = usage()
            if now is not None and now.resident < self.limit.bytes < _TIGHT * now.peak:
                code_pages.pin()
        if self._predictions == _PIN_AFTER[-1]:
            self._watch.settled()


def refuse_hopeless(path: PathLike, limit: Optional[Limit], reads_files: bool = True) -> None:
    """Refuse a limit that even an empty process with the model's weights would not fit.

    Before numpy and onnxruntime are imported, which alone may take minutes under a kernel limit.
    The figure to try is what the prediction after them will say, as far as this can be known now.

    Raises:
        MemoryLimitError: the limit is too small; the message says what would do.
    """
    if limit is None:
        return
    try:
        manifest = decode_manifest(read_plain_file(Path(path, "manifest.json"), MAX_MANIFEST_BYTES))
    except RuntimeFault:
        return  # opening the bundle will say what is wrong with it

    def least(in_use: int, baked: bool, image: int = 0) -> Need:
        ways = plans(manifest.precision, baked)
        return min((predict_need(manifest, plan, in_use, image) for plan in ways), key=sum)

    if least(_LEAST_IN_USE, baked=True).total > limit.bytes:
        now, side = usage(), manifest.preprocess.resize
        imported = _IMPORTED_WITH_PILLOW if reads_files else _IMPORTED
        in_use = _LEAST_IN_USE if now is None else now.anonymous + imported
        need = least(max(_LEAST_IN_USE, in_use), baked=False, image=decoding_bytes(side, side))
        raise too_small(manifest, limit.bytes, need, _IMPORTED_VARIES)


def _import_pillow() -> None:
    try:
        from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401
    except ImportError:
        return  # reading the first image says what is missing
