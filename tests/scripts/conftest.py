import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def script():
    """Import a script by its name; scripts find each other as they do when they are run."""
    sys.path.insert(0, str(SCRIPTS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def sample(script, tmp_path_factory):
    """The sample model, as lessons look at it."""
    return script("lesson_sample").Sample(tmp_path_factory.mktemp("lessons") / "sample")
