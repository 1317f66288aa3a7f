import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmq

ROOT = Path(__file__).parent.parent


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_is_a_folder_and_never_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "kernels" / "llmq_kernels" / "__init__.py").exists()


OTHER_KERNELS = """
__version__ = "0.18.2"


class Anything:
    def __init__(self, *args, **kwargs): ...

    def __call__(self, decorated):
        return decorated


def __getattr__(name):
    return Anything
"""


@pytest.mark.parametrize("beside", [False, True])
def test_transformers_works_from_the_repository_root(tmp_path, beside):
    """Our folder comes first on the path, and must neither be taken for the distribution `kernels` nor hide it."""
    if beside:
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels" / "__init__.py").write_text(OTHER_KERNELS)
        info = tmp_path / "kernels-0.18.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
        (info / "RECORD").write_text("kernels/__init__.py,,\n")
    run = python(
        "import sys, llmq, transformers; transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM;"
        "import kernels; print(kernels.__file__)",
        PYTHONPATH=f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{tmp_path}",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == (str(tmp_path / "kernels" / "__init__.py") if beside else "None")


def test_importing_llmq_is_free():
    code = "import sys, llmq; print({'numpy', 'numba', 'transformers', 'torch', 'click'} & set(sys.modules))"
    assert python(code).stdout.strip() == "set()"


def test_idle_threads_sleep_unless_told_otherwise():
    code = "import os, llmq; print(os.environ['OMP_WAIT_POLICY'])"
    assert python(code, OMP_WAIT_POLICY="active").stdout.strip() == "active"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "passive"


def test_every_public_name_can_be_had():
    assert all(getattr(llmq, name) is not None for name in llmq.__all__)
    assert set(llmq.__all__) <= set(dir(llmq))
    with pytest.raises(AttributeError):
        _ = llmq.nothing
