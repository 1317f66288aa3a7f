"""The modules whose branches guide atheris: named before any of them is imported."""

from __future__ import annotations

from typing import Final

__all__ = ["INSTRUMENTED"]

INSTRUMENTED: Final = (
    "llmq.checkpoint.header",
    "llmq.checkpoint.json_strict",
    "llmq.checkpoint.index",
    "llmq.checkpoint.manifest",
    "llmq.checkpoint.stacked",
    "llmq.formats",
    "llmq.architectures",
    "llmq.plan.recipe_files",
)
