"""What a power failure leaves, by a log of calls."""

import os
import random

import pytest

from tortures.power import Disk

CREATED = os.O_CREAT | os.O_RDWR


@pytest.fixture
def disk(tmp_path):
    """A disk that saw some calls; `(name, path, second, place, result)` each."""

    def make(*calls):
        log = tmp_path / "log"
        lines = [f"1\t{name}\t{tmp_path / path}\t{tmp_path / second if second else ''}\t{place}\t{result}\n"
                 for name, path, second, place, result in calls]  # fmt: skip
        log.write_text("".join(lines))
        found = Disk()
        found.replay(log)
        return found

    return make


WRITTEN = (("open", "f", "", CREATED, 3), ("write", "f", "", 0, 4))
SYNCED = (*WRITTEN, ("fsync", "f", "", 0, 0), ("fsync", ".", "", 0, 0))


def test_what_is_synced_stays(disk, tmp_path):
    for seed in range(20):
        (tmp_path / "f").write_bytes(b"data")
        assert disk(*SYNCED).lose(random.Random(seed)) == 0
        assert (tmp_path / "f").read_bytes() == b"data"


def test_what_is_not_synced_can_be_lost_in_every_way(disk, tmp_path):
    seen = set()
    for seed in range(60):
        (tmp_path / "f").write_bytes(b"data")
        assert disk(*WRITTEN).lose(random.Random(seed)) > 0
        seen.add((tmp_path / "f").read_bytes() if (tmp_path / "f").exists() else None)
    assert seen == {b"data", b"\0\0\0\0", b"", None}


def test_only_what_was_written_since_is_lost(disk, tmp_path):
    (tmp_path / "f").write_bytes(b"datamore")
    for seed in range(20):
        disk(*SYNCED, ("pwrite", "f", "", 4, 4)).lose(random.Random(seed))
        assert (tmp_path / "f").read_bytes()[:4] == b"data"


def test_a_rename_can_be_undone_until_its_folder_is_synced(disk, tmp_path):
    seen = set()
    for seed in range(20):
        (tmp_path / "f").unlink(missing_ok=True)
        (tmp_path / "g").write_bytes(b"data")
        disk(*SYNCED, ("rename", "f", "g", 0, 0)).lose(random.Random(seed))
        seen.add((tmp_path / "g").exists())
    assert seen == {True, False}
    (tmp_path / "g").write_bytes(b"data")
    assert disk(*SYNCED, ("rename", "f", "g", 0, 0), ("fsync", ".", "", 0, 0)).lose(random.Random(1)) == 0


def test_calls_that_failed_did_nothing(disk, tmp_path):
    assert disk(*SYNCED, ("pwrite", "f", "", 4, -1), ("rename", "f", "g", 0, -1)).lose(random.Random(1)) == 0
