"""Checking a finished output: every byte against its manifest, its meaning, and the source it was made from."""

from llmq.verification.facade import verify
from llmq.verification.result import Agreement, Problem, Verification

__all__ = ["Agreement", "Problem", "Verification", "verify"]
