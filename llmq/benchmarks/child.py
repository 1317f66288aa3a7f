"""Commands of `llmq` in a process of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from llmq.benchmarks.sampling import Sampler
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

__all__ = ["llmq", "python", "watched"]

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
    with _start(arguments, environment) as process:
        return _result(process)


def watched(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[dict[str, Any], Sampler]:
    """Run Python as `python` does, and sample its memory meanwhile, which costs it some time; raises the same."""
    with _start(arguments, environment) as process, Sampler(process.pid) as sampler:
        return _result(process), sampler


def _start(arguments: tuple[str, ...], environment: Mapping[str, str] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  # Python itself, with our own words
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a process and return what it prints; one that we stop waiting for is ended."""
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode == 0:
        result: dict[str, Any] = json.loads(out)
        return result
    raise _error(process.returncode, err)


def _error(code: int, told: str) -> LlmqError:
    lines = told.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    what = errors[-1] if errors else (lines or ["no message"])[-1]
    return _ERRORS.get(code, LlmqError)(what, hint=hints[-1] if hints else None)
