"""The `llmq` command: finds the command's file, and turns every error into a line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

import click

import llmq
from llmq.cli.settings import Settings, shown_log
from llmq.cli.stopping import interruptible
from llmq.errors import LlmqError, StoppedError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "cli", "run", "status"]

COMMANDS: Final[dict[str, str]] = {
    "sample": "Write the bundled sample model: a small real Llama.",
    "quantize": "Shrink a checkpoint.",
    "inspect": "Show what a checkpoint holds, from its headers.",
    "estimate": "Tell what quantizing would take and give, before any work.",
    "compare": "Measure the error of every quantized tensor.",
    "verify": "Check every byte of a finished output, and what it was made from.",
    "export": "Write a checkpoint in another ecosystem's format: ONNX.",
    "generate": "Go on from a prompt.",
    "chat": "Talk to a model, turn by turn.",
    "eval": "Measure perplexity, and divergence from another model.",
    "bench": "Measure the speed of matmul, generation and quantizing, and memory.",
    "doctor": "Look over this machine and installation.",
}
"""Each command's file in this package, with what `llmq --help` says of it."""

_INTERRUPTED: Final = 130
_PIPE_CLOSED: Final = 141
_NO_MEANS: Final = frozenset(
    getattr(errno, name, -1) for name in ("ENOSPC", "EDQUOT", "EFBIG", "ENOMEM", "EMFILE", "ENFILE", "EIO")
)
_OUT_OF_MEANS: Final = frozenset({"can't start new thread", "can't allocate lock", "can't allocate read lock"})
"""What Python says in a plain RuntimeError where there is no memory for a thread or a lock."""
_NO_ROOM_FOR_LIBRARY: Final = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
"""What the loader of shared libraries says where there is no memory for one."""
_UNUSABLE: Final = frozenset(getattr(errno, name, -1) for name in ("ENAMETOOLONG", "ELOOP", "EROFS"))
_CONTEXT: Final = {
    "help_option_names": ["-h", "--help"],
    # Half the field writes --group_size.
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 110,
}


class _Commands(click.Group):
    """Imports a command's file when the command is asked for, so that `llmq --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command; None where there is no such one."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"llmq.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings=_CONTEXT, epilog="`llmq COMMAND --help` tells the flags of a command.")
@click.version_option(llmq.__version__, prog_name="llmq", message="%(prog)s %(version)s")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Shrink Hugging Face LLM checkpoints on a CPU, and run them there.

    A MODEL is a folder, a .safetensors file, or a Hub repository org/name[@revision]; quantize, inspect and compare
    read https://, s3:// and gs:// folders too. Results go to stdout, everything else to stderr.
    """
    ctx.obj = Settings(quiet=quiet, verbose=verbose)
    ctx.with_resource(shown_log(ctx.obj.level))


def run() -> NoReturn:
    """Run the command that the process was started for, and exit."""
    _occupy_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    with interruptible():
        code = status(sys.argv[1:])
    _flush_streams()
    if code in (StoppedError.exit_code, _INTERRUPTED):
        os._exit(code)  # clearing all that was imported takes longer than stopping did
    sys.exit(code)


def _flush_streams() -> None:
    """Write what is left; where nobody reads it, Python finds something harmless when it closes the stream."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _occupy_streams() -> None:
    """Put something harmless where standard streams are closed.

    Else a file of ours gets the number of one, and what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free


def status(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; what went wrong is on stderr then."""
    try:
        with cli.make_context("llmq", list(arguments) or ["--help"]) as context:
            cli.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", None)
        return _INTERRUPTED
    except BrokenPipeError:
        return _PIPE_CLOSED
    except Exception as error:
        if os.environ.get("LLMQ_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        code, what, hint = _told(error)
        _complain(what, hint)
        return code
    return 0


def _complain(what: str, hint: str | None) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        click.echo(f"error: {what}", err=True)
        if hint:
            click.echo(f"hint: {hint}", err=True)


def _told(error: Exception) -> tuple[int, str, str | None]:
    """Exit code, one line and a hint for an error."""
    if isinstance(error, LlmqError):
        return error.exit_code, str(error), error.hint
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "llmq"
        return error.exit_code, _one_line(error.format_message()), f"{path} --help"
    if isinstance(error, MemoryError):
        return 5, "not enough memory" + (f": {_one_line(str(error))}" if str(error) else ""), None
    if isinstance(error, RuntimeError) and str(error) in _OUT_OF_MEANS:
        hint = "fewer --threads, or a higher limit (ulimit -u)"
        return 5, f"not enough memory or processes: {error}", hint
    if isinstance(error, ImportError) and any(words in str(error) for words in _NO_ROOM_FOR_LIBRARY):
        return 5, f"not enough memory: {_one_line(str(error))}", None
    if isinstance(error, OSError) and error.strerror:
        where = f"{printable(error.filename)}: " if error.filename is not None else ""
        return _code_of(error), f"{where}{error.strerror}", None
    what = f"{type(error).__name__}: {_one_line(str(error))}"
    return 1, what, "this should not happen; LLMQ_DEBUG=1 shows where it did"


def _code_of(error: OSError) -> int:
    if error.errno in _NO_MEANS:
        return 5
    if error.errno in _UNUSABLE:
        return 2
    known = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
    return 3 if isinstance(error, known) else 1


def _one_line(text: str) -> str:
    """`text` on one line, as an error of ours would say it."""
    line = printable(" ".join(text.split())).removesuffix(".")
    return line[:1].lower() + line[1:] if line[1:2].islower() else line
