"""The process of an isolated model: ``isolation_worker BUNDLE LIMIT THREADS [BAKED]``.

It says that it is ready, then answers one question after another until nobody asks any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from edgecil_runtime.channel import Channel, Closed
from edgecil_runtime.errors import RuntimeFault, WorkerError


def _answer(model: Any, question: Dict[str, Any], payload: bytearray) -> Tuple[Any, Any]:
    """Return the answer to one question: of a file, of an array, or how much memory is used."""
    import numpy as np

    if "file" in question:
        scores, seconds = model.file_scores(question["file"])
        return {"seconds": seconds}, memoryview(scores).cast("B")
    if "shape" in question:
        pixels = np.frombuffer(payload, np.uint8).reshape(question["shape"])
        return {}, memoryview(model.scores(pixels)).cast("B")
    used = model.usage()
    return {"usage": used if used is None else list(used)}, b""


def _load(words: List[str]) -> Any:
    from edgecil_runtime.limits import of_process
    from edgecil_runtime.own_process import OwnProcess, refuse_hopeless

    path, limit, threads = words[0], int(words[1]), int(words[2])
    given = of_process(limit or None)
    refuse_hopeless(path, given)
    process = OwnProcess(given, threads)
    process.prepare()
    from edgecil_runtime.bundle import open_bundle
    from edgecil_runtime.model import Model

    baked = words[3] if len(words) > 3 else None
    return Model(open_bundle(path), None if given is None else given.bytes, threads, process, baked)


def _fault(error: BaseException, fatal: bool) -> Dict[str, Any]:
    if not isinstance(error, RuntimeFault):
        hint: Optional[str] = "raise the limit" if isinstance(error, MemoryError) else None
        code = "memory_limit" if isinstance(error, MemoryError) else WorkerError.code
        text = " ".join(str(error).split())[:300]
        described = {"code": code, "message": f"{type(error).__name__}: {text}", "hint": hint}
    else:
        described = {"code": error.code, "message": error.message, "hint": error.hint}
    return {"error": described, "fatal": fatal}


def serve(words: List[str], channel: Channel) -> None:
    """Answer until the other end is closed.

    Raises:
        Closed: it was.
    """
    try:
        model = _load(words)
    except Exception as error:
        channel.send(_fault(error, fatal=True))
        return
    channel.send({"plan": list(model.plan), "need": list(model.need), "not_baked": model.not_baked})
    while True:
        question, payload = channel.receive()
        try:
            answer, scores = _answer(model, question, payload)
        except RuntimeFault as error:
            channel.send(_fault(error, fatal=False))
        except Exception as error:  # not a fault that is known: start from nothing again
            channel.send(_fault(error, fatal=True))
            return
        else:
            channel.send(answer, scores)


def _main() -> NoReturn:
    # What onnxruntime or a library prints must not end up among the answers.
    channel = Channel(os.dup(0), os.dup(1))
    os.dup2(2, 1)
    with contextlib.suppress(Closed):
        serve(sys.argv[1:], channel)
    # Nothing is left to be saved, and taking everything down would take milliseconds.
    os._exit(0)


if __name__ == "__main__":
    _main()
