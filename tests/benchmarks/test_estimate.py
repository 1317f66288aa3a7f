"""What `llmq estimate` reckons, beside what a run gives."""

import json

import fsspec
import pytest

import llmq
from llmq.benchmarks import machine
from llmq.benchmarks.estimate import Rates, Wishes, estimate
from llmq.checkpoint.source import open_source
from llmq.errors import UsageError
from llmq.plan.goals import RUN_BYTES

RATES = Rates(source=1e6, disk=2e6, memory=1e9, weights={8: 1e6, 4: 2e6, 2: 4e6}, far=False)


def reckon(folder, tmp_path, rates=RATES, **wishes):
    with open_source(folder) as source:
        return estimate(source, Wishes(**wishes), tmp_path, lambda: rates)


def test_sizes_are_those_of_the_run(sample_model, tmp_path):
    found = reckon(sample_model, tmp_path, context=512, ram=1 << 30)
    assert [option.bits for option in found.options] == [8, 4, 2]
    option = found.options[1]
    report = llmq.quantize(sample_model, tmp_path / "out", bits=4)
    assert option.output_bytes == report.plan.output_bytes
    assert option.bits_per_weight == report.plan.bits_per_weight
    assert option.peak_bytes == report.plan.predicted_peak_bytes
    taken = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert option.disk_bytes == pytest.approx(taken, rel=0.03)
    assert option.run_bytes == option.output_bytes + found.kv_bytes + RUN_BYTES
    assert option.fits
    assert option.download_bytes == 0


def test_time_and_speed_follow_from_rates(sample_model, tmp_path):
    found = reckon(sample_model, tmp_path)
    option = found.options[1]
    report = llmq.quantize(sample_model, tmp_path / "out", bits=4, dry_run=True)
    elements = sum(tensor.parameters for tensor in report.plan.quantized)
    near = elements / 2e6 + option.output_bytes / 2e6 + found.source_bytes / 1e6
    assert option.seconds == pytest.approx(near, abs=3)
    slow = Rates(source=1e5, disk=2e6, memory=1e9, weights=RATES.weights, far=True)
    assert reckon(sample_model, tmp_path, slow).options[1].seconds == pytest.approx(found.source_bytes / 1e5, abs=3)
    table = next(t.output_bytes for t in report.plan.tensors if "embed" in t.name)
    assert option.tokens_per_second == pytest.approx(1e9 / (option.output_bytes - table))


def test_what_does_not_fit(sample_model, tmp_path):
    found = reckon(sample_model, tmp_path, ram=RUN_BYTES, context=64)
    assert [option.fits for option in found.options] == [False] * 3
    with pytest.raises(UsageError, match="--context is longer"):
        reckon(sample_model, tmp_path, context=1 << 30)
    with pytest.raises(UsageError, match="only methods without data"):
        reckon(sample_model, tmp_path, method="gptq")


def test_an_architecture_that_llmq_cannot_run(tmp_path, write_pico):
    folder = write_pico(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of", "architectures": ["Odd"]}))
    found = reckon(folder, tmp_path)
    assert (found.kv_bytes, found.options[0].run_bytes, found.options[0].tokens_per_second) == (None, None, None)
    assert found.options[0].output_bytes > 0


def test_a_source_elsewhere_is_downloaded(tmp_path, write_pico):
    system = fsspec.filesystem("memory")
    for path in write_pico(tmp_path / "near").iterdir():
        system.pipe_file(f"/estimates/{path.name}", path.read_bytes())
    with open_source("memory://estimates") as source:
        found = estimate(source, Wishes(bits=(4,)), tmp_path)
    assert found.rates.far
    assert found.options[0].download_bytes == found.source_bytes
    assert min(found.rates.source, found.rates.disk, found.rates.memory, found.rates.weights[4]) > 0
    system.store.clear()


def test_rates_leave_nothing_behind(tmp_path):
    assert machine.disk_rate(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
