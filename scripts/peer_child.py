"""Contestants in processes of their own, kept alive, so that they can take turns without sharing threads or settings.

`python peer_child.py MODULE CLASS` makes an object from a line of JSON on stdin, then calls a method for every further
line; each answer is a line on stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Child", "ContestantError", "serve"]

_HERE = Path(__file__).parent


class ContestantError(Exception):
    """A contestant failed; what it said last."""


class Child:
    """An object of another process.

    Parameters
    ----------
    module, name : str
        Of its class, in the folder of this script.
    **arguments
        Of the class, as far as JSON can say them.
    """

    def __init__(self, module: str, name: str, **arguments: Any) -> None:
        self._name = f"{module}.{name}"
        # Each library decides about its threads itself; ours sets the variable when it is imported.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / "peer_child.py"), module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            self._ask(arguments)
        except ContestantError:
            self.close()
            raise

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method and wait for what it returns.

        Raises
        ------
        ContestantError
            It raised, or its process ended.
        """
        return self._ask({"method": method, "arguments": arguments})

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ContestantError(f"{self._name} ended with {self._process.wait()}")
        found = json.loads(answer)
        if "error" in found:
            raise ContestantError(f"{self._name}: {found['error']}")
        return found["result"]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(module: str, name: str, questions: TextIO, answers: TextIO) -> None:
    """Make an object of a class and answer questions about it until they end."""
    target: Any = None
    for line in questions:
        question = json.loads(line)
        try:
            if target is None:
                target, result = getattr(importlib.import_module(module), name)(**question), None
            else:
                result = getattr(target, question["method"])(**question["arguments"])
            answer = json.dumps({"result": result})
        except Exception as error:  # noqa: BLE001, RUF100
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
        answers.write(answer + "\n")
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout; whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.argv[2], sys.stdin, answers)


if __name__ == "__main__":
    main()
