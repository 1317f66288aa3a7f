import pytest

from llmq.system.cpus import cpu_quota


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", None)],
)
def test_version_two(tmp_path, limit, expected):
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path / "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    write(tmp_path / "sys/fs/cgroup/outer/cpu.max", limit + "\n")
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", None)])
def test_version_one(tmp_path, quota, expected):
    write(tmp_path / "proc/self/cgroup", "4:memory:/m\n1:cpu,cpuacct:/job\n")
    write(tmp_path / "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", quota + "\n")
    write(tmp_path / "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) == expected


def test_no_cgroups_at_all(tmp_path):
    assert cpu_quota(tmp_path) is None
