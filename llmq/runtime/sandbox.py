"""The program that runs what strangers wrote, chat templates and tokenizers, in a process that can do nothing else.

`llmq.runtime.confined` starts it. It reads a request from standard input and writes a reply to standard output, both
JSON. Some of what a template can ask for, such as ``10 ** 10 ** 10``, is a single step that nothing within a process
can interrupt, and some of what a tokenizer can, ends the process: hence one of its own, whose time and memory the
system bounds and which can open no file.

Nothing of llmq is imported here, so that it starts within a tenth of a second.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["environment", "main", "render"]

_USES: Final = r"""{{ 'é\n' }}{{ lipsum(n=1) }}{{ [1] | pprint }}{{ 'a b' | wordwrap(1) | urlize }}{{ [1] | random }}
{{ strftime_now('%Z %c') }}{{ '<a>' | striptags | e | urlencode }}{{ {'a': 1} | xmlattr }}{{ [1] | tojson }}"""
"""A template that uses what imports something when it is first used."""


_PROBES: Final = (
    "hi there, it's 1,234.5 km!",
    " ".join(chr(code) for code in range(32, 127)),
    "\u00e9\u0301\u4e16\u754c \u0627\u0644\u0639 \U0001f642\u200d\U0001f600\n\t\r\n",
    "a" * 200 + "!" + "x" * 200 + " " * 50 + "0" * 50,
    "",
)
"""Texts that a tokenizer must make something of."""


def main() -> None:
    """Answer the request on standard input with what its task makes, or ``{"error": ...}``."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    prepare = {"template": _prepare_template, "tokenizer": _prepare_tokenizer}[request["task"]]
    work = prepare(request)
    _confine(request["seconds"], request["memory"])
    reply: dict[str, Any]
    try:
        reply = work()
    except MemoryError:
        reply = {"error": "it takes too much memory"}
    except RecursionError:
        reply = {"error": "it is nested too deeply"}
    # Whatever a stranger's file makes Python or a library raise, it is the file that is at fault; a panic in Rust is no
    # Exception.
    except BaseException as error:
        panic = not isinstance(error, Exception)
        reply = {"error": str(error)[:1000] or type(error).__name__, "panic": panic}
    sys.stdout.write(json.dumps(reply))


def _prepare_template(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    made = environment()
    _import_all(made)
    return lambda: {"text": render(made, request["template"], request["variables"], request["characters"])}


def _prepare_tokenizer(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import pathlib

    import tokenizers

    data = pathlib.Path(request["file"]).read_bytes()

    def probe() -> dict[str, Any]:
        made = tokenizers.Tokenizer.from_buffer(data)
        most = 0
        for text in _PROBES:
            ids = made.encode(text).ids
            most = max(most, len(ids))
            if most > request["tokens"]:
                break
            made.decode(ids)
        return {"most": most}

    return probe


def environment() -> Any:
    """The sandboxed Jinja environment that templates are written for, with what transformers offers them."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {
        "dict": _Dictionary(), "namespace": _namespace(), "raise_exception": _raise, "strftime_now": _strftime_now,
    }  # fmt: skip
    return made


def _generation() -> Any:
    """``{% generation %}`` around what an assistant says, which marks it for training, and is only rendered here."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A block with names of its own.
            return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _namespace() -> Any:
    """Jinja's, without names that begin with an underscore."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"{name!r} begins with an underscore")

    class Fields(Namespace):
        # A field may be called `self`.
        def __init__(*args: Any, **fields: Any) -> None:
            given = dict(*args[1:], **fields)
            for name in given:
                check(name)
            Namespace.__init__(args[0], given)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    return Fields


class _Dictionary:
    """``dict``, without what else hangs on a class."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    import datetime

    return datetime.datetime.now().strftime(layout)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(made: Any, template: str, variables: dict[str, Any], most: int) -> str:
    """Text of a template; ValueError once it is longer than `most` characters."""
    pieces, length = [], 0
    for piece in made.from_string(template).generate(**variables):
        length += len(piece)
        if length > most:
            raise ValueError(f"it makes more than {most} characters")
        pieces.append(piece)
    return "".join(pieces)


def _import_all(made: Any) -> None:
    """Have everything imported, codecs and the time zone too, that is first used while rendering."""
    import jinja2.debug  # noqa: F401

    made.from_string(_USES).render()


def _confine(seconds: float, memory: int) -> None:
    """Bound what this process may do from here on; what the system cannot bound, it does not."""
    try:
        import resource
        import signal
    except ImportError:  # Windows
        return
    bounds = {"RLIMIT_AS": memory, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 0}
    for name, bound in bounds.items():
        if hasattr(resource, name):
            _, hard = resource.getrlimit(getattr(resource, name))
            most = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(getattr(resource, name), (most, most))
    # Nothing handles the signal, so that it ends even a step that Python does not return from.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
