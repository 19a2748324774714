"""JSON from an untrusted file: bounded in memory and depth, and without JSON's ambiguities.

Python's decoder accepts keys that occur twice, NaN, numbers that overflow, and nesting that
later exhausts the stack of whoever walks the result.
"""

from __future__ import annotations

import json
import math
from typing import Any, Dict, Iterator, List, Tuple

# A value takes up to 250 bytes once decoded, so this is some 100 MB at the very worst. A
# manifest with 100,000 labels has 300,000 of the characters that begin or separate values.
MAX_VALUES = 400_000
MAX_DEPTH = 32
MAX_DIGITS = 500  # reading an integer takes time that grows with the square of its digits


def decode_json(text: bytes) -> Any:
    """Return the value that UTF-8 JSON ``text`` stands for; every number in it is finite.

    Raises:
        ValueError: not JSON, a key twice, no number, too many values or too deep; one line.
    """
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # JSON, UTF-8, and numbers of thousands of digits
        raise ValueError(" ".join(str(error).split())[:200]) from None
    _check_depth(value)
    return value


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object names a key twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
