"""A file with a checksum of itself: every flipped bit is noticed."""

import json

import pytest

from llmq.checkpoint.sealed import check_seal, seal
from llmq.errors import InputError

VALUE = {"schema": 1, "names": ["a", "ä\n"], "sizes": {"x": 1.5, "y": None}}


def test_what_is_sealed_is_json_with_its_checksum_last():
    data = seal(VALUE)
    check_seal(data, "file")
    found = json.loads(data)
    assert list(found)[-1] == "sha256"
    assert {key: value for key, value in found.items() if key != "sha256"} == VALUE


def test_every_flipped_bit_and_every_cut_is_noticed():
    data = seal(VALUE)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(InputError, match=r"^file: damaged"):
                check_seal(bytes(flipped), "file")
        with pytest.raises(InputError, match="damaged"):
            check_seal(data[:place], "file")
    with pytest.raises(InputError, match="damaged"):
        check_seal(data + b"\n", "file")
