"""The sections of `make torture`, a sample of each, and what they share."""

import pytest

from tortures.faults import scenes
from tortures.hosting import Host
from tortures.shim import NoShimError, build
from tortures.subject import make_subject


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The compiled shim; tests are skipped where there is no compiler."""
    try:
        return build(tmp_path_factory.mktemp("shim"))
    except NoShimError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def subject(tmp_path_factory):
    """A tiny checkpoint and its output; the folder `scratch` of it holds both."""
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="session")
def host(shim, tmp_path_factory):
    """A process that forks a child for every run."""
    with Host(tmp_path_factory.mktemp("host")) as started:
        yield started


@pytest.fixture(scope="session")
def stage(host, subject, tmp_path_factory):
    """A new output, one that is resumed, and one that replaces another."""
    return scenes(host, subject, tmp_path_factory.mktemp("scenes"))
