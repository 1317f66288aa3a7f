"""Headers of safetensors files that lie, and files that are none."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tortures.attacks.case import MODEL, Case, append, replace_header, safetensors, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["cases", "handmade", "header_end"]

_CAP: Final = 100_000_000
_NAME: Final = "model.norm.weight"


def cases() -> Iterator[Case]:
    """All of them."""
    yield from (Case(f"file: {name}", _write(content), words=(MODEL, *words)) for name, content, words in _files())
    yield from (Case(f"header: {name}", _write(content), words=(MODEL, *words)) for name, content, words in handmade())
    yield from (Case(f"header: {name}", replace_header(edit), words=(MODEL, *words)) for name, edit, words in _edits())
    yield from _names()
    yield from _large()
    yield from _dtypes()


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / MODEL).write_bytes(content)


def _entry(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def _zip(inside: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", inside)
    return made.getvalue()


def _files() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Content that is no safetensors file at all, with words that say what it is."""
    yield "empty", b"", ("empty",)
    for count in range(1, 8):
        yield f"{count} bytes", b"\x01" * count, (f"only {count} bytes",)
    yield "length alone", struct.pack("<Q", 2), ("truncated",)
    yield "length of nothing", struct.pack("<Q", 0), ("not a JSON object",)
    for name, length in (("above the cap", _CAP + 1), ("2**63", 1 << 63), ("2**64 - 1", (1 << 64) - 1)):
        yield f"header length {name}", safetensors({}, length=length), ("header",)
    yield "header longer than the file", safetensors({}, length=5000), ("truncated",)
    yield "length in big-endian", struct.pack(">Q", 2) + b"{}", ()
    yield "Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", ("Git LFS",)
    yield "web page", b"<!DOCTYPE html><html><body>429 Too Many Requests</body></html>", ("web page",)
    yield "web page behind blanks", b"\n\n  <html><body>Sign in</body></html>" + b" " * 500, ("web page",)
    yield "XML", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ("web page",)
    yield "JSON", b'{"error": "Repository not found"}', ("JSON",)
    yield "gzip", gzip.compress(safetensors({}, b"")), ("gzip",)
    yield "zip", _zip(b"\x80\x02."), ("zip",)
    yield "pickle", b"\x80\x02cos\nsystem\n(S'touch /tmp/never'\ntR." + bytes(600), ("pickle",)
    yield "NumPy array", b"\x93NUMPY\x01\x00" + bytes(600), ("NumPy",)
    yield "GGUF", b"GGUF\x03\x00\x00\x00" + bytes(600), ("GGUF",)
    yield "zeros", bytes(100_000), ("zeros",)
    yield "ones", b"\xff" * 100_000, ()
    yield "text", b"hello " * 500, ()
    polyglot = safetensors({_NAME: _entry()}, b"\0\0")
    yield "zip behind a safetensors file", polyglot + _zip(b"x"), ("bytes behind the last tensor",)


