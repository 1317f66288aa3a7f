"""Bits of a small output flipped: all of `llmq.json`'s last lines, and a sample of every file's."""

import pytest

from tortures.flips import Flip, flips_of, small_output, try_flips


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_output(tmp_path_factory.mktemp("flips"))


def test_a_sample_of_all_flips_is_found_and_survived(output, tmp_path):
    flips = flips_of(output, 509)
    assert {flip.file for flip in flips} == {path.name for path in output.iterdir()}
    found = try_flips(output, tmp_path / "copy", flips)
    assert (found.flips, found.missed, found.crashed, found.first) == (len(flips), 0, 0, "")
    assert 0 < found.refused < found.loads < found.flips


def test_the_end_of_the_manifest(output, tmp_path):
    """Its own checksum, and what stands around it."""
    size = (output / "llmq.json").stat().st_size
    flips = [Flip("llmq.json", place, place % 8, load=False) for place in range(size - 90, size)]
    found = try_flips(output, tmp_path / "copy", flips)
    assert (found.flips, found.missed) == (90, 0)


def test_what_is_missed_is_counted(output, tmp_path, monkeypatch):
    """The torture itself: a verification that finds nothing is a miss each time."""
    import llmq
    from llmq.verification import Verification

    monkeypatch.setattr(llmq, "verify", lambda folder: Verification(folder, 0, 0, 0, ()))
    found = try_flips(output, tmp_path / "copy", [Flip("llmq.json", 5, 0, load=False)])
    assert (found.flips, found.missed) == (1, 1)
    assert "verify found []" in found.first
