import numpy as np

from llmq.benchmarks import files
from llmq.benchmarks.files import StreamedWeights
from llmq.benchmarks.generate import width_of
from llmq.checkpoint.source import open_source


def read_bytes(weights, monkeypatch):
    read = []
    monkeypatch.setattr(files, "checksum", lambda data: read.append(bytes(data)))
    weights.read()
    return b"".join(read)


def sizes_of(folder):
    with open_source(folder) as source:
        return {name: info.nbytes for name, info in source.tensors.items()}


def test_a_token_reads_all_but_the_table(tmp_path, write_pico, monkeypatch):
    folder = write_pico(tmp_path / "m", shards=3)
    sizes = sizes_of(folder)
    weights = StreamedWeights(folder)
    assert weights.nbytes == sum(sizes.values()) - sizes["model.embed_tokens.weight"]
    assert len(read_bytes(weights, monkeypatch)) == weights.nbytes


def test_a_tied_table_is_the_head(tmp_path, write_pico, monkeypatch):
    folder = write_pico(tmp_path / "m", tie_word_embeddings=True)
    weights = StreamedWeights(folder)
    assert weights.nbytes == sum(sizes_of(folder).values())
    assert read_bytes(weights, monkeypatch) == (folder / "model.safetensors").read_bytes()[-weights.nbytes :]


def test_all_of_a_checkpoint(tmp_path, write_pico):
    folder = write_pico(tmp_path / "m")
    assert StreamedWeights(folder, whole=True).nbytes == sum(sizes_of(folder).values())


def test_widths(tmp_path, write_pico):
    import llmq

    source = write_pico(tmp_path / "m")
    assert width_of(source) == (None, None)
    packed = llmq.quantize(source, tmp_path / "q", bits=2, group_size=16).output
    assert width_of(packed) == (2, 16)
    assert np.isfinite(StreamedWeights(packed).nbytes)
