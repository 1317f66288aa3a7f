import json
import os
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from llmq.checkpoint.header import parse_header, read_header
from llmq.errors import InputError, LlmqError, UnsupportedError


def parse(content: bytes):
    length = int.from_bytes(content[:8], "little")
    return parse_header(content[8 : 8 + length], file="f", file_size=len(content))


def read(path, content: bytes):
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, path.name)
    finally:
        os.close(fd)


def entry(dtype="U8", shape=(2,), offsets=(0, 2), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_good_headers(make_raw):
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", (2, 2), (0, 8)),
        "zero": entry("F32", (0, 3), (8, 8)),
        "scalar": entry("I64", (), (8, 16)),
        "a\n\x1b[31m": entry("F8_E4M3", (1,), (16, 17)),
    }
    found = parse(make_raw(header, bytes(17)))
    assert [info.name for info in found.tensors] == ["b", "zero", "scalar", "a\n\x1b[31m"]
    assert found.tensors[0].offset == found.data_start
    assert [info.nbytes for info in found.tensors] == [8, 0, 8, 1]
    assert found.metadata == {"format": "pt"}
    assert len(found.digest) == 64
    assert parse(make_raw(b"{}")).tensors == ()


BAD = {
    "not an object": b"[]",
    "empty": b"",
    "leading space": b" {}",
    "duplicate key": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    "duplicate field": b'{"a":{"dtype":"U8","dtype":"I8","shape":[2],"data_offsets":[0,2]}}',
    "metadata not an object": {"__metadata__": [], "a": entry()},
    "metadata not strings": {"__metadata__": {"a": 1}, "a": entry()},
    "metadata null": {"__metadata__": None, "a": entry()},
    "entry not an object": {"a": ["U8", [2], [0, 2]]},
    "missing field": {"a": {"dtype": "U8", "shape": [2]}},
    "unknown field": {"a": entry(more=1)},
    "dtype a list": {"a": entry(["U8"])},
    "unknown dtype": {"a": entry("Q4")},
    "shape a number": {"a": {"dtype": "U8", "shape": 2, "data_offsets": [0, 2]}},
    "negative shape": {"a": entry(shape=(-1, -2))},
    "float shape": {"a": entry(shape=(2.0,))},
    "bool shape": {"a": entry("U8", (True, 2))},
    "minus zero": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}',
    "rank": {"a": entry(shape=(2, *[1] * 32))},
    "product overflow": {"a": entry(shape=(2**40, 2**40))},
    "product overflow before zero": {"a": entry(shape=(2**40, 2**40, 0), offsets=(0, 0)), "b": entry()},
    "huge number": {"a": entry(shape=(0, 2**64), offsets=(0, 0)), "b": entry()},
    "offsets falling": {"a": entry(offsets=(2, 0))},
    "offsets negative": {"a": entry(offsets=(-2, 0))},
    "offsets float": {"a": entry(offsets=(0, 2.0))},
    "offsets bool": {"a": entry(shape=(1,), offsets=(False, True)), "b": entry(shape=(1,), offsets=(1, 2))},
    "three offsets": {"a": entry(offsets=(0, 1, 2))},
    "size mismatch": {"a": entry("U16", (2,), (0, 2))},
    "hole at start": {"a": entry(shape=(1,), offsets=(1, 2))},
    "hole": {"a": entry(shape=(0,), offsets=(0, 0)), "b": entry(shape=(1,), offsets=(1, 2))},
    "overlap": {"a": entry(), "b": entry(shape=(1,), offsets=(1, 2))},
    "same region": {"a": entry(), "b": entry()},
    "past the end": {"a": entry(shape=(3,), offsets=(0, 3))},
    "trailing bytes": {"a": entry(shape=(1,), offsets=(0, 1))},
    "NUL": {"a\0": entry()},
    "long name": {"a" * 5000: entry()},
    "surrogate": b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    "deep": b'{"a":' + b"[" * 50_000,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers(name, make_raw):
    with pytest.raises(InputError, match=r"^f: "):
        parse(make_raw(BAD[name], b"\0\0"))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_dtypes_narrower_than_a_byte(dtype, make_raw):
    with pytest.raises(UnsupportedError, match=f"dtype {dtype}"):
        parse(make_raw({"a": entry(dtype, (4,), (0, 2))}, b"\0\0"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty file"),
        (b"\1\2\3", "only 3 bytes"),
        (struct.pack("<Q", 0), "not a JSON object"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header would be too long"),
        (struct.pack("<Q", 100_000_001) + b"{}", "header would be too long"),
        (struct.pack("<Q", 5000) + b'{"a"', "truncated: 0.01 of 5.01 kB of its header alone present"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Too many requests</html>", "web page"),
        (b"PK\x03\x04" + bytes(60), "zip"),
        (b"\x1f\x8b\x08" + bytes(60), "gzip"),
        (b"GGUF\x03" + bytes(60), "GGUF"),
        (b'{"error": "not found"}', "it is JSON"),
        (bytes(600), "starts with zeros"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, what):
    with pytest.raises(InputError) as error:
        read(tmp_path / "x.safetensors", content)
    assert what in str(error.value)
    assert str(error.value).startswith("x.safetensors: ")
    assert "Traceback" not in str(error.value)


def test_header_taking_too_much_of_a_large_file(tmp_path, make_raw):
    names = {f"{'n' * 3000}{number}": entry(shape=(0,), offsets=(0, 0)) for number in range(6000)}
    with pytest.raises(InputError, match="more than a tenth"):
        read(tmp_path / "x", make_raw(names))


def test_every_cut_is_noticed(tmp_path, pico):
    folder, _ = pico
    content = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    cuts = [*range(0, header, 7), *range(header, len(content), len(content) // 64)]
    for cut in cuts:
        with pytest.raises(InputError) as error:
            read(tmp_path / "cut", content[:cut])
        assert cut < 8 or "truncated" in str(error.value)
    with pytest.raises(InputError, match=r"truncated: 20\.00 of \d\d\.\d\d kB present") as error:
        read(tmp_path / "cut", content[:20000])
    assert error.value.hint == "download it again"


def test_file_of_the_library(pico):
    folder, tensors = pico
    found = parse((folder / "model.safetensors").read_bytes())
    assert {info.name: info.shape for info in found.tensors} == {name: t.shape for name, t in tensors.items()}


VALID = json.dumps(
    {
        "__metadata__": {"a": "b"},
        "x": entry("F16", (2, 3), (0, 12)),
        "y": entry("I64", (), (12, 20)),
        "z": entry("BOOL", (0, 7), (20, 20)),
    }
).encode()
FRAGMENTS = [b"", b"-", b"0", b"1", b"9", b".", b"e3", b"[", b"]", b"{", b"}", b'"', b",", b":", b" ", b"\\", b"\0"]
FRAGMENTS += [b"\xff", b"null", b"true", b'"x"', b'"y":', b"12", b"20", b"\\u0078", b"\\ud800", b"18446744073709551616"]
FRAGMENTS += [b'"F16"', b'"F4"', b'"U8"', b'"shape"', b"\n", b"\t", b"\x0b", "é".encode(), b"1e1", b"-0", b"NaN"]


@st.composite
def mutants(draw):
    text = bytearray(VALID)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 4)))
        text[start:end] = draw(st.sampled_from(FRAGMENTS))
    return bytes(text)


@settings(max_examples=1500, deadline=None)
@given(mutants(), st.integers(-1, 1))
@example(VALID, 0)
def test_nothing_is_accepted_that_the_library_refuses(text, extra):
    content = struct.pack("<Q", len(text)) + text + bytes(20 + extra)
    try:
        ours = parse(content)
    except LlmqError:
        return
    theirs = dict(deserialize(content))  # raises SafetensorError where it refuses
    assert {info.name: list(info.shape) for info in ours.tensors} == {n: t["shape"] for n, t in theirs.items()}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_raise_only_our_errors(data):
    try:
        parse_header(data, file="f", file_size=8 + len(data))
    except LlmqError:
        return
    deserialize(struct.pack("<Q", len(data)) + data)


def test_the_library_refuses_what_the_table_lists(make_raw):
    """So that the table stays honest about which cases are ours alone."""
    ours_alone = {
        "leading space", "duplicate key", "metadata null", "entry not an object", "unknown field", "rank", "NUL",
        "long name", "huge number",
    }  # fmt: skip
    for name, header in BAD.items():
        content = make_raw(header, b"\0\0")
        try:
            deserialize(content)
        except SafetensorError:
            continue
        assert name in ours_alone
