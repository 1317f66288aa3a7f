"""Which weights stay in memory while a model runs, and which are read for every pass through it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.block_reader import buffer_bytes
from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.errors import ResourceError
from llmq.runtime.cache import kv_bytes
from llmq.system.memory import current_memory, process_limit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from llmq.architectures import DecoderConfig
    from llmq.checkpoint.header import TensorInfo

__all__ = [
    "CHUNK",
    "HEADROOM",
    "Residency",
    "Room",
    "experts_of",
    "plan_residency",
    "streamable",
    "working_bytes",
]

CHUNK: Final = 256
"""Tokens of a prompt that go through a block at once: enough to make use of every weight that is read."""

HEADROOM: Final = 144 << 20
"""What a process grows by when it runs, besides weights, cache and activations: kernels compiled, and the heap."""

_COMPILED: Final = 48 << 20
"""The same where all kernels are compiled already."""

_PART: Final = 16
"""One part in so many of the memory for weights may go to hidden states: the more, the fewer passes over a prompt."""

_AROUND: Final = 64 << 10
"""Bytes of a mapped file that come into memory when one of them is touched."""

_BLOCK: Final = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT: Final = re.compile(r"model\.layers\.(\d+)\..*\.experts\.(\d+)\.")
_TABLE: Final = "model.embed_tokens."
_READABLE: Final = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Room:
    """What a model is to run in.

    Parameters
    ----------
    limit : int
        Bytes of anonymous memory and resident mapped weights together.
    tokens : int
        That the cache has room for.
    kv_bits : int
        Of an element of the cache.
    process : int
        Bytes of the process apart from the model, at most.
    idle : int
        Bytes of these that it is not expected to take, for its kernels are compiled.
    """

    limit: int
    tokens: int
    kv_bits: int
    process: int
    idle: int = 0

    @classmethod
    def here(cls, limit: int | None, tokens: int, kv_bits: int, *, compiled: bool = False) -> Room:
        """Room in this process as it is now; without a limit, that of the machine."""
        used = current_memory().rss
        idle = HEADROOM - _COMPILED if compiled else 0
        return cls(process_limit() if limit is None else limit, tokens, kv_bits, used + HEADROOM, idle)


@dataclass(frozen=True)
class Residency:
    """Where the weights of a model are while it runs.

    Parameters
    ----------
    room : Room
    layers : int
        Decoder blocks.
    streamed : tuple of int
        Numbers of those that are read anew for every pass; spread evenly, so that the disk is busy all along.
    resident_bytes : int
        Weights that stay, mapped.
    copied_bytes : int
        Norms, biases and unpacked zero points.
    buffer_bytes : int
        Buffers for streamed blocks.
    streamed_bytes : int
        Read for every pass.
    cache_bytes, working_bytes : int
        Keys and values of all tokens; activations.
    wave : int
        Tokens of a prompt that go through all blocks in one pass over the weights.
    tied : bool
        Whether the embedding table is the head too.
    expert_bytes : int or None
        Experts that stay, mapped, at a time: those used last, and part of `resident_bytes`; None where all may stay.
    """

    room: Room
    layers: int
    streamed: tuple[int, ...]
    resident_bytes: int
    copied_bytes: int
    buffer_bytes: int
    streamed_bytes: int
    cache_bytes: int
    working_bytes: int
    wave: int
    tied: bool
    expert_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        """Anonymous memory and resident mapped weights, at most."""
        own = self.resident_bytes + self.copied_bytes + self.buffer_bytes
        return own + self.cache_bytes + self.working_bytes + self.room.process

    @property
    def expected_bytes(self) -> int:
        """What is expected of `peak_bytes`."""
        return self.peak_bytes - self.room.idle

    def staying(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        """Names of the tensors that are needed for every token and stay in memory, in the order of their bytes."""
        blocks = streamable(tensors)
        read = {info.name for number in self.streamed for info in blocks[number]}
        if self.expert_bytes is not None:
            read |= {name for names in experts_of(tensors).values() for name in names}
        table = () if self.tied else (_TABLE,)
        return [name for name in tensors if name not in read and not name.startswith(table)]


def experts_of(tensors: Mapping[str, TensorInfo]) -> dict[tuple[int, int], list[str]]:
    """Names of the tensors of each expert, by block and number."""
    found: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for name in tensors:
        place = _EXPERT.match(name)
        if place is not None:
            found[int(place[1]), int(place[2])].append(name)
    return dict(found)


def streamable(tensors: Mapping[str, TensorInfo]) -> dict[int, list[TensorInfo]]:
    """Find the large tensors of each decoder block; a block with one that cannot be used where it is read has none."""
    blocks: defaultdict[int, list[TensorInfo]] = defaultdict(list)
    unfit: set[int] = set()
    for name, info in tensors.items():
        found = _BLOCK.match(name)
        if found is None or not _is_large(info):
            continue
        number = int(found[1])
        blocks[number].append(info)
        packed = name.endswith(".weight_packed")
        if not packed and (info.dtype not in _READABLE or info.offset % NUMPY_DTYPES[info.dtype].itemsize):
            unfit.add(number)
    return {number: infos for number, infos in sorted(blocks.items()) if number not in unfit}


def _is_large(info: TensorInfo) -> bool:
    return info.name.endswith((".weight_packed", ".weight_scale")) or (
        info.name.endswith(".weight") and len(info.shape) == 2
    )


def plan_residency(tensors: Mapping[str, TensorInfo], config: DecoderConfig, room: Room) -> Residency:
    """Let as many decoder blocks stay in memory as fit, and stream the rest.

    Parameters
    ----------
    tensors : mapping of str to TensorInfo
        Of the checkpoint.
    config : DecoderConfig
    room : Room

    Returns
    -------
    Residency
        Nothing is streamed where everything fits. Of experts, which no one knows beforehand, those used last stay.

    Raises
    ------
    ResourceError
        Even with all blocks streamed, or two experts at a time, it would not fit.
    """
    if config.experts is not None:
        return _with_experts(_planned(tensors, config, room, {}, 0, CHUNK), tensors)
    blocks = streamable(tensors)
    states = max(0, room.limit - room.process - kv_bytes(config, room.tokens, room.kv_bits)) // _PART
    wave = max(CHUNK, min(room.tokens, states // _state_bytes(config)) // CHUNK * CHUNK)
    least = None
    for most in (wave, CHUNK):  # rather a prompt in several passes than none
        for count in range(len(blocks) + 1):
            plan = _planned(tensors, config, room, blocks, count, most)
            if plan.peak_bytes <= room.limit:
                return plan
            least = plan if least is None or plan.peak_bytes < least.peak_bytes else least
    assert least is not None
    raise _too_little(least)


def _state_bytes(config: DecoderConfig) -> int:
    """Bytes of a token between two blocks: its hidden state, and what the last block adds to it."""
    return 8 * config.hidden_size


def _with_experts(whole: Residency, tensors: Mapping[str, TensorInfo]) -> Residency:
    if whole.peak_bytes <= whole.room.limit:
        return whole
    sizes = [sum(tensors[name].nbytes for name in names) for names in experts_of(tensors).values()]
    least = min(sum(sizes), 2 * max(sizes, default=0))
    rest = replace(whole, resident_bytes=whole.resident_bytes - sum(sizes))
    spare = whole.room.limit - rest.peak_bytes
    if spare < least:
        raise _too_little(replace(rest, resident_bytes=rest.resident_bytes + least))
    return replace(rest, resident_bytes=rest.resident_bytes + spare, expert_bytes=spare)


def _planned(
    tensors: Mapping[str, TensorInfo],
    config: DecoderConfig,
    room: Room,
    blocks: Mapping[int, Collection[TensorInfo]],
    count: int,
    wave: int,
) -> Residency:
    """Stream `count` blocks; prompts go through in waves of so many tokens where any is streamed."""
    numbers = list(blocks)
    streamed = tuple(numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count))
    read = [list(blocks[number]) for number in streamed]
    names = {info.name for block in read for info in block}
    mapped = {name: info for name, info in tensors.items() if name not in names}
    wave = wave if streamed else CHUNK
    states = _state_bytes(config) * min(wave, room.tokens) if streamed else 0
    return Residency(
        room=room,
        layers=config.n_layers,
        streamed=streamed,
        resident_bytes=sum(_mapped_bytes(info, config, room.tokens) for info in mapped.values()),
        copied_bytes=_copied_bytes(tensors),
        buffer_bytes=buffer_bytes(read),
        streamed_bytes=sum(info.nbytes for block in read for info in block),
        cache_bytes=kv_bytes(config, room.tokens, room.kv_bits),
        working_bytes=working_bytes(config, min(room.tokens, CHUNK)) + states,
        wave=wave,
        tied=config.tie_word_embeddings,
    )


def _mapped_bytes(info: TensorInfo, config: DecoderConfig, tokens: int) -> int:
    """Bytes of a mapped tensor that come into memory: of an untied table, what is around the rows of tokens."""
    if info.name.startswith(_TABLE) and not config.tie_word_embeddings:
        return min(info.nbytes, 2 * _AROUND * tokens)
    return info.nbytes


def _copied_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """Bytes of vectors as float32, and of zero points, one for each scale."""
    total = 0
    for name, info in tensors.items():
        if name.endswith(".weight_zero_point"):
            scale = tensors.get(name.removesuffix("zero_point") + "scale")
            total += 0 if scale is None else scale.shape[0] * scale.shape[-1]
        elif len(info.shape) == 1:
            total += 4 * info.shape[0]
    return total


def working_bytes(config: DecoderConfig, tokens: int) -> int:
    """Bytes of what a block works in for some tokens, and of their hidden states."""
    heads = config.n_heads + 2 * config.n_kv_heads
    # States as they come, and normed; queries and what attention makes of them; both halves of the MLP.
    return 4 * tokens * (3 * config.hidden_size + 2 * heads * config.head_dim + 2 * config.intermediate_size)


def _too_little(least: Residency) -> ResourceError:
    room, mebibytes = least.room, -(-least.peak_bytes >> 20)
    parts = {
        "weights": least.resident_bytes + least.copied_bytes + least.buffer_bytes,
        f"cache of {room.tokens} tokens": least.cache_bytes,
        "process": room.process + least.working_bytes,
    }
    told = ", ".join(f"{what} {count >> 20} MiB" for what, count in parts.items())
    return ResourceError(
        "the model does not run in so little memory",
        expected=f"at least {mebibytes} MiB: {told}",
        found=f"{room.limit >> 20} MiB",
        hint=f"--max-memory {mebibytes}MiB, fewer bits, or a shorter context (-m, --context)",
    )
