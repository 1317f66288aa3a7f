"""The files beside the weights: which ones an output carries."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "COPIED_FILES",
    "RECIPE_FILE",
    "TOKENIZER_FILES",
    "is_card",
    "is_weight_file",
    "split_companions",
]

RECIPE_FILE: Final = "recipe.json"
"""What became of every weight of an output; see `llmq.plan.recipe_files`."""

TOKENIZER_FILES: Final = (
    "tokenizer*.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "*.tiktoken",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Patterns of what a tokenizer is read from, its chat template among it."""

_CARDS: Final = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")

COPIED_FILES: Final = (
    "generation_config.json",
    *TOKENIZER_FILES,
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    *_CARDS,
)
"""Patterns of the files that are copied as they are; ``config.json`` is handled apart. No code is among them."""

_WEIGHTS: Final = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    "*.onnx",
    "*.msgpack",
    "*.h5",
)


def is_weight_file(name: str) -> bool:
    """Whether a file holds weights, in whatever format, or indexes them."""
    return any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)


def is_card(name: str) -> bool:
    """Whether a file is there for people, who may edit it afterwards: a model card or a licence.

    >>> is_card("README.md"), is_card("tokenizer.json")
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in _CARDS)


def split_companions(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Part file names into those an output carries and those it leaves out, both sorted.

    ``config.json`` is in neither.

    >>> split_companions(["config.json", "tokenizer.json", "modeling_evil.py"])
    (('tokenizer.json',), ('modeling_evil.py',))
    """
    others = sorted(name for name in names if name != "config.json")
    copied = [name for name in others if any(fnmatchcase(name, pattern) for pattern in COPIED_FILES)]
    return tuple(copied), tuple(name for name in others if name not in copied)
