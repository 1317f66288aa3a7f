"""Whole decoders in ONNX Runtime, against llmq with exact activations."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

import llmq
from llmq.errors import UnsupportedError
from llmq.onnx import export_decoder

EXACT = 1e-5
TOKENS = np.random.default_rng(3).integers(2, 96, 17)


class Graph:
    """Runs a decoder graph: only its names of inputs and outputs are known."""

    def __init__(self, path, level=None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        if level is not None:
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.caches = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        self.outputs = ["logits", *(i.name.replace("past_key_values", "present") for i in self.caches)]

    def __call__(self, tokens, *, steps=(), mask=None):
        """Logits of all tokens (batch, n), fed in pieces that end at `steps`."""
        tokens = np.atleast_2d(tokens)
        mask = np.ones_like(tokens) if mask is None else np.asarray(mask)
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
        past = [np.zeros((len(tokens), i.shape[1], 0, i.shape[3]), np.float32) for i in self.caches]
        found, start = [], 0
        for end in (*steps, tokens.shape[1]):
            feed = {
                "input_ids": tokens[:, start:end],
                "attention_mask": mask[:, :end],
                "position_ids": positions[:, start:end],
            }
            feed |= {i.name: array for i, array in zip(self.caches, past, strict=True)}
            logits, *past = self.session.run(self.outputs, feed)
            found.append(logits)
            start = end
        return np.concatenate(found, axis=1)


def apart(found, expected):
    """Largest difference over the range of what is expected."""
    return float(np.abs(found - expected).max() / np.ptp(expected))


def family(model_type):
    """Configuration and further tensors of a tiny model of some family."""
    rng = np.random.default_rng(7)

    def vectors(sizes):
        names = [f"model.layers.{layer}.{name}" for layer in range(2) for name in sizes]
        return {n: (rng.standard_normal(sizes[n.split(".", 3)[3]]) * 0.3).astype(np.float32) for n in names}

    biases = {"self_attn.q_proj.bias": 64, "self_attn.k_proj.bias": 32, "self_attn.v_proj.bias": 32}
    mlp = {"mlp.gate_proj.bias": 128, "mlp.up_proj.bias": 128, "mlp.down_proj.bias": 64}
    norms = {"self_attn.q_norm.weight": 16, "self_attn.k_norm.weight": 16}
    configs = {
        "llama": ({}, {}),
        "biased": ({"attention_bias": True, "mlp_bias": True}, biases | {"self_attn.o_proj.bias": 64} | mlp),
        "mistral": ({"model_type": "mistral", "sliding_window": 5}, {}),
        "qwen2": ({"model_type": "qwen2"}, biases),
        "qwen3": ({"model_type": "qwen3"}, norms),
    }
    config, sizes = configs[model_type]
    return config, vectors(sizes)


@pytest.fixture(scope="module")
def write_family(write_pico):
    """Write a tiny model of some family: `write_family(folder, "qwen3")`, with what `write_pico` takes."""

    def write(folder, name, **options):
        config, tensors = family(name)
        return write_pico(folder, edit=tensors, **(config | options))

    return write


def export(model, folder, **options):
    """Export with exact products; the runs of the tests take the place of the one that exporting makes."""
    return export_decoder(model, folder / "model.onnx", **({"compute": "float32", "check": False} | options)).output


def quantize(model, folder, **options):
    return llmq.quantize(model, folder, **({"bits": 4, "group_size": 32} | options)).output


@pytest.mark.parametrize("family", ["llama", "biased", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("packed", [False, True])
def test_families(family, packed, write_family, tmp_path):
    model = write_family(tmp_path / "model", family)
    model = quantize(model, tmp_path / "packed") if packed else model
    graph = Graph(export(model, model))
    expected = llmq.load(model, compute="float32")(TOKENS)
    assert apart(graph(TOKENS)[0], expected) < EXACT
    assert apart(graph(TOKENS, steps=range(9, 17))[0], expected) < EXACT
    assert apart(graph(TOKENS, steps=(6, 7, 12))[0], expected) < EXACT


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_batch_padded_on_the_left(family, write_family, tmp_path):
    model = quantize(write_family(tmp_path / "model", family), tmp_path / "packed")
    graph, ours = Graph(export(model, model)), llmq.load(model, compute="float32")
    texts = np.stack([TOKENS, np.concatenate([np.zeros(6, np.int64), TOKENS[:11]])])
    mask = np.ones_like(texts)
    mask[1, :6] = 0
    for steps in ((), range(10, 17)):
        found = graph(texts, steps=steps, mask=mask)
        assert np.isfinite(found).all()
        assert apart(found[0], ours(TOKENS)) < EXACT
        assert apart(found[1, 6:], ours(TOKENS[:11])) < EXACT


ROPES = {
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"factor": 2.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_positions(kind, write_pico, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 10000.0} | ROPES[kind]
    model = write_pico(tmp_path, rope_parameters=rope, max_position_embeddings=48)
    graph, ours = Graph(export(model, model)), llmq.load(model, compute="float32")
    long = np.random.default_rng(5).integers(2, 96, 70)  # beyond what a dynamic rope leaves as it is
    for tokens in (TOKENS, long):
        assert apart(graph(tokens)[0], ours(tokens)) < EXACT
    assert apart(graph(TOKENS, steps=(9, 10))[0], ours(TOKENS)) < EXACT


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_widths(bits, symmetric, write_pico, tmp_path):
    model = write_pico(tmp_path / "model")
    model = quantize(model, tmp_path / "packed", bits=bits, symmetric=symmetric, lm_head=bits)
    path = export(model, model)
    expected = llmq.load(model, compute="float32")(TOKENS)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        graph = Graph(path, level)
        assert apart(graph(TOKENS, steps=(12, 13))[0], expected) < EXACT


@pytest.mark.parametrize(
    ("group_size", "dtype", "symmetric"),
    [
        (16, "bfloat16", False),
        (16, "float16", True),
        (32, "float16", False),
        (32, "float32", True),
        (64, "float32", False),
        (64, "bfloat16", True),
        (-1, "bfloat16", False),
        (-1, "float16", True),
    ],
)
def test_groups_and_dtypes(group_size, dtype, symmetric, write_pico, tmp_path):
    model = write_pico(tmp_path / "model", dtype=dtype)
    model = quantize(model, tmp_path / "packed", group_size=group_size, symmetric=symmetric)
    ours = llmq.load(model, compute="float32")
    assert apart(Graph(export(model, model))(TOKENS)[0], ours(TOKENS)) < EXACT


def test_groups_that_are_no_power_of_two(write_pico, tmp_path):
    model = write_pico(tmp_path / "model", hidden_size=96, intermediate_size=192, num_attention_heads=6)
    model = quantize(model, tmp_path / "packed", group_size=48, symmetric=False)
    ours = llmq.load(model, compute="float32")
    assert apart(Graph(export(model, model))(TOKENS)[0], ours(TOKENS)) < EXACT


def test_negative_scales(write_pico, tmp_path):
    model = quantize(write_pico(tmp_path / "model"), tmp_path / "packed")
    weight = llmq.load(model, compute="float32").decoder.blocks[0].attention.q.weight
    assert (np.asarray(weight.scale, np.float32) < 0).any()
    expected = llmq.load(model, compute="float32")(TOKENS)
    for compute, most in (("float32", EXACT), ("int8", 0.05)):
        path = export(model, model, compute=compute, overwrite=True)
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
            assert apart(Graph(path, level)(TOKENS, steps=(16,))[0], expected) < most


@pytest.mark.parametrize("embeddings", ["keep", 8, 4, 2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_and_tables(embeddings, tied, write_pico, tmp_path):
    model = write_pico(tmp_path / "model", tie_word_embeddings=tied)
    model = quantize(model, tmp_path / "packed", embeddings=embeddings, symmetric=embeddings != 4)
    ours = llmq.load(model, compute="float32")
    assert apart(Graph(export(model, model))(TOKENS, steps=(16,))[0], ours(TOKENS)) < EXACT


def test_shards(write_pico, tmp_path):
    model = write_pico(tmp_path / "model", shards=3)
    path = export(model, tmp_path / "elsewhere")
    assert len(list(path.parent.glob("*.safetensors"))) == 3
    ours = llmq.load(model, compute="float32")
    assert apart(Graph(path)(TOKENS)[0], ours(TOKENS)) < EXACT


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_sample(bits, sample_model, tmp_path):
    model = quantize(sample_model, tmp_path / "packed", bits=bits, group_size=64)
    ours = llmq.load(model, compute="float32")
    tokens = np.asarray(Tokenizer.from_file(str(model / "tokenizer.json")).encode("It was a dark night, and he").ids)
    expected = ours(tokens)
    graph = Graph(export(model, model))
    assert apart(graph(tokens)[0], expected) < EXACT
    assert apart(graph(tokens, steps=range(4, len(tokens)))[0], expected) < EXACT
    quick = Graph(export(model, model, compute="int8", overwrite=True))
    found = quick(tokens, steps=range(4, len(tokens)))[0]
    assert EXACT < apart(found, expected) < 0.03


def test_packed_bytes_are_used_where_they_stand(write_pico, tmp_path):
    model = quantize(write_pico(tmp_path / "model", dtype="float32"), tmp_path / "packed", embeddings=8)
    graph = onnx.load(export(model, model), load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}
    packed = [name for name in places if ".weight_packed" in name]
    assert len(packed) > 10
    assert {places[name]["location"] for name in packed} == {"model.safetensors"}
    own = [name for name, place in places.items() if place["location"] == "model.onnx.data"]
    assert all("norm" in name for name in own)  # scales are float32 already
    weight = llmq.load(model).decoder.blocks[0].mlp.down.weight
    place = places["model.layers.0.mlp.down_proj.weight_packed.blocks"]
    with (model / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        assert file.read(int(place["length"])) == weight.packed.tobytes()


def test_names_are_those_of_optimum(write_pico, tmp_path):
    model = write_pico(tmp_path)
    found = export_decoder(model, tmp_path, check=False)
    cache = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert [i["name"] for i in found.inputs] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{name}" for name in cache),
    ]
    assert [o["name"] for o in found.outputs] == ["logits", *(f"present.{name}" for name in cache)]
    assert found.inputs[3]["shape"] == ["batch_size", 2, "past_sequence_length", 16]
    assert found.outputs[0]["shape"] == ["batch_size", "sequence_length", 96]
    assert {i["dtype"] for i in found.inputs} == {"int64", "float32"}
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    about = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx", load_external_data=False).metadata_props}
    size = (tmp_path / "model.safetensors").stat().st_size
    assert json.loads(about["llmq.weights"])["model.safetensors"]["size"] == size


def test_logits_of_the_last_token_only(write_pico, tmp_path):
    model = write_pico(tmp_path)
    found = Graph(export(model, model, logits="last"))(TOKENS, steps=(10,))
    assert found.shape == (1, 2, 96)
    expected = llmq.load(model, compute="float32")(TOKENS)
    assert apart(found[0], expected[[9, 16]]) < EXACT


def test_what_has_no_such_graph(write_pico, tmp_path):
    model = quantize(write_pico(tmp_path / "model"), tmp_path / "packed", group_size=8)
    with pytest.raises(UnsupportedError, match=r"self_attn\.q_proj.*multiple of 16, found group size 8") as caught:
        export(model, tmp_path / "out")
    assert "--for onnx" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_what_takes_more_than_one_would_think_is_told(write_pico, caplog, tmp_path):
    model = write_pico(tmp_path / "model")
    export(quantize(model, tmp_path / "three", bits=3), tmp_path / "one")
    assert "weights are written anew with 2, 4 or 8 bits" in caplog.text
    caplog.clear()
    two = quantize(model, tmp_path / "two", bits=2)
    caplog.clear()
    export(two, tmp_path / "other", compute="int8")
    assert not caplog.records
    export(two, tmp_path / "third")
    assert "weights of 2 bits are slow" in caplog.text
