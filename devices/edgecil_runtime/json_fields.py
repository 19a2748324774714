"""Checks of the fields of an untrusted JSON object; each error names the field's place."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, TypeVar

from edgecil_runtime.errors import BundleError

# Control characters reach terminals, line separators break tables, surrogates break UTF-8, and
# characters that reverse the direction of writing make one label look like another.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_T = TypeVar("_T")


class Fields:
    """A JSON object whose fields are taken out through checks that know their place.

    A check takes a value and its place, and returns the value or raises ``BundleError``.
    """

    def __init__(self, data: Mapping[str, Any], place: str) -> None:
        self.data = data
        self.place = place

    def get(self, key: str, check: Callable[[Any, str], _T]) -> _T:
        """Return the field ``key``, which must be there and pass ``check``."""
        if key not in self.data:
            raise BundleError(f"{self.place}{key} is missing")
        return check(self.data[key], f"{self.place}{key}")

    def inner(self, key: str) -> Fields:
        """Return the fields of the object in the field ``key``."""
        return Fields(self.get(key, json_object), f"{self.place}{key}.")


def wrong_value(place: str, expected: str, got: Any) -> BundleError:
    """Return the error that names the place, what belongs there, and what is there."""
    text = repr(got) if isinstance(got, (str, int, float, type(None))) else type(got).__name__
    short = text if len(text) <= 60 else text[:57] + "..."
    return BundleError(f"{place}: expected {expected}, got {short}")


def json_object(value: Any, place: str) -> Dict[str, Any]:
    """Return ``value`` when it is an object."""
    if not isinstance(value, dict):
        raise wrong_value(place, "an object", value)
    return value


def boolean(value: Any, place: str) -> bool:
    """Return ``value`` when it is true or false."""
    if type(value) is not bool:
        raise wrong_value(place, "true or false", value)
    return value


def integer(low: int, high: int) -> Callable[[Any, str], int]:
    """Return the check for a whole number from ``low`` to ``high``."""

    def check(value: Any, place: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise wrong_value(place, f"a whole number in [{low}, {high}]", value)
        return value

    return check


def optional(check: Callable[[Any, str], _T]) -> Callable[[Any, str], Optional[_T]]:
    """Return the check that lets null pass as well."""
    return lambda value, place: None if value is None else check(value, place)


def printable_text(longest: int) -> Callable[[Any, str], str]:
    """Return the check for 1 to ``longest`` characters that every terminal can show."""

    def check(value: Any, place: str) -> str:
        good = isinstance(value, str) and 1 <= len(value) <= longest
        if not good or _UNPRINTABLE.search(value):
            raise wrong_value(place, f"1 to {longest} printable characters", value)
        return str(value)

    return check


def matching(pattern: re.Pattern[str], what: str) -> Callable[[Any, str], str]:
    """Return the check for text that ``pattern`` matches; ``what`` describes it."""

    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or not pattern.match(value):
            raise wrong_value(place, what, value)
        return value

    return check


def one_of(allowed: Tuple[str, ...]) -> Callable[[Any, str], str]:
    """Return the check for one of some words."""

    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise wrong_value(place, "one of " + ", ".join(allowed), value)
        return value

    return check


def list_items(value: Any, place: str, most: int) -> List[Any]:
    """Return ``value`` when it is a list of 1 to ``most`` items."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise wrong_value(place, f"a list of 1 to {most} items", value)
    return value
