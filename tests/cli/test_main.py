import errno
import signal
import subprocess
import sys
import time
from importlib import import_module

import click
import pytest

import llmq
from llmq.cli.main import COMMANDS, cli
from llmq.errors import ResourceError, StoppedError, UsageError


@pytest.fixture
def failing(monkeypatch, call):
    """Run `llmq sample` with something that raises instead of its work."""

    def run(error):
        def fail(folder):
            raise error

        monkeypatch.setattr("llmq.sample.write_sample", fail)
        return call("sample", "anywhere")

    return run


def test_help_is_quick_and_imports_nothing_heavy(environment):
    code = (
        "import sys; from llmq.cli.main import status; code = status(['--help'])\n"
        "print(sorted({'numba', 'transformers', 'numpy', 'torch', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    best = 10.0
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - began)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in COMMANDS)
    assert best < 0.3


def test_the_help_of_a_command_imports_no_kernels(environment):
    code = (
        "import sys; from llmq.cli.main import COMMANDS, status\n"
        "for name in COMMANDS: status([name, '--help'])\n"
        "print(sorted({'numba', 'transformers', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_module_runs_as_a_program(spawn):
    done = spawn("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"llmq {llmq.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_json_and_kebab_case(name, call):
    command = import_module(f"llmq.cli.{name}").command
    for one in command.commands.values() if isinstance(command, click.Group) else [command]:
        options = [opt for p in one.params if isinstance(p, click.Option) for opt in (*p.opts, *p.secondary_opts)]
        assert "--json" in options
        assert not any("_" in option for option in options)
    code, out, _ = call(name, "-h")
    assert code == 0
    assert f"Usage: llmq {name}" in out


def test_nothing_asked_shows_help(call):
    code, out, _ = call()
    assert code == 0
    assert "Commands:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "error: no such command 'nosuch'"),
        (["sample"], "error: missing argument 'DIR'"),
        (["sample", "--nosuch", "x"], "error: no such option '--nosuch'"),
        (["generate", "m", "-p", "x", "-m", "0"], "error: invalid value for '-m' / '--max-tokens'"),
        (
            ["generate", "m", "-p", "x", "--max-memory", "lots"],
            "error: invalid value for '--max-memory': 'lots' is not",
        ),
    ],
)
def test_usage_errors_are_two_lines(call, arguments, message):
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    error, hint = err.splitlines()
    assert error.startswith(message)
    assert hint.startswith("hint: llmq")
    assert hint.endswith("--help")


def test_snake_case_is_accepted(call):
    code, _, err = call("generate", "/nowhere", "-p", "x", "--max_tokens", "3", "--top_k", "1")
    assert code == 3
    assert "no such option" not in err.lower()


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UsageError("bad", file="f", tensor="t", hint="do"), 2, ["error: f: t: bad", "hint: do"]),
        (ResourceError("no room", expected=1, found=2), 5, ["error: no room (expected 1, found 2)"]),
        (StoppedError("stopped"), 75, ["error: stopped"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (MemoryError(), 5, ["error: not enough memory"]),
        (
            RuntimeError("can't start new thread"),
            5,
            [
                "error: not enough memory or processes: can't start new thread",
                "hint: fewer --threads, or a higher limit (ulimit -u)",
            ],
        ),
        (BrokenPipeError(), 141, []),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 5, ["error: out: No space left on device"]),
        (OSError(errno.EFBIG, "File too large", "out"), 5, ["error: out: File too large"]),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 3, ["error: out: Permission denied"]),
        (
            ImportError("x.so: failed to map segment from shared object"),
            5,
            ["error: not enough memory: x.so: failed to map segment from shared object"],
        ),
        (
            KeyError("x\ny\x1b[2J"),
            1,
            ["error: KeyError: 'x\\ny\\x1b[2J'", "hint: this should not happen; LLMQ_DEBUG=1 shows where it did"],
        ),
    ],
)
def test_errors_have_one_line_and_their_exit_code(failing, monkeypatch, error, code, lines):
    monkeypatch.delenv("LLMQ_DEBUG", raising=False)
    found, out, err = failing(error)
    assert found == code
    assert out == ""
    assert err.splitlines() == lines


def test_a_traceback_is_shown_on_demand(failing, monkeypatch):
    monkeypatch.setenv("LLMQ_DEBUG", "1")
    _, _, err = failing(UsageError("bad"))
    assert err.startswith("Traceback")
    assert err.splitlines()[-1] == "error: bad"


def test_a_closed_pipe_ends_quietly(spawn, environment, sample_model, tmp_path):
    program = f"import sys; sys.argv = ['llmq', 'inspect', {str(sample_model)!r}, '--json']\n"
    program += "from llmq.cli.main import run; sys.stdin.readline(); run()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise")
@pytest.mark.parametrize(("name", "command", "code"), [("stdout", "inspect", 3), ("stderr", "--help", 0)])
def test_half_a_line_that_nobody_reads(name, command, code, environment, tmp_path):
    # Python would exit with 120 where it cannot write what is left.
    program = (
        f"import sys; from llmq.cli.main import run; sys.stdin.readline(); sys.{name}.write('half')\n"
        f"sys.argv = ['llmq', {command!r}, {str(tmp_path / 'absent')!r}]; run()"
    )
    pipe, environment = subprocess.PIPE, environment | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        getattr(process, name).close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.wait(60) == code


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_ends_with_130(environment, tmp_path):
    program = (
        "import llmq.sample, time, sys\n"
        "def slow(folder): print('ready', flush=True); time.sleep(60)\n"
        "llmq.sample.write_sample = slow\n"
        "sys.argv = ['llmq', 'sample', 'x']\n"
        "from llmq.cli.main import run; run()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "error: interrupted\n"


def test_commands_are_listed_without_being_imported():
    with click.Context(cli) as context:
        assert cli.list_commands(context) == list(COMMANDS)
        assert cli.get_command(context, "nosuch") is None
