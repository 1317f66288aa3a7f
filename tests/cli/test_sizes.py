import doctest

import pytest

from llmq.cli import sizes
from llmq.cli.sizes import format_size, parse_size


def test_the_examples_are_right():
    assert doctest.testmod(sizes).failed == 0


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("4096B", 4096),
        ("5GB", 5_000_000_000),
        ("5g", 5_000_000_000),
        ("4GiB", 4 << 30),
        ("4Gi", 4 << 30),
        ("500M", 500_000_000),
        (" 2 TiB ", 2 << 40),
        ("0.5k", 500),
        (".5KiB", 512),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "0", "0GiB", "-1", "1.2.3", "5XB", "lots", "1e9", "0.1", "5 i", "infinity", "\u0665GB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"not a size|less than a byte"):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"), (99_960, "100 kB"), (999_600, "1.00 MB")],
)
def test_sizes_are_written_with_three_digits(nbytes, text):
    assert format_size(nbytes) == text
