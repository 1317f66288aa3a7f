"""What `llmq estimate` reckons, beside what a run gives."""

import json

import fsspec
import pytest

import llmq
from llmq.architectures import decoder_config
from llmq.benchmarks import machine
from llmq.benchmarks.estimate import Rates, Wishes, estimate
from llmq.checkpoint.source import open_source
from llmq.errors import UsageError
from llmq.plan.goals import RUN_BYTES
from llmq.runtime.residency import Room, plan_residency

RATES = Rates(source=1e6, disk=2e6, stream=1e6, memory=1e9, weights={8: 1e6, 4: 2e6, 2: 4e6}, processor=1e-8, far=False)


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
    room = Room(1 << 40, 512, 16, RUN_BYTES)
    with open_source(report.output) as source:
        assert option.run_bytes == plan_residency(source.tensors, decoder_config(source.config), room).peak_bytes
    assert option.fits
    assert option.download_bytes == 0


def test_time_and_speed_follow_from_rates(sample_model, tmp_path):
    found = reckon(sample_model, tmp_path)
    option = found.options[1]
    report = llmq.quantize(sample_model, tmp_path / "out", bits=4, dry_run=True)
    elements = sum(tensor.parameters for tensor in report.plan.quantized)
    near = elements / 2e6 + option.output_bytes / 2e6 + found.source_bytes / 1e6
    assert option.seconds == pytest.approx(near, abs=3)
    slow = Rates(source=1e5, disk=2e6, stream=1e6, memory=1e9, weights=RATES.weights, processor=1e-8, far=True)
    assert reckon(sample_model, tmp_path, slow).options[1].seconds == pytest.approx(found.source_bytes / 1e5, abs=3)
    busy = Rates(source=1e9, disk=2e6, stream=1e6, memory=1e9, weights=RATES.weights, processor=1e-5, far=True)
    beside = elements / 2e6 + option.output_bytes / 2e6 + 1e-5 * found.source_bytes
    assert reckon(sample_model, tmp_path, busy).options[1].seconds == pytest.approx(beside, abs=3)
    table = next(t.output_bytes for t in report.plan.tensors if "embed" in t.name)
    assert option.tokens_per_second == pytest.approx(1e9 / (option.output_bytes - table))


def test_what_does_not_fit(sample_model, tmp_path):
    found = reckon(sample_model, tmp_path, ram=RUN_BYTES, context=64)
    assert [option.fits for option in found.options] == [False] * 3
    assert [option.resident_blocks for option in found.options] == [0] * 3
    assert [option.tokens_per_second for option in found.options] == [None] * 3
    with pytest.raises(UsageError, match="--context is longer"):
        reckon(sample_model, tmp_path, context=1 << 30)
    with pytest.raises(UsageError, match="only methods without data"):
        reckon(sample_model, tmp_path, method="gptq")


def test_what_fits_in_part(sample_model, tmp_path):
    whole = reckon(sample_model, tmp_path, ram=1 << 40, context=64).options[0]
    assert (whole.fits, whole.resident_blocks, whole.blocks, whole.streamed_bytes) == (True, 6, 6, 0)
    report = llmq.quantize(sample_model, tmp_path / "out", bits=8)
    assert report.output.is_dir()
    needs = [
        reckon(sample_model, tmp_path, ram=ram, context=64).options[0]
        for ram in range(RUN_BYTES, RUN_BYTES + whole.output_bytes + (4 << 20), 1 << 18)
    ]
    part = [option for option in needs if 0 < (option.resident_blocks or 0) < 6]
    assert part
    for option in part:
        assert not option.fits
        assert option.tokens_per_second == pytest.approx(1e6 / option.streamed_bytes)
        assert option.streamed_bytes < whole.output_bytes
    staying = [option.resident_blocks for option in needs]
    assert staying == sorted(staying)
    assert needs[-1].fits


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
    assert min(found.rates.source, found.rates.disk, found.rates.stream, found.rates.memory, found.rates.weights[4]) > 0
    system.store.clear()


def test_rates_leave_nothing_behind(tmp_path):
    assert machine.disk_rate(tmp_path) > 0
    assert machine.stream_rate(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
