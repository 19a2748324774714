"""What a run took, by the wall and by the processor."""

from __future__ import annotations

import threading
import time

import pytest
import toys

from edgecil.engine import state
from edgecil.engine.clock import Clock
from edgecil.engine.increment import train
from edgecil.errors import Interrupted


def test_waiting_costs_no_processor_time_and_work_of_all_threads_does():
    clock = Clock(10.0, 20.0)
    clock.start()
    time.sleep(0.2)
    clock.count()
    assert clock.seconds >= 10.2
    assert 20.0 <= clock.cpu_seconds < 20.15
    busy = threading.Thread(target=lambda: sum(range(30_000_000)))
    busy.start()
    busy.join()
    clock.count()
    assert clock.cpu_seconds > 20.02


def test_nothing_is_counted_before_the_start():
    clock = Clock()
    time.sleep(0.05)
    clock.start()
    clock.count()
    assert clock.seconds < 0.05


def test_a_resumed_run_counts_on_from_where_it_was(tmp_path):
    given, new = toys.task("finetune", (2,)), toys.image_set(range(2))
    session = toys.session(folder=tmp_path, should_stop=lambda: True, poll_seconds=0.0)
    with pytest.raises(Interrupted):
        train(given, toys.sets_of(given, new), session)
    saved = state.load(tmp_path)
    assert saved.seconds > 0
    assert saved.cpu_seconds > 0
    session = toys.session(folder=tmp_path)
    outcome = train(given, toys.sets_of(given, new), session, saved=saved)
    assert outcome.clock.seconds > saved.seconds
    assert outcome.clock.cpu_seconds > saved.cpu_seconds
