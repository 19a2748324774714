"""Percentiles of times: only those that enough measurements tell."""

import numpy as np
import pytest

from edgecil_runtime import commands
from edgecil_runtime.evaluation import percentiles


@pytest.mark.parametrize(
    ("count", "known"), [(0, ()), (1, (50,)), (19, (50,)), (20, (50, 95)), (99, (50, 95))]
)
def test_too_few_measurements_tell_no_high_percentile(count, known):
    found = percentiles(np.arange(count, dtype=np.float32))
    assert found == {
        f"p{share}": pytest.approx(share / 100 * (count - 1)) if share in known else None
        for share in (50, 95, 99)
    }


def test_percentiles_of_enough_measurements():
    times = np.random.default_rng(0).permutation(101).astype(np.float32)
    assert percentiles(times) == {"p50": 50, "p95": 95, "p99": 99}
    # With as few as there may be, some measurement lies above each.
    for least, name in ((20, "p95"), (100, "p99")):
        times = np.arange(least, dtype=np.float32)
        assert times[-2] < percentiles(times)[name] < times[-1]


def test_the_table_shows_those_that_are_known(colour, toy, tmp_path):
    from edgecil_runtime import Classifier

    model = Classifier(colour)
    for each, shown in ((1, ()), (7, ("p95",)), (34, ("p95", "p99"))):
        folder = toy.colour_folder(tmp_path / str(each), each=each)
        result = model.evaluate(folder).to_json()
        assert [name for name, value in result["latency_ms"].items() if value] == ["p50", *shown]
        context = {"bundle": "toy", "memory_limit_bytes": None}
        line = commands.show_evaluate({**result, **context}).splitlines()[5]
        assert line.startswith("latency ") and line.split()[3::2] == list(shown)


def test_means_of_batches_are_not_the_slowest_images():
    pytest.importorskip("torch")
    from edgecil.evaluation import Evaluation

    def answer(*milliseconds):
        found = Evaluation(("a", "b"), (2,), np.eye(2, dtype=np.int64), 1.0, milliseconds)
        return found.to_json()["latency_ms"]

    assert answer(2.0) == {"p50": 2.0, "p95": None, "p99": None}
    assert answer(*map(float, range(201))) == {"p50": 100.0, "p95": None, "p99": None}
    assert answer() == {"p50": None, "p95": None, "p99": None}
