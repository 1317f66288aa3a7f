import numpy as np
import pytest

import llmq
from llmq.errors import VerificationError
from llmq.onnx import agreement, export_decoder
from llmq.onnx.decoder_check import Agreement, check_file


@pytest.fixture
def graph(write_pico, tmp_path):
    return export_decoder(write_pico(tmp_path), tmp_path, compute="float32", check=False).output


def test_a_damaged_weight_is_noticed(graph):
    model = llmq.load(graph.parent, compute="float32")
    assert agreement(graph, model).relative < 1e-5
    data = graph.with_name("model.onnx.data")
    norms = np.fromfile(data, np.float32)
    norms[:64] *= -1
    norms.tofile(data)
    assert agreement(graph, model).relative > 1e-2
    norms[:64] = np.nan
    norms.tofile(data)
    assert agreement(graph, model).relative == float("inf")


def test_a_graph_that_is_not_sound(graph):
    graph.with_name("model.onnx.data").unlink()
    with pytest.raises(VerificationError, match=r"model\.onnx: not a sound graph.*model\.onnx\.data"):
        check_file(graph)
    with pytest.raises(VerificationError, match=r"model\.onnx: ONNX Runtime \S+ refuses it"):
        agreement(graph, llmq.load(graph.parent, compute="float32"))


def test_equal_logits_agree():
    assert Agreement(3, 0.0, 0.0).relative == 0.0
    assert Agreement(3, 1.0, 4.0).to_json() == {
        "tokens": 3,
        "max_difference": 1.0,
        "logits_range": 4.0,
        "relative": 0.25,
    }
