import pytest

from llmq.benchmarks.energy import EnergyMeter


@pytest.fixture
def zone(tmp_path):
    """Write a power zone."""

    def write(name, title, energy, limit=1000):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{title}\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
        (folder / "max_energy_range_uj").write_text(f"{limit}\n")

    return write


def test_packages_add_up_and_parts_of_them_do_not_count_twice(tmp_path, zone):
    zone("intel-rapl:0", "package-0", 100)
    zone("intel-rapl:1", "package-1", 200)
    zone("intel-rapl:0:0", "core", 50)
    zone("intel-rapl:2", "psys", 900)
    meter = EnergyMeter(tmp_path)
    zone("intel-rapl:0", "package-0", 150)
    zone("intel-rapl:1", "package-1", 207)
    zone("intel-rapl:0:0", "core", 99)
    zone("intel-rapl:2", "psys", 999)
    assert meter.joules() == pytest.approx(57e-6)


def test_a_counter_that_wraps(tmp_path, zone):
    zone("intel-rapl:0", "package-0", 990)
    meter = EnergyMeter(tmp_path)
    zone("intel-rapl:0", "package-0", 15)
    assert meter.joules() == pytest.approx(25e-6)


def test_nothing_to_read(tmp_path, zone):
    assert EnergyMeter(tmp_path / "none").joules() is None
    zone("intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None
