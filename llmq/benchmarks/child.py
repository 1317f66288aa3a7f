"""Commands of `llmq` in a process of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from llmq.errors import (
    InputError,
    LlmqError,
    NetworkError,
    ResourceError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["llmq", "python"]

_ERRORS: Final[dict[int, type[LlmqError]]] = {
    kind.exit_code: kind for kind in (InputError, NetworkError, ResourceError, UnsupportedError, UsageError)
}


def llmq(*arguments: object) -> dict[str, Any]:
    """Run a command with `--json` and return its object.

    Raises
    ------
    LlmqError
        The command's own error.
    """
    return python("-m", "llmq", "-q", *map(str, arguments), "--json")


def python(*arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run Python, with some variables changed, and return the JSON object that it prints.

    Raises
    ------
    LlmqError
        Its last lines, `error: ...` and `hint: ...`, by the class of its exit code.
    """
    done = subprocess.run(  # noqa: S603  # Python itself, with our own words
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | dict(environment or {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout)
        return result
    lines = done.stderr.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    what = errors[-1] if errors else (lines or ["no message"])[-1]
    kind = _ERRORS.get(done.returncode, LlmqError)
    raise kind(what, hint=hints[-1] if hints else None)
