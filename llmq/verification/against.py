"""Whether an output is what its recipe makes of a source: blocks of it are quantized again and compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from xxhash import xxh3_128

from llmq.checkpoint.companions import RECIPE_FILE, is_card, split_companions
from llmq.checkpoint.folder_files import CONFIG_FILE
from llmq.checkpoint.manifest import MANIFEST, difference, source_headers
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.checkpoint.source import select_copies
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.evaluate.inventory import inventory
from llmq.evaluate.rows import read_bytes, read_quantized, stored_rows
from llmq.formats.compressed_tensors import encode
from llmq.formats.dense import to_float32
from llmq.methods import DATA_FREE, METHODS
from llmq.pipeline.run import whole_rows
from llmq.plan import build_plan
from llmq.plan.recipe_files import read_recipe
from llmq.verification.result import Agreement, Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from llmq.checkpoint.source import FolderSource, Source
    from llmq.plan import Plan, TensorPlan
    from llmq.spec import QuantizedTensor
    from llmq.system.progress import Progress

__all__ = ["compare_with_source"]

_ROWS: Final = 64
"""Rows of a sampled block; zero points are packed across 32."""

_ELEMENTS: Final = 1 << 20
"""Of a block where all are compared."""

_BYTES: Final = 1 << 16
"""Of a sampled block of a tensor that is kept."""

_NEAR: Final = 4.0
"""Squared error that calibrated weights may have, over that of rounding to nearest on the same grid."""


def compare_with_source(
    output: FolderSource,
    source: Source,
    manifest: Mapping[str, Any],
    progress: Progress,
    *,
    ignored: Collection[str],
    full: bool,
) -> tuple[Agreement | None, list[Problem]]:
    """Quantize a sample of blocks of every tensor again, or all of them, and compare their bytes.

    Of each weight the first, the last and one other block of rows are taken. What a calibrated method made of a block
    depends on the text and on all blocks before it: such weights are compared with what they came from instead.
    Configuration and tokenizer must be those of the source.

    Parameters
    ----------
    output : FolderSource
        Sound by itself.
    source : Source
        As `llmq quantize` would read it.
    manifest : mapping
        Of the output.
    progress : Progress
        Told of bytes of the source.
    ignored : collection of str
        Names of files that may differ.
    full : bool
        Whether all blocks are compared.

    Returns
    -------
    agreement : Agreement or None
        None where the source is another one.
    problems : list of Problem

    Raises
    ------
    LlmqError
        The source cannot be read.
    UnsupportedError
        Weights that were given, by training for example: nothing makes them again.
    """
    other = source_headers(manifest.get("source")) ^ source_headers(source.identity())
    if other:
        return None, [Problem("made from another source: headers of weight files differ", source.label)]
    settings = manifest["settings"] if isinstance(manifest.get("settings"), dict) else {}
    method, size = settings.get("method"), settings.get("max_shard_size")
    if not isinstance(method, str) or (size is not None and (type(size) is not int or size < 1)):
        return None, [Problem("does not tell how it was made", MANIFEST)]
    if method not in METHODS:
        hint = "leave --against out"
        raise UnsupportedError("nothing makes these weights again: they were trained", file=output.label, hint=hint)
    try:
        recipe = read_recipe(Path(output.folder))
        plan = build_plan(source, recipe, max_shard_size=size) if size else build_plan(source, recipe)
    except (InputError, UnsupportedError, UsageError) as error:
        return None, [Problem(f"cannot be followed: {error.what}", RECIPE_FILE, error.tensor)]
    found = _Comparison(output, source, plan.recipe.method, _source_checksums(manifest))
    found.problems += _other_companions(output, source, plan, ignored)
    if not found.same_layout(plan):
        return None, found.problems
    progress.start("comparing with the source", sum(_to_read(tensor, full=full) for tensor in plan.tensors))
    for tensor in plan.tensors:
        found.tensor(tensor, full=full, progress=progress)
    progress.finish()
    source.check_unchanged()
    share = found.nbytes / max(1, plan.source_bytes)
    agreement = Agreement(source.label, len(plan.tensors), found.blocks, found.exact, found.near, share)
    return agreement, found.problems


def _source_checksums(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """XXH3-128 of the source's tensors by name, as the manifest has them."""
    tensors = manifest.get("source_tensors")
    entries = tensors.items() if isinstance(tensors, dict) else ()
    return {name: entry.get("xxh3_128") for name, entry in entries if isinstance(entry, dict)}


def _other_companions(output: FolderSource, source: Source, plan: Plan, ignored: Collection[str]) -> Iterator[Problem]:
    """Configuration and tokenizer that are not the source's; what config.json says of packing is checked elsewhere."""
    wanted, stored = (dict(config, quantization_config=None) for config in (plan.config, output.config))
    other = difference(wanted, stored)
    if other and CONFIG_FILE not in ignored:
        name, expected, found = other
        what = f"not as the source says: {name} (expected {str(expected)[:40]}, found {str(found)[:40]})"
        yield Problem(what, CONFIG_FILE)
    theirs = select_copies(source)[0]
    for name in sorted({*theirs, *split_companions(output.other_files)[0]} - {*ignored}):
        if is_card(name):
            continue
        if name not in theirs or name not in output.other_files:
            yield Problem("missing" if name in theirs else "the source has no such file", name)
        elif _bytes_of(output.folder, name) != _bytes_of(source.folder, name):
            yield Problem("not the file of the source", name)


