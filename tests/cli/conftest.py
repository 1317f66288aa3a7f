import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmq.cli.main import status

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def call(capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        code = status([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def runner():
    return CliRunner()


@pytest.fixture(scope="session")
def environment():
    """For a process of its own, which finds this checkout."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])
    kept = {name: value for name, value in os.environ.items() if name not in ("LLMQ_DEBUG", "PYTHONPATH")}
    return kept | {"PYTHONPATH": path}


@pytest.fixture(scope="session")
def spawn(environment):
    """Run a command in a process of its own."""

    def run(*arguments, **options):
        command = [sys.executable, "-m", "llmq", *map(str, arguments)]
        defaults = {"capture_output": True, "text": True, "env": environment, "timeout": 100}
        return subprocess.run(command, check=False, **(defaults | options))

    return run


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, sample_model):
    """The sample at 4 bits."""
    import llmq

    return llmq.quantize(sample_model, tmp_path_factory.mktemp("small") / "4bit").output
