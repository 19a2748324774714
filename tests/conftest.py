"""One torch thread per test process, before torch is imported by anybody.

Two processes that each take all cores are many times slower.
"""

import os
import resource
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Undo what the device command does to its own process, which here is that of all tests."""
    limits = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)}
    alarm = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, alarm)
    for kind, limit in limits.items():
        resource.setrlimit(kind, limit)


@pytest.fixture(scope="module")
def small_generators():
    """Let generators of images be a thousandth of what real images need."""
    from edgecil.synthesis.generator import Generator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator.__init__, "__defaults__", (16, (8, 8, 8)))
        yield
