"""Packed models whose header or configuration lies, and manifests, recipes and certificates that do."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tortures.attacks.case import MODEL, Case, append, read_json, replace_header, split, write_json
from tortures.attacks.configs import CONFIG, malformed, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["EVIL", "cases"]

_MODULE: Final = "model.layers.0.mlp.up_proj"
_ROWS: Final = 128
_COLUMNS: Final = 64
_GROUPS: Final = 2
_RUN: Final = {"generate": 3}
EVIL: Final = (
    "re:(a+)+$", "re:^(([a-z])+.)+[A-Z]([a-z])+$", "re:(.*)*(.*)*(.*)*x$", "re:" + ".*" * 30 + "x",
    "re:(?:m|mo|mod|.)+!",
    r"re:(.+\.)+\d+\.(.+\.)+zzz", "re:((a{1,1000}){1,1000}){1,1000}b", "re:(?:.?){500}.{500}y", "re:(?=(.+)+!)x",
)  # fmt: skip
"""Expressions that backtrack for ever, some of them at any name."""


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _tensors()
    yield from _sections()
    yield from _regexes()
    yield from _manifests()
    yield from _certificates()
    yield from _recipes()


def _part(suffix: str, dtype: str, shape: list[int], content: bytes) -> Callable[[Path], object]:
    return append({f"{_MODULE}.{suffix}": (dtype, shape, content)})


def _gone(suffix: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        header, data = split((folder / MODEL).read_bytes())
        del header[f"{_MODULE}.{suffix}"]
        kept = {
            name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        (folder / MODEL).write_bytes((2).to_bytes(8, "little") + b"{}")
        append(kept)(folder)

    return change


def _tensors() -> Iterator[Case]:
    words = (MODEL, _MODULE)
    for suffix in ("weight_scale", "weight_shape", "weight_packed"):
        yield Case(f"packed: no {suffix}", _gone(suffix), _RUN, (_MODULE,), start="packed")
    yield Case("packed: no weight_zero_point", _gone("weight_zero_point"), _RUN, words, start="asymmetric")
    shapes: dict[str, list[int]] = {
        "zero": [0, 0], "negative": [-128, -64], "swapped": [_COLUMNS, _ROWS], "huge": [2**62, 2**62], "one row": [1,
        64],
        "more rows": [_ROWS + 1, _COLUMNS], "more columns": [_ROWS, _COLUMNS + 8], "fewer columns": [_ROWS, 32],
        "least": [-(2**63), -(2**63)],
    }  # fmt: skip
    for what, shape in shapes.items():
        content = np.array(shape, np.int64).tobytes()
        yield Case(
            f"packed: weight_shape {what}", _part("weight_shape", "I64", [2], content), _RUN, words, start="packed"
        )
    kinds = {
        "of three": ("I64", [3], 24), "of one": ("I64", [1], 8), "a matrix": ("I64", [1, 2], 16), "float": ("F64", [2],
        16),
        "empty": ("I64", [0], 0), "boolean": ("BOOL", [2], 2), "of F8": ("F8_E4M3", [2], 2),
    }  # fmt: skip
    for what, (dtype, shape, size) in kinds.items():
        yield Case(
            f"packed: weight_shape {what}",
            _part("weight_shape", dtype, shape, b"\x01" * size),
            _RUN,
            words,
            start="packed",
        )
    codes = {
        "a row less": ("I32", [_ROWS - 1, 8]), "a row more": ("I32", [_ROWS + 1, 8]), "a word less": ("I32", [_ROWS,
        7]),
        "a word more": ("I32", [_ROWS, 9]), "flat": ("I32", [_ROWS * 8]), "no rows": ("I32", [0, 8]), "F32": ("F32",
        [_ROWS, 8]),
        "U8": ("U8", [_ROWS, 32]), "I64": ("I64", [_ROWS, 4]), "a cube": ("I32", [2, 64, 8]), "F8_E4M3": ("F8_E4M3",
        [_ROWS, 32]),
    }  # fmt: skip
    for what, (dtype, shape) in codes.items():
        yield Case(f"packed: weight_packed {what}", _zeros("weight_packed", dtype, shape), _RUN, words, start="packed")
    scales = {
        "a row less": ("BF16", [_ROWS - 1, _GROUPS]), "a group less": ("BF16", [_ROWS, 1]), "a group more": ("BF16",
        [_ROWS, 3]),
        "flat": ("BF16", [_ROWS * _GROUPS]), "I32": ("I32", [_ROWS, _GROUPS]), "F64": ("F64", [_ROWS, _GROUPS]),
        "F8_E4M3": ("F8_E4M3", [_ROWS, _GROUPS]), "BOOL": ("BOOL", [_ROWS, _GROUPS]), "empty": ("BF16", [0, 0]),
        "C64": ("C64", [_ROWS, _GROUPS]),
    }  # fmt: skip
    for what, (dtype, shape) in scales.items():
        yield Case(f"packed: weight_scale {what}", _zeros("weight_scale", dtype, shape), _RUN, words, start="packed")
    points = {
        "a row less": ("I32", [15, _GROUPS]), "a group more": ("I32", [16, 3]), "F32": ("F32", [16, _GROUPS]),
        "flat": ("I32", [32]), "I8 of another shape": ("I8", [16, _GROUPS]), "U8": ("U8", [_ROWS, _GROUPS]),
        "empty": ("I32", [0, 0]), "F8_E5M2": ("F8_E5M2", [_ROWS, _GROUPS]),
    }  # fmt: skip
    for what, (dtype, shape) in points.items():
        change = _zeros("weight_zero_point", dtype, shape)
        yield Case(f"packed: weight_zero_point {what}", change, _RUN, words, start="asymmetric")
    out = _part("weight_zero_point", "I8", [_ROWS, _GROUPS], b"\x7f" * (_ROWS * _GROUPS))
    yield Case("packed: weight_zero_point out of range", out, _RUN, words, start="asymmetric")
    other = _part("weight_zero_point", "I32", [16, _GROUPS], b"\x01" * 128)
    yield Case("packed: zero points that no scheme has", other, _RUN, words, start="packed")
    order = _part("weight_g_idx", "I32", [_COLUMNS], np.arange(_COLUMNS, dtype=np.int32)[::-1].tobytes())
    yield Case("packed: columns in another order", order, {"generate": 4}, words, "original", start="packed")
    for dtype, size in {"F8_E4M3": 1, "C64": 8, "BOOL": 1, "F32": 4}.items():
        odd = _part("weight_g_idx", dtype, [8, 8], bytes(64 * size))
        yield Case(f"packed: weight_g_idx of {dtype}", odd, {"generate": -3}, start="packed")
    for what, bits in {"NaN": 0x7FC0, "infinity": 0x7F80, "zero": 0, "largest": 0x7F7F, "negative": 0xFF7F}.items():
        content = np.full(_ROWS * _GROUPS, bits, np.uint16).tobytes()
        change = _part("weight_scale", "BF16", [_ROWS, _GROUPS], content)
        yield Case(f"packed: scales that are {what}", change, {"generate": -1}, start="packed")
    noise = np.random.default_rng(3).integers(-(2**31), 2**31 - 1, _ROWS * 8, np.int32).tobytes()
    yield Case(
        "packed: random codes", _part("weight_packed", "I32", [_ROWS, 8], noise), {"generate": 0}, start="packed"
    )
    both = append({f"{_MODULE}.weight": ("BF16", [_ROWS, _COLUMNS], bytes(_ROWS * _COLUMNS * 2))})
    yield Case("packed: dense too", both, _RUN, words, start="packed")
    for what, suffix in {"weight_packed": "weight_packed", "weight_scale": "weight_scale"}.items():
        change = replace_header(lambda header, suffix=suffix: _aliased(header, suffix))  # type: ignore[misc]
        yield Case(
            f"packed: {what} of another module's bytes", change, {"generate": 3, "inspect": 3}, (MODEL,), start="packed"
        )


def _aliased(header: dict[str, Any], suffix: str) -> dict[str, Any]:
    mine, other = f"{_MODULE}.{suffix}", f"model.layers.1.mlp.up_proj.{suffix}"
    return header | {mine: header[mine] | {"data_offsets": header[other]["data_offsets"]}}


def _zeros(suffix: str, dtype: str, shape: list[int]) -> Callable[[Path], object]:
    sizes = {"I32": 4, "F32": 4, "U8": 1, "I8": 1, "I64": 8, "F64": 8, "BF16": 2, "BOOL": 1, "C64": 8}
    return _part(suffix, dtype, shape, bytes(int(np.prod(shape)) * sizes.get(dtype, 1)))


def _with(field: str, value: Any) -> Callable[[Path], object]:
    return _section(lambda section: section.update({field: value}))


def _targets(value: Any) -> Callable[[Path], object]:
    return _section(lambda section: section["config_groups"]["group_0"].update(targets=value))


def _section(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = read_json(folder / CONFIG)
        edit(config["quantization_config"])
        write_json(folder / CONFIG, config)

    return change


def _weights(**fields: Any) -> Callable[[Path], object]:
    return _section(lambda section: section["config_groups"]["group_0"]["weights"].update(fields))


def _sections() -> Iterator[Case]:
    lies: dict[str, tuple[Any, ...]] = {
        "num_bits": (0, -4, 3, 8, 2, 9, 64, "4", 4.0, None, [4], True, 10**30),
        "group_size": (0, -1, -5, 16, 64, 128, 7, 10**30, "32", 32.0, [32], True),
        "symmetric": (False, "true", 1, None, []), "type": ("float", 5, None, ["int"]),
        "strategy": ("channel", "block", "tensor", 5, [], {}), "dynamic": (True, "local"), "actorder": ("group", True,
        7),
    }  # fmt: skip
    for field, values in lies.items():
        for value in values:
            change = _weights(**{field: value})
            yield Case(f"scheme: {field} is {value!r}", change, {"generate": -3, "inspect": -1}, start="packed")
    shapes: dict[str, Any] = {
        "config_groups": (None, [], "x", {}, {"group_0": None}, {"group_0": []}, {"group_0": {"targets": "Linear"}}),
        "ignore": ("lm_head", 5, {"a": 1}, ["re:("], ["re:.*"]), "format": ("int-quantized", 5, "dense", ["x"]),
        "quant_method": ("gptq", 5, None, []), "sparsity_config": ({"format": "sparse-24"}, {"format": 5}),
        "transform_config": ({"config_groups": {"a": 1}},), "kv_cache_scheme": ({"num_bits": 8},),
    }  # fmt: skip
    for field, values in shapes.items():
        for value in values:
            change = _with(field, value)
            yield Case(
                f"scheme: {field} is {json.dumps(value)}", change, {"generate": -1, "inspect": -1}, start="packed"
            )
    for value in (
        None,
        [],
        "Linear",
        [5],
        ["re:("],
        ["re:" + "(" * 5000],
        ["re:" + "a" * 10**6],
        ["re:(?P<a>x)(?P<a>y)"],
        ["x"],
    ):
        change = _targets(value)
        shown = json.dumps(value)[:20]
        yield Case(f"scheme: targets are {shown}", change, {"generate": -3, "inspect": -1}, start="packed")
    without = edit_section(None)
    yield Case("scheme: none for packed tensors", without, _RUN, (MODEL, "weight_packed"), start="packed")


def edit_section(value: Any) -> Callable[[Path], object]:
    """Put another section in place of `quantization_config`."""

    def change(folder: Path) -> None:
        write_json(folder / CONFIG, read_json(folder / CONFIG) | {"quantization_config": value})

    return change


def _regexes() -> Iterator[Case]:
    for pattern in EVIL:
        for field in ("targets", "ignore"):
            for long in (False, True):
                name = f"regex: {field} {pattern[:40]}{' and long names' if long else ''}"
                yield Case(name, _evil(field, pattern, long), {"generate": -1, "inspect": -1}, start="packed")
    many = _section(lambda section: section.update(ignore=[f"re:{'.*' * 9}x{number}" for number in range(20_000)]))
    yield Case("regex: 20,000 of them", many, {"generate": -1, "inspect": -1}, start="packed")


def _evil(field: str, pattern: str, long: bool) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        def edit(section: dict[str, Any]) -> None:
            if field == "ignore":
                section["ignore"] = [pattern]
            else:
                section["config_groups"]["group_0"]["targets"].append(pattern)

        _section(edit)(folder)
        if long:
            name = "model.layers.0." + "a" * 3000
            append({f"{name}.weight_packed": ("I32", [1], bytes(4)), f"{name}!.weight": ("BF16", [2], bytes(4))})(
                folder
            )

    return change


def _manifests() -> Iterator[Case]:
    name: Final = "llmq.json"
    for what, change in malformed(name):
        yield Case(f"manifest: {what}", change, _RUN, (name,), start="output")
    yield Case("manifest: of a size without end", _endless(name), _RUN, (name,), start="output")
    yield Case("manifest: missing", lambda folder: (folder / name).unlink(), _RUN, (name,), start="output")
    lies: dict[str, tuple[Any, ...]] = {
        "schema": (0, -1, 99, "1", None, [], True, 1.0), "files": (None, [], {}, "x", {"../x": {}}, {"config.json": 5}),
        "tensors": (None, [], "x", {"a": 5}, {"a": {"file": "absent", "sha256": "0" * 64}}, {"a": {"file": []}}),
    }  # fmt: skip
    for field, values in lies.items():
        for value in values:
            codes = {"generate": -3} if value != {} else {"generate": -1}
            change = _field(name, field, value)
            yield Case(f"manifest: {field} is {json.dumps(value)}", change, codes, (), start="output")
    for file in (
        "../outside/secret.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        "..",
        "",
        "\0",
        "absent",
        "x\x1b[31m",
    ):
        yield Case(
            f"manifest: lists {json.dumps(file)}",
            _listed(file),
            _RUN,
            (name,) if file not in ("absent", "x\x1b[31m") else ("no such file",),
            start="output",
        )
    entries: dict[str, dict[str, Any]] = {
        "size negative": {"size": -1}, "size a string": {"size": "1"}, "size wrong": {"size": 1},
        "size huge": {"size": 10**30},
        "sha256 short": {"sha256": "00"}, "sha256 a number": {"sha256": 5}, "sha256 null": {"sha256": None},
        "sha256 in capitals": {"sha256": "A" * 64},
    }  # fmt: skip
    for what, entry in entries.items():
        yield Case(f"manifest: {what}", _entry(entry), _RUN, (), start="output")
    cut = lambda folder: os.truncate(folder / MODEL, (folder / MODEL).stat().st_size - 1)  # noqa: E731
    yield Case("manifest: a shorter shard", cut, _RUN, (MODEL,), start="output")
    yield Case(
        "manifest: a missing file",
        lambda folder: (folder / "generation_config.json").unlink(),
        _RUN,
        ("generation_config.json",),
        start="output",
    )


def _endless(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, 1 << 40)


def _field(name: str, field: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: write_json(folder / name, read_json(folder / name) | {field: value})


def _listed(file: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = read_json(folder / "llmq.json")
        manifest["files"][file] = {"size": 1, "sha256": "0" * 64}
        write_json(folder / "llmq.json", manifest)

    return change


def _entry(fields: dict[str, Any]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = read_json(folder / "llmq.json")
        manifest["files"][CONFIG].update(fields)
        write_json(folder / "llmq.json", manifest)

    return change


def _certificates() -> Iterator[Case]:
    name: Final = "quality.json"
    for what, change in malformed(name):
        yield Case(f"certificate: {what}", change, {"inspect": 0}, start="output")
    sound = {"schema": 1, "manifest_sha256": "0" * 64, "tensors": [], "evaluations": [], "nmse": None, "sqnr_db": None}
    odd: dict[str, dict[str, Any]] = {
        "of other weights": {}, "schema a list": {"schema": []}, "evaluations a number": {"evaluations": 5},
        "evaluations of numbers": {"evaluations": [5]}, "tensors an object": {"tensors": {}},
    }  # fmt: skip
    for what, fields in odd.items():
        yield Case(f"certificate: {what}", text(name, json.dumps(sound | fields)), {"inspect": 0}, start="output")
    figures: dict[str, dict[str, Any]] = {
        "names that steer a terminal": {"evaluations": [{"perplexity": 1.5, "text": "\x1b[2J\n", "base": "\x9b",
        "compute": "\r"}]},
        "figures of other types": {"sqnr_db": 3.5, "nmse": "x"}, "a figure without its mate": {"sqnr_db": 3.5},
        "figures that are lists": {"evaluations": [{"perplexity": [], "kl_mean": {}}]},
    }  # fmt: skip
    for what, fields in figures.items():
        yield Case(f"certificate: {what}", _certified(sound | fields), {"inspect": 0}, start="output")


def _certified(value: dict[str, Any]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        import hashlib

        digest = hashlib.sha256((folder / "llmq.json").read_bytes()).hexdigest()
        write_json(folder / "quality.json", value | {"manifest_sha256": digest})

    return change


def _recipes() -> Iterator[Case]:
    name: Final = "recipe.json"
    given = ("--recipe", f"FOLDER/{name}")
    for what, change in malformed(name):
        yield Case(f"recipe: {what}", change, {"quantize": 3}, (name,), arguments=given)
    sound = {
        "schema": 1, "llmq_version": "1", "method": "rtn", "for": "llmq", "range": "full", "signed_scale": True,
        "goal": None,
        "tensors": {"a": None},
    }  # fmt: skip
    lies: dict[str, tuple[tuple[Any, int], ...]] = {
        "schema": ((2, 4), ("1", 3), (True, 3), (None, 3)), "method": (("x", 4), (5, 4), ([], 4), ({}, 4), (None, 4)),
        "for": (("x", 4), ([], 4), (5, 4)), "range": (("x", 3), ([], 3), (5, 3)), "signed_scale": (("x", 3), (1, 3)),
        "tensors": (
            ([], 3), (None, 3), ({"a": 5}, 3), ({"a": {}}, 3), ({"a": {"bits": 99, "group_size": 1,
            "symmetric": True}}, 3),
            ({"a": {"bits": "4", "group_size": [], "symmetric": 5}}, 3), ({"re:(a+)+$": None}, 2), ({}, 3),
            ({"\x1b[31mx\n": None}, 2),
        ),
    }  # fmt: skip
    for field, values in lies.items():
        for value, code in values:
            change = text(name, json.dumps(sound | {field: value}))
            yield Case(f"recipe: {field} is {json.dumps(value)}", change, {"quantize": code}, (), arguments=given)
    yield Case(
        "recipe: an unknown key", text(name, json.dumps(sound | {"x": 1})), {"quantize": 3}, (name,), arguments=given
    )
    yield Case(
        "recipe: a missing key",
        text(name, json.dumps({"schema": 1, "tensors": {}})),
        {"quantize": 3},
        (name,),
        arguments=given,
    )
    yield Case("recipe: a FIFO", lambda folder: os.mkfifo(folder / name), {"quantize": 3}, (name,), arguments=given)
    yield Case("recipe: absent", lambda _: None, {"quantize": 3}, (name,), arguments=given)
