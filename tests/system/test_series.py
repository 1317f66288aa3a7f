import doctest

from llmq.system import series
from llmq.system.series import Series


def test_in_examples():
    assert doctest.testmod(series).attempted >= 4
    assert doctest.testmod(series).failed == 0


def test_bounded_in_order_and_with_the_peak():
    values = [(place * 7919) % 1009 for place in range(5000)]
    course = Series(64, height=lambda sample: sample[1])
    for sample in enumerate(values):
        course.add(sample)
    course.finish()
    assert 32 <= len(course.samples) <= 64
    assert [place for place, _ in course.samples] == sorted(place for place, _ in course.samples)
    assert max(value for _, value in course.samples) == max(values)
