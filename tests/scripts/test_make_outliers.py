import json

import numpy as np
import pytest
from click.testing import CliRunner

import llmq
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_source

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64}


@pytest.fixture
def outliers(script):
    return script("make_outliers")


def tensors_of(folder):
    with open_source(str(folder)) as source:
        mapped = MappedCheckpoint(source)
        return {name: mapped.tensor(name).astype(np.float32) for name in source.tensors}


@pytest.mark.parametrize("factor", [8, 32])
def test_it_computes_the_same_with_outliers(outliers, write_pico, tmp_path, factor):
    model = write_pico(tmp_path / "m", **SHAPE)
    done = CliRunner().invoke(outliers.main, [str(model), str(tmp_path / "out"), "--factor", str(factor)])
    assert done.exit_code == 0, done.output
    tokens = np.arange(1, 40) % 50
    before, after = (llmq.load(path, compute="float32")(tokens) for path in (model, tmp_path / "out"))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())

    old, new = tensors_of(model), tensors_of(tmp_path / "out")
    config = outliers.decoder_config(json.loads((model / "config.json").read_text()))
    for site in outliers.sites(config):
        ratio = new[site.writer] / old[site.writer]
        # A row's own factor: some of its columns are smaller, for what is before it.
        rows = ratio if ratio.ndim == 1 else np.median(ratio, axis=1)
        assert np.sum(rows == factor) == 1, site
        assert set(np.unique(rows)) == {1.0, factor}
    for name, tensor in new.items():
        ratios = np.unique(tensor[old[name] != 0] / old[name][old[name] != 0])
        assert set(ratios) <= {1.0 / factor, 1.0, float(factor)}, name


def test_a_value_channel_is_read_by_every_query_head_of_its_group(outliers):
    site = outliers.Site("v", ("o",), 4, heads=(2, 4))
    assert site.columns(np.array([0, 3])).tolist() == [0, 2, 5, 7]
    assert outliers.Site("up", ("down",), 4).columns(np.array([2, 1])).tolist() == [2, 1]


def test_what_is_not_exact_is_refused(outliers, write_pico, tmp_path):
    model = write_pico(tmp_path / "m")
    done = CliRunner().invoke(outliers.main, [str(model), str(tmp_path / "out"), "--factor", "12"])
    assert done.exit_code == 2
    assert "not a power of two" in done.output
    assert not (tmp_path / "out").exists()


def test_the_seed_decides_which_channels(outliers, write_pico, tmp_path):
    model = write_pico(tmp_path / "m", **SHAPE)
    made = []
    for number, seed in enumerate((1, 1, 2)):
        outliers.make(model, tmp_path / f"out{number}", 0.05, 8, seed)
        made.append((tmp_path / f"out{number}" / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_full_folder_is_left_alone(outliers, write_pico, tmp_path):
    model = write_pico(tmp_path / "m")
    done = CliRunner().invoke(outliers.main, [str(model), str(model)])
    assert done.exit_code == 1
    assert "the folder is not empty" in done.output