def handmade() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Files whose headers are no JSON, or none that two parsers read alike; with words that say so."""
    one = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
    texts = {
        "not an object": ("[]", "JSON object"),
        "a string": ('"x"', "JSON object"),
        "leading blank": (" {}", "JSON object"),
        "byte-order mark": ("\ufeff{}", "JSON object"),
        "cut in a string": ('{"a', "not valid JSON"),
        "two objects": ("{}{}", "not valid JSON"),
        "a comma too many": (f'{{"a":{one},}}', "not valid JSON"),
        "comments": ("{/**/}", "not valid JSON"),
        "duplicate tensor": (f'{{"a":{one},"a":{one}}}', "duplicate key 'a'"),
        "duplicate tensor in other letters": (f'{{"a":{one},"\\u0061":{one}}}', "duplicate key 'a'"),
        "duplicate metadata": (f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{one}}}', "duplicate key"),
        "duplicate field": ('{"a":{"dtype":"U8","dtype":"I8","shape":[2],"data_offsets":[0,2]}}', "duplicate key"),
        "NaN": ('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,2]}}', "NaN"),
        "infinity": ('{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,2]}}', "out of range"),
        "an integer of 5000 digits": (f'{{"a":{{"dtype":"U8","shape":[{"9" * 5000}]}}}}', "out of range"),
        "minus zero": ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', "data_offsets"),
        "half a surrogate pair": (f'{{"\\ud800":{one}}}', "surrogate"),
        "lists 100,000 deep": ('{"a":' + "[" * 100_000, "nested too deeply"),
        "objects 100,000 deep": ('{"a":' * 100_000, "nested too deeply"),
        "lists 500 deep": ('{"a":' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        "lists 50 deep": ('{"a":' + "[" * 50 + "]" * 50 + "}", "a: "),
        "control character in a name": ('{"a\x01":1}', "not valid JSON"),
    }
    for name, (text, *words) in texts.items():
        yield name, safetensors(text.encode(), b"\0\0"), tuple(words)
    yield "not UTF-8", safetensors(b'{"\xff":1}', b"\0\0"), ("not UTF-8",)
    yield "UTF-16", safetensors('{"a":1}'.encode("utf-16"), b"\0\0"), ()
    yield "zeros in front of the end", safetensors(b"{}\0\0"), ("not valid JSON",)


def _edits() -> Iterator[tuple[str, Callable[[dict[str, Any]], Any], tuple[str, ...]]]:
    """Sound headers with one field that is wrong; the tensor is named."""
    wrong: dict[str, dict[str, Any]] = {
        "dtype": {
            "null": None, "a number": 7, "a list": ["BF16"], "lower case": "bf16", "unknown": "Q4_K",
            "long": "X" * 5000,
            "empty": "", "with an escape sequence": "\x1b[31mBF16",
        },
        "shape": {
            "null": None, "a number": 64, "a string": "64", "negative": [-64], "twice negative": [-8, -8],
            "a float": [64.0], "a boolean": [True, 64], "nested": [[64]], "too small": [63], "too large": [65],
            "empty": [], "product of 2**64": [1 << 32, 1 << 32], "product wraps to 64": [(1 << 58) + 1, 64],
            "number of 2**64": [1 << 64], "zero times 2**70": [0, 1 << 70], "33 dimensions": [64, *[1] * 32],
            "100,000 dimensions": [1] * 100_000, "400 digits": [10**399],
        },
        "data_offsets": {
            "null": None, "one": [0], "three": [0, 1, 2], "negative": [-128, 0], "floats": [0.0, 128.0],
            "strings": ["0", "128"], "falling": [128, 0], "past the end": [1 << 40, (1 << 40) + 128],
            "2**64": [1 << 64, (1 << 64) + 128], "booleans": [False, True],
        },
    }  # fmt: skip
    for field, values in wrong.items():
        for name, value in values.items():
            yield f"{field} {name}", _with(**{field: value}), (_NAME,)
        yield f"no {field}", _without(field), (_NAME,)
    yield "another field", _with(checksum=1), (_NAME,)
    yield "tensor is null", lambda header: header | {_NAME: None}, (_NAME,)
    yield "tensor is a list", lambda header: header | {_NAME: ["BF16", [64], [0, 128]]}, (_NAME,)
    yield "metadata is a list", lambda header: header | {"__metadata__": []}, ("__metadata__",)
    yield "metadata holds a number", lambda header: header | {"__metadata__": {"a": 1}}, ("__metadata__",)
    yield "metadata is null", lambda header: header | {"__metadata__": None}, ("__metadata__",)
    yield "metadata is a tensor", lambda header: header | {"__metadata__": _entry()}, ("__metadata__",)
    yield "data_offsets of another tensor", _with(data_offsets=[0, 128]), ("overlaps",)
    yield "hole", _shifted(2), ("hole", "tensor")
    yield "overlap", _shifted(-2), ()
    yield "tensor left out", _dropped, ()


def _with(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header | {_NAME: header[_NAME] | fields}


def _without(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header | {_NAME: {key: value for key, value in header[_NAME].items() if key != field}}


def _shifted(by: int) -> Callable[[dict[str, Any]], Any]:
    def edit(header: dict[str, Any]) -> dict[str, Any]:
        last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
        start, end = header[last]["data_offsets"]
        found = header | {last: header[last] | {"data_offsets": [start + by, end + by]}}
        return found | {"tensor": found.pop(last)}

    return edit


def _dropped(header: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in header.items() if name != "model.layers.0.mlp.up_proj.weight"}


def _names() -> Iterator[Case]:
    """Names of tensors that steer a terminal, or go on for ever."""
    refused = {"NUL": "a\0b", "4,097 bytes": "a" * 4097, "10 MB": "a" * 10_000_000, "4,098 bytes": "é" * 2049}
    for name, text in refused.items():
        yield Case(f"name: {name}", append({text: ("U8", [2], b"\0\0")}), words=(MODEL, "name"))
    odd = {
        "newline": "a\nerror: all is well", "escape sequence": "\x1b[2J\x1b]0;owned\x07x",
        "right to left": "\u202egpj.x",
        "zero width": "a\u200bb", "carriage return": "x\rerror: none", "path": "../../etc/passwd", "empty": "",
        "DEL and C1": "a\x7f\x9b31mb", "emoji": "\U0001f642", "tab": "a\tb", "4,096 bytes": "a" * 4096,
        "percent": "%s%n%(x)s", "braces": "{0.__class__}", "markup": "[bold red]x[/]",
    }  # fmt: skip
    for name, text in odd.items():
        # What no architecture has is copied, listed with its letters escaped, and not run.
        codes = {"quantize": 0, "inspect": 0, "generate": 3}
        yield Case(f"odd name: {name}", append({text: ("BF16", [2], bytes(4))}), codes)
    yield Case(
        "odd name: in an error", append({"\x1b[31mred\n": ("F8_E4M3", [2, 2], bytes(4))}),
        {"quantize": 4, "inspect": 0, "generate": 3}, (MODEL, r"\x1b[31mred\n"),
    )  # fmt: skip


def _sparse(header: Callable[[], dict[str, Any]], size: int) -> Callable[[Path], object]:
    """A file whose data is a hole."""

    def change(folder: Path) -> None:
        text = json.dumps(header(), separators=(",", ":")).encode()
        (folder / MODEL).write_bytes(safetensors(text))
        os.truncate(folder / MODEL, 8 + len(text) + size)

    return change


def _many(count: int, *, name: str = "t{}", size: int = 0) -> dict[str, Any]:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    found: dict[str, Any] = {name.format(number): empty for number in range(count)}
    return found | ({"z": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}} if size else {})


def _large() -> Iterator[Case]:
    """More than anybody needs: refused, or done in time."""
    gib = 1 << 30
    yield Case(
        "large: a tenth of a small file", _sparse(partial(_many, 300_000), 0), words=(MODEL, "more than a tenth")
    )
    bounded = dict.fromkeys(("quantize", "inspect", "generate"), -1)
    yield Case("large: 100,000 tensors", _sparse(partial(_many, 100_000), 0), bounded)
    yield Case(
        "large: 300,000 tensors", _sparse(partial(_many, 300_000, size=gib), gib), words=(MODEL, "too much JSON")
    )
    yield Case(
        "large: 1,500,000 tensors", _sparse(partial(_many, 1_500_000, size=gib), gib), words=(MODEL, "too much JSON")
    )
    lists = _holes(b'{"a":[', b"[],", b"[]]}", gib)
    yield Case("large: 30 million empty lists", lists, words=(MODEL, "too much JSON"))
    objects = _holes(b'{"__metadata__":{"a":[', b"{},", b"{}]}}", gib)
    yield Case("large: 30 million empty objects", objects, words=(MODEL, "too much JSON"))
    for text in ("layers.0._ln" * 340, "a.vision" * 500, "layers.0.experts." * 240, "_norm" * 800):
        header = partial(_many, 20_000, name=f"{text[:4080]}{{}}.weight", size=gib)
        yield Case(f"large: 20,000 names like {text[:12]!r}", _sparse(header, gib), bounded)


def _holes(start: bytes, middle: bytes, end: bytes, size: int) -> Callable[[Path], object]:
    """A header that repeats itself, in front of a hole."""

    def change(folder: Path) -> None:
        text = start + middle * 30_000_000 + end
        (folder / MODEL).write_bytes(safetensors(text))
        os.truncate(folder / MODEL, 8 + len(text) + size)

    return change


def _dtypes() -> Iterator[Case]:
    """Numbers that mean nothing by themselves, or nothing to llmq."""
    weight = "model.layers.0.mlp.up_proj.weight"
    unscaled = {"quantize": 4, "inspect": 0, "generate": 4}
    for dtype in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"):
        change = append({weight: (dtype, [128, 64], bytes(8192))})
        yield Case(f"dtype: {dtype} without a scale", change, unscaled, (MODEL, weight, dtype), "")
    for dtype, bits in (("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)):
        change = append({weight: (dtype, [128, 64], bytes(8192 * bits // 8))})
        codes = dict.fromkeys(("quantize", "inspect", "generate"), 4)
        yield Case(f"dtype: {dtype}", change, codes, (MODEL, weight, dtype))
    copied = {"quantize": 0, "inspect": 0, "generate": 4}
    sizes = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8, "C64": 8}
    for dtype, size in sizes.items():
        change = append({weight: (dtype, [128, 64], bytes(8192 * size))})
        yield Case(f"dtype: {dtype} is copied", change, copied)
    wide = append({weight: ("F64", [128, 64], bytes(8192 * 8))})
    yield Case("dtype: F64 is cast", wide, dict.fromkeys(("quantize", "inspect", "generate"), 0))
    shapes = {"no rows": [0, 64], "no columns": [64, 0], "scalar": [], "vector": [8192], "cube": [2, 64, 64]}
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        odd = append({weight: ("BF16", shape, bytes(2 * count))})
        yield Case(f"shape: {name}", odd, {"quantize": 0, "inspect": 0, "generate": 3})
    bad = append({f"{weight}_scale": ("F32", [7, 3], bytes(84)), weight: ("F8_E4M3", [128, 64], bytes(8192))})
    yield Case(
        "dtype: F8 with a scale that does not fit", bad, {"quantize": 3, "inspect": 0}, (MODEL, f"{weight}_scale")
    )


def header_end(content: bytes) -> int:
    """Where the data begins."""
    return len(content) - len(split(content)[1])
