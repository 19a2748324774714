"""Random streams are a function of their name: the same everywhere, different for other names."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgecil.data.streams import Counter, stream, stream_seed, streams

ROOT = Path(__file__).parents[2]


def draws(*counters: Counter) -> list[int]:
    return torch.randint(2**31, (4,), generator=stream(7, *counters)).tolist()


def test_the_seed_is_the_published_hash_of_the_name() -> None:
    # An interrupted run stores names, not numbers: the encoding must not change.
    digest = hashlib.blake2b(b"i1:7s5:traini1:3", digest_size=8).digest()
    assert stream_seed(7, "train", 3) == int.from_bytes(digest, "little")


def test_same_name_same_stream_in_another_process() -> None:
    code = (
        "import torch; from edgecil.data.streams import stream;"
        "torch.manual_seed(99); torch.rand(5);"
        "print(torch.randint(2**31, (4,), generator=stream(7, 'é', 3)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        # Python's own hash() would differ between the two.
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": f"{ROOT}:{ROOT / 'devices'}"},
    )
    assert done.stdout.strip() == str(draws("é", 3))


@pytest.mark.parametrize(
    "names",
    [
        [("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", "")],
        [(1,), ("1",), (1, 0), (10,), (-1,)],
        [("a", 1), (1, "a")],
        [(2**70,), (2**6,)],
    ],
)
def test_other_names_other_streams(names: list[tuple[Counter, ...]]) -> None:
    for one, two in itertools.combinations(names, 2):
        assert draws(*one) != draws(*two), (one, two)
    assert stream_seed(7, *names[0]) != stream_seed(8, *names[0])


def test_streams_continue_a_prefix() -> None:
    maker = streams(7, "phase", 2)
    assert maker(5).initial_seed() == stream(7, "phase", 2, 5).initial_seed()
    assert maker("x", 1).initial_seed() == stream(7, "phase", 2, "x", 1).initial_seed()


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    torch.rand(2, generator=stream(1, "a"))
    assert torch.equal(torch.rand(4), expected)
