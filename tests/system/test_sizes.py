import doctest

from llmq.system import sizes


def test_the_examples_are_right():
    assert doctest.testmod(sizes).attempted == 1
    assert doctest.testmod(sizes).failed == 0
