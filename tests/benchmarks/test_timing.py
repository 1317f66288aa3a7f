import pytest

from llmq.benchmarks.timing import take_turns, use_threads
from llmq.errors import UsageError


def test_tasks_take_turns_after_a_round_that_does_not_count():
    calls, told = [], []
    times = iter([100.0, 1.0, 5.0, 2.0])

    def timed():
        calls.append("timed")
        return next(times)

    timings = take_turns({"plain": lambda: calls.append("plain"), "timed": timed}, 3, lambda: told.append(1))
    assert calls == ["plain", "timed"] * 4
    assert len(told) == 8
    assert timings["timed"].runs == [1.0, 5.0, 2.0]
    assert timings["timed"].seconds == 2.0
    assert all(seconds >= 0 for seconds in timings["plain"].runs)


def test_energy_is_a_median_or_nothing():
    timing = take_turns({"a": lambda: None}, 2)["a"]
    assert len(timing.energy) == 2
    assert timing.joules is None or timing.joules >= 0


def test_too_many_threads():
    with pytest.raises(UsageError, match="threads must be 1 to"):
        use_threads(100_000)