def _bytes_of(folder: Path, name: str) -> bytes:
    return read_small(folder / name, allowed_roots(folder))


def _blocks(tensor: TensorPlan, *, full: bool) -> list[tuple[int, int]]:
    """Rows, or bytes of a tensor that is kept, of the blocks to compare: first and last (exclusive) of each."""
    if tensor.spec is None:
        total, step = tensor.info.nbytes, _BYTES * (64 if full else 1)
    else:
        rows, columns = tensor.info.shape
        total, step = rows, max(_ROWS, _ELEMENTS // columns // 32 * 32) if full else _ROWS
    starts = list(range(0, total, step))
    if not full and len(starts) > 3:
        # Always the same one, so that two verifications see the same.
        middle = 1 + int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8]) % (len(starts) - 2)
        starts = [0, starts[middle], starts[-1]]
    return [(start, min(total, start + step)) for start in starts]


def _row_bytes(tensor: TensorPlan) -> int:
    return 1 if tensor.spec is None else tensor.info.nbytes // tensor.info.shape[0]


def _to_read(tensor: TensorPlan, *, full: bool) -> int:
    return _row_bytes(tensor) * sum(stop - start for start, stop in _blocks(tensor, full=full))


@dataclass
class _Comparison:
    """Blocks compared so far."""

    output: FolderSource
    source: Source
    method: str
    checksums: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)
    blocks: int = 0
    exact: int = 0
    near: int = 0
    nbytes: int = 0

    def __post_init__(self) -> None:
        self._entries = {entry.name: entry for entry in inventory(self.output).entries}

    def same_layout(self, plan: Plan) -> bool:
        """Whether the output's files are laid out as the plan says."""
        expected = {shard.file: hashlib.sha256(shard.header[8:]).hexdigest() for shard in plan.shards}
        found = {name: header.digest for name, header in self.output.headers.items()}
        other = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        what = "its tensors are not those that the recipe makes of the source"
        self.problems += [Problem(what, name) for name in other]
        return not other

    def tensor(self, tensor: TensorPlan, *, full: bool, progress: Progress) -> None:
        """Compare blocks of one tensor; the first that differs is a problem, and ends it.

        What was read as a whole must be what the run read, too.
        """
        whole, count = xxh3_128(), 0
        for start, stop in _blocks(tensor, full=full):
            width = _row_bytes(tensor)
            raw = read_bytes(self.source, tensor.info, start * width, stop * width)
            self.blocks += 1
            self.nbytes += raw.size
            whole.update(raw.data)
            count += raw.size
            what = (self._kept if tensor.spec is None else self._packed)(tensor, raw, start, stop)
            progress.advance(raw.size)
            if what is not None:
                unit = "bytes" if tensor.spec is None else "rows"
                file = self.output.tensors[tensor.outputs[0].name].file
                self.problems.append(Problem(f"{what}: {unit} {start} to {stop}", file, tensor.name))
                return
        expected = self.checksums.get(tensor.name)
        if count == tensor.info.nbytes and expected not in (None, whole.hexdigest()):
            what = f"not what the output was made from (expected {str(expected)[:40]}, found {whole.hexdigest()})"
            self.problems.append(Problem(what, self.source.label, tensor.name))

    def _kept(self, tensor: TensorPlan, raw: np.ndarray, start: int, stop: int) -> str | None:
        if np.array_equal(raw, read_bytes(self.output, self.output.tensors[tensor.name], start, stop)):
            self.exact += 1
            return None
        return "not the bytes of the source"

    def _packed(self, tensor: TensorPlan, raw: np.ndarray, start: int, stop: int) -> str | None:
        rows, entry = whole_rows(raw, tensor), self._entries[tensor.name]
        stored = stored_rows(self.output, entry, start, stop)
        calibrated = METHODS[self.method].needs != "nothing"
        if self._same(tensor, rows, stored, DATA_FREE if calibrated else self.method):
            self.exact += 1
            return None
        if calibrated and self._is_near(tensor, raw, rows, read_quantized(self.output, entry, start, stop)):
            self.near += 1
            return None
        return "further from the source than calibration explains" if calibrated else "not what its method gives"

    def _same(self, tensor: TensorPlan, rows: np.ndarray, stored: Mapping[str, np.ndarray], method: str) -> bool:
        assert tensor.spec is not None
        try:
            again = encode(METHODS[method].quantize(rows, tensor.spec))
        except FloatingPointError:
            return False
        # Bits are compared, not numbers: NaN is no reason to differ, the sign of a zero is.
        return again.keys() == stored.keys() - {"weight_shape"} and all(
            np.ascontiguousarray(array).tobytes() == stored[suffix].tobytes() for suffix, array in again.items()
        )

    def _is_near(self, tensor: TensorPlan, raw: np.ndarray, rows: np.ndarray, stored: QuantizedTensor) -> bool:
        assert tensor.spec is not None
        wanted = to_float32(raw, tensor.info.dtype, np.empty(stored.shape, np.float32))
        error = partial(_squared_error, wanted)
        rounded = METHODS["rtn"].quantize(rows, tensor.spec).dequantize()
        return error(stored.dequantize()) <= _NEAR * error(rounded)


def _squared_error(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(wanted - found, dtype=np.float64).sum())
