"""Bits of a small output flipped, one at a time: `llmq verify` finds each one, and the loader survives them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer, models, pre_tokenizers

import llmq
import make_checkpoint
from llmq.errors import LlmqError
from llmq.runtime.text import load_tokenizer
from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

__all__ = ["Flip", "flips_of", "run", "small_output", "try_flips", "write_small_source"]

_SIZES: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
_BATCH: Final = 4096
_LOADED: Final = {True: 16, False: 4}
"""One of so many flips is tried on the loader too, in tensors and elsewhere."""


@dataclass(frozen=True)
class Flip:
    """One bit: `bit` (0 the lowest) of byte `place` of `file`; whether the model is loaded and run too."""

    file: str
    place: int
    bit: int
    load: bool


@dataclass
class Found:
    """What came of some flips."""

    flips: int = 0
    missed: int = 0
    loads: int = 0
    refused: int = 0
    crashed: int = 0
    first: str = ""

    def add(self, other: Found) -> None:
        """Count what another process found."""
        for name in ("flips", "missed", "loads", "refused", "crashed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first = self.first or other.first


def write_small_source(source: Path) -> Path:
    """Write a random Llama of one block and width 64, with a tokenizer of letters: about 60 kB."""
    config = make_checkpoint.read_config("tiny") | _SIZES
    options = make_checkpoint.Options(layers=None, seed=0, dtype="bfloat16", max_shard_size=1 << 20)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        make_checkpoint.make(config, {}, source, options)
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return source


def small_output(folder: Path) -> Path:
    """Write an output of about 48 kB with a tokenizer, an index and three shards."""
    source = write_small_source(folder / "source")
    return llmq.quantize(source, folder / "output", method="rtn", max_shard_size=16_000).output


def flips_of(output: Path, stride: int = 1) -> list[Flip]:
    """List every bit of headers and JSON and one bit of every byte of a tensor, or one of every `stride` of them."""
    found = []
    for path in sorted(output.iterdir()):
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else len(data)
        bits = [divmod(number, 8) for number in range(8 * header)]
        bits += [(place, place % 8) for place in range(header, len(data))]
        for number, (place, bit) in enumerate(bits[::stride]):
            found.append(Flip(path.name, place, bit, load=number % _LOADED[place >= header] == 0))
    return found


def try_flips(output: Path, folder: Path, flips: Iterable[Flip]) -> Found:
    """Flip bits one after the other in a copy of `output` at `folder`, which is made if need be."""
    if not folder.exists():
        shutil.copytree(output, folder)
    found, sound = Found(), {path.name: path.read_bytes() for path in output.iterdir()}
    for flip in flips:
        data = bytearray(sound[flip.file])
        data[flip.place] ^= 1 << flip.bit
        path = folder / flip.file
        with path.open("r+b") as file:
            file.write(data)
        _verify(folder, flip, found)
        if flip.load:
            _load(folder, flip, found)
        with path.open("r+b") as file:
            file.write(sound[flip.file])
    return found


def _verify(folder: Path, flip: Flip, found: Found) -> None:
    found.flips += 1
    try:
        result = llmq.verify(folder)
    except Exception as error:
        found.missed += 1
        found.first = found.first or f"{flip}: verify raised {type(error).__name__}: {error}"
        return
    if all(problem.file is None or not problem.file.endswith(flip.file) for problem in result.problems):
        found.missed += 1
        found.first = found.first or f"{flip}: verify found {[str(problem) for problem in result.problems]}"


def _load(folder: Path, flip: Flip, found: Found) -> None:
    found.loads += 1
    try:
        llmq.load(folder)([1, 2, 3])
        if flip.file.startswith("tokenizer"):
            load_tokenizer(folder)
    except LlmqError:
        found.refused += 1
    except BaseException as error:
        found.crashed += 1
        found.first = found.first or f"{flip}: the loader raised {type(error).__name__}: {error}"


def _in_process(output: Path, flips: Sequence[Flip]) -> Found:
    logging.getLogger().setLevel(logging.CRITICAL)
    for name in ("llmq", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return try_flips(output, output.with_name(f"copy-{os.getpid()}"), flips)


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Flip all that `flips_of` lists, or one of 997; a process that dies under the loader counts as a crash."""
    output = small_output(scratch)
    flips = flips_of(output, 997 if quick else 1)
    found = Found()
    context = multiprocessing.get_context("spawn")  # kernels have run here
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        parts = [flips[start : start + _BATCH] for start in range(0, len(flips), _BATCH)]
        work = [pool.submit(_in_process, output, part) for part in parts]
        for number, part in enumerate(work, start=1):
            try:
                found.add(part.result())
            except BrokenProcessPool as error:
                found.crashed += 1
                found.first = found.first or f"a process died: {error}"
            if number % 8 == 0:
                tell(f"{number * _BATCH} of {len(flips)} bits")
    nbytes = sum(path.stat().st_size for path in output.iterdir())
    return [
        Tally(
            f"an output of {nbytes} bytes with one bit flipped: every bit of headers and JSON, one of every other byte",
            found.flips,
            found.missed,
            found.first or "all found by `llmq verify`, and the file named",
        ),
        Tally("models loaded with a flipped bit", found.loads, found.crashed, f"{found.refused} refused, others run"),
    ]
