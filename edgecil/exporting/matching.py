"""How a new file is made of an old one: copies, differences of tensors, and new bytes.

Tensors are found as byte ranges of the ONNX files. One that both files hold under the same
name becomes differences from the old one, which small changes keep small; what follows the old
length (the rows of new classes) and everything that cannot be matched is stored as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgecil.exporting.tensor_bytes import Region, tensors
from edgecil_runtime.bundle import MODEL
from edgecil_runtime.delta import ADD_BYTES, ADD_WORDS, COPY, LITERAL, Step

_SHORTEST = 16  # bytes of a copy that is worth a step of its own
_RESUMED = 6  # the same where the old file goes on as it did before a difference


def file_steps(name: str, old: bytes, new: bytes) -> list[Step]:
    """Return how the file ``name`` is made of the old one and of bytes that a delta brings."""
    regions: list[tuple[Region, Region]] = []
    before: dict[str, Region] = {}
    if name == MODEL:
        before, after = tensors(old), tensors(new)
        shared = [(before[key], after[key]) for key in after if key in before]
        regions = sorted((pair for pair in shared if pair[0].width == pair[1].width), key=_start)
    matcher = _Matcher(old, list(before.values()))
    steps: list[Step] = []
    position = 0
    for region, target in regions:
        steps += matcher.steps(new, position, target.start)
        steps += _tensor_steps(old, new, region, target)
        position = target.stop
    steps += matcher.steps(new, position, len(new))
    return _merged(steps)


def _start(pair: tuple[Region, Region]) -> int:
    return pair[1].start


def _tensor_steps(old: bytes, new: bytes, region: Region, target: Region) -> list[Step]:
    common = min(region.stop - region.start, target.stop - target.start)
    rest = Step(LITERAL, 0, target.stop - target.start - common)
    same = old[region.start : region.start + common] == new[target.start : target.start + common]
    changed = ADD_WORDS if region.width == 4 else ADD_BYTES
    return [Step(COPY if same else changed, region.start, common), rest]


def _merged(steps: Iterable[Step]) -> list[Step]:
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if step.length == 0:
            continue
        if last is not None and _continues(last, step):
            merged[-1] = last._replace(length=last.length + step.length)
        else:
            merged.append(step)
    return merged


def _continues(last: Step, step: Step) -> bool:
    # Differences of words lie in chunks counted from the start of their step: they stay apart.
    adjacent = step.kind == COPY and last.offset + last.length == step.offset
    return last.kind == step.kind and (step.kind == LITERAL or adjacent)


class _Matcher:
    """Finds pieces of new files in an old one, outside its tensors."""

    def __init__(self, old: bytes, tensors: list[Region]) -> None:
        self.old = old
        self.places: dict[bytes, int] = {}
        start = 0
        for region in [*sorted(tensors), Region(len(old), len(old), 1)]:
            for i in range(start, region.start - _SHORTEST + 1):
                self.places.setdefault(old[i : i + _SHORTEST], i)
            start = region.stop

    def steps(self, new: bytes, start: int, stop: int) -> Iterator[Step]:
        """Yield steps that make ``new[start:stop]``."""
        literal = position = start
        resumed = 0  # old offset minus new offset of the last copy
        while position < stop:
            offset = position + resumed
            length = self._equal(new, position, offset, stop)
            if length < min(_RESUMED, stop - position):
                offset = self.places.get(new[position : position + _SHORTEST], -1)
                length = self._equal(new, position, offset, stop)
                if length < _SHORTEST:
                    position += 1
                    continue
            yield Step(LITERAL, 0, position - literal)
            yield Step(COPY, offset, length)
            resumed = offset - position
            position += length
            literal = position
        yield Step(LITERAL, 0, stop - literal)

    def _equal(self, new: bytes, position: int, offset: int, stop: int) -> int:
        """Return how many bytes from ``offset`` on are those of ``new`` from ``position`` on."""
        if not 0 <= offset < len(self.old):
            return 0
        length, most = 0, min(stop - position, len(self.old) - offset)
        while length < most:
            size = min(256, most - length)
            a, b = position + length, offset + length
            if new[a : a + size] == self.old[b : b + size]:
                length += size
                continue
            while new[position + length] == self.old[offset + length]:
                length += 1
            break
        return length
