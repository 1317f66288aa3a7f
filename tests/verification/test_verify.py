"""Outputs of every kind are whole; whatever is changed in one is found and named."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tampering import change_json, replace_file, rewrite_manifest, told

import llmq
from llmq.checkpoint.certificate import add_evaluation
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.pipeline import write_given


def test_a_whole_output(made):
    found = llmq.verify(made)
    assert (found.ok, found.problems, found.notes) == (True, (), ())
    names = {path.name for path in made.iterdir()}
    assert found.files == len(names) == 9
    stored = [load_file(path) for path in made.glob("*.safetensors")]
    assert found.tensors == sum(map(len, stored))
    assert found.nbytes == sum(p.stat().st_size for p in made.iterdir() if p.name != "llmq.json")
    assert found.agreement is None


KINDS = {
    "1 bit": {"bits": 1},
    "3 bits asymmetric": {"bits": 3, "symmetric": False, "group_size": 16},
    "rows": {"bits": 8, "group_size": -1},
    "tables": {"bits": 2, "lm_head": 4, "embeddings": 8, "group_size": 32},
    "mixed": {"overrides": ["down_proj=bits:8,group:32", r"layers\.0\..*q_proj=bits:3"], "range": "narrow"},
    "rtn": {"method": "rtn"},
    "hqq": {"method": "hqq", "symmetric": False},
    "by size": {"target_bpw": 3.6, "importance": "priors"},
    "one shard": {"max_shard_size": 1 << 30},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("full", [False, True])
def test_outputs_of_every_kind_agree_with_their_source(source, tmp_path, name, full):
    out = llmq.quantize(source, tmp_path / "out", **({"max_shard_size": 30_000} | KINDS[name])).output
    found = llmq.verify(out, against=source, full=full)
    assert found.problems == ()
    assert found.agreement.exact == found.agreement.blocks >= found.agreement.tensors == 21
    assert found.agreement.near == 0
    assert 0.5 < found.agreement.share <= 1.0
    assert found.agreement.share == 1.0 or not full


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sources_of_every_dtype(write_pico, tmp_path, dtype):
    write_pico(tmp_path / "in", dtype=dtype)
    out = llmq.quantize(tmp_path / "in", tmp_path / "out").output
    found = llmq.verify(out, against=tmp_path / "in")
    assert (found.problems, found.agreement.exact) == ((), found.agreement.blocks)


def test_a_single_file_and_eight_bit_floats(source, write_pico, tmp_path):
    from safetensors.numpy import load_file as load

    folder = write_pico(tmp_path / "in")
    out = llmq.quantize(folder / "model.safetensors", tmp_path / "out").output
    assert told(out, against=folder / "model.safetensors") == []
    tensors = load(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = np.ones((1, 1), np.float32)
    save_file(tensors, folder / "model.safetensors")
    out = llmq.quantize(folder, tmp_path / "from8").output
    found = llmq.verify(out, against=folder, full=True)
    assert (found.problems, found.agreement.exact) == ((), found.agreement.blocks)


def test_calibrated_weights_are_near(tmp_path, write_pico, add_letters):
    folder = add_letters(write_pico(tmp_path / "in"))
    (tmp_path / "text").write_text("it is a truth universally acknowledged " * 60)
    how = {"calibrate": tmp_path / "text", "bits": 3, "group_size": 32}
    out = llmq.quantize(folder, tmp_path / "out", method="gptq", **how).output
    found = llmq.verify(out, against=folder)
    assert found.problems == ()
    assert found.agreement.near > 0
    assert found.agreement.near + found.agreement.exact == found.agreement.blocks
    tensor = "model.layers.1.mlp.up_proj.weight_packed"
    spoil_tensor(out, tensor)
    what = "further from the source than calibration explains"
    assert told(out, against=folder) == [f"model.safetensors: {tensor.removesuffix('_packed')}: {what}: rows 0 to 64"]


def spoil_tensor(folder, tensor):
    """Replace codes, and every word of them in the manifest."""
    import hashlib

    manifest = json.loads((folder / "llmq.json").read_text())
    file = manifest["tensors"][tensor]["file"]
    data = bytearray((folder / file).read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start, end = (8 + int.from_bytes(data[:8], "little") + offset for offset in header[tensor]["data_offsets"])
    data[start:end] = bytes(255 - byte for byte in data[start:end])
    replace_file(folder, file, bytes(data))
    digest = hashlib.sha256(data[start:end]).hexdigest()
    rewrite_manifest(folder, lambda manifest: manifest["tensors"][tensor].update(sha256=digest))


def test_what_another_method_made_is_found(output, source):
    tensor = "model.layers.0.self_attn.q_proj.weight_packed"
    spoil_tensor(output, tensor)
    assert told(output) == []
    assert told(output, against=source) == [
        f"model-00001-of-00003.safetensors: {tensor.removesuffix('_packed')}: not what its method gives: rows 0 to 64"
    ]


def test_a_kept_tensor_that_was_changed(output, source):
    manifest = json.loads((output / "llmq.json").read_text())
    file = manifest["tensors"]["model.norm.weight"]["file"]
    spoil_tensor(output, "model.norm.weight")
    [problem] = told(output, against=source)
    assert problem == f"{file}: model.norm.weight: not the bytes of the source: bytes 0 to 128"


def test_another_source(made, write_pico, tmp_path):
    other = write_pico(tmp_path / "other", shards=2, edit={"extra.weight": np.ones(3, np.float32)})
    [problem] = told(made, against=other)
    assert problem.endswith("other: made from another source: headers of weight files differ")
    same_headers = write_pico(tmp_path / "seed", shards=2, seed=1)
    (same_headers / "tokenizer.json").write_text("{}")
    found = llmq.verify(made, against=same_headers)
    assert len(found.problems) == 21
    assert all("not what its method gives" in p.what or "not the bytes of the source" in p.what for p in found.problems)


def test_weights_that_were_trained(source, tmp_path):
    from safetensors.numpy import load_file as load

    tensors = {n: t for path in source.glob("*.safetensors") for n, t in load(path).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    weights = {name: llmq.quantize_tensor(tensors[name], bits=4)}
    out = write_given(source, tmp_path / "out", weights).output
    assert told(out) == []
    with pytest.raises(UnsupportedError, match="they were trained"):
        llmq.verify(out, against=source)


def test_every_byte_of_the_small_files_and_many_of_the_large(output, made):
    """One bit of each of them is flipped; `make torture` flips all bits of all."""
    rng = np.random.default_rng(0)
    for path in sorted(output.iterdir()):
        data = (made / path.name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
        chosen = {*rng.integers(0, len(data), 25).tolist(), 0, len(data) - 1, header, max(0, header - 1)}
        for place in sorted(chosen):
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            found = llmq.verify(output)
            assert path.name in {problem.file for problem in found.problems}, place
        path.write_bytes(data)
    assert told(output) == []


def test_the_tensor_with_a_flipped_bit_is_named(output):
    path = output / "model-00002-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    [problem] = llmq.verify(output).problems
    assert problem.file == path.name
    assert problem.tensor in load_file(path)
    assert problem.what.startswith("not as it was written (expected ")


def test_truncated_missing_and_lengthened_files(output):
    (output / "tokenizer.json").unlink()
    (output / "config.json").write_bytes((output / "config.json").read_bytes() + b" ")
    os.truncate(output / "model-00001-of-00003.safetensors", 5000)
    problems = told(output)
    assert len(problems) == 3
    assert {p.partition(":")[0] for p in problems} == {
        "tokenizer.json", "config.json", "model-00001-of-00003.safetensors"
    }  # fmt: skip
    assert "tokenizer.json: no such file" in problems
    assert any("wrong size (expected " in p for p in problems)


def test_links_are_not_followed_out(output, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((output / "tokenizer.json").read_bytes())
    (output / "tokenizer.json").unlink()
    (output / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    assert told(output) == ["tokenizer.json: it leads out of the checkpoint's folder"]


def test_an_edited_card_is_a_problem_unless_it_is_ignored(output):
    (output / "README.md").write_text("# Made small\n")
    [problem] = told(output)
    assert problem.startswith("README.md: wrong size (expected 7, found 13)")
    assert told(output, ignore=["README.md"]) == []


def test_files_that_are_no_part_of_it(output):
    (output / "notes.txt").write_text("mine")
    (output / "model-00009-of-00009.safetensors").write_bytes(b"")
    (output / "pytorch_model.bin").write_bytes(b"")
    found = llmq.verify(output)
    assert found.notes == ("notes.txt is no part of the output",)
    assert [problem.file for problem in found.problems] == ["model-00009-of-00009.safetensors", "pytorch_model.bin"]
    assert told(output, ignore=["model-00009-of-00009.safetensors", "pytorch_model.bin"]) == []


def test_a_certificate_is_checked(output):
    add_evaluation(output, {"perplexity": 9.0, "text_sha256": "a"})
    assert told(output) == []
    data = (output / "quality.json").read_bytes()
    (output / "quality.json").write_bytes(data.replace(b"9.0", b"8.0"))
    [problem] = told(output)
    assert problem.endswith("quality.json: damaged: not what its own checksum says" + problem.partition("says")[2])


def test_unfinished_and_foreign_folders(source, tmp_path, made):
    with pytest.raises(InputError, match="no such folder"):
        llmq.verify(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a folder"):
        llmq.verify(source / "config.json")
    (tmp_path / "begun/.llmq").mkdir(parents=True)
    assert told(tmp_path / "begun") == [f"{tmp_path / 'begun'}: unfinished: run the same `llmq quantize` again"]
    found = llmq.verify(source)
    assert [str(p) for p in found.problems] == ["llmq.json: missing: nothing tells what the files should be"]
    assert found.tensors == 21  # their headers are sound
    shutil.copytree(made, tmp_path / "left")
    (tmp_path / "left/.llmq").mkdir()
    found = llmq.verify(tmp_path / "left")
    assert found.ok
    assert "a run was stopped" in found.notes[0]
    with pytest.raises(UsageError, match="--full"):
        llmq.verify(made, full=True)


CONTRADICTIONS = {
    "bits": (
        "config.json",
        lambda c: c["quantization_config"]["config_groups"]["group_0"]["weights"].update(num_bits=2),
        "weight_packed: does not fit its scheme (expected I32 [64, 4], found I32 [64, 8])",
    ),
    "groups": (
        "config.json",
        lambda c: c["quantization_config"]["config_groups"]["group_0"]["weights"].update(group_size=32),
        "weight_scale: does not fit its scheme (expected BF16 [64, 2], found BF16 [64, 1])",
    ),
    "zero points": (
        "config.json",
        lambda c: c["quantization_config"]["config_groups"]["group_0"]["weights"].update(symmetric=False),
        "weight_zero_point: missing",
    ),
    "no scheme": (
        "config.json",
        lambda c: c["quantization_config"]["config_groups"]["group_0"].update(targets=["nothing"]),
        "packed, but no group of quantization_config targets it",
    ),
    "dense": (
        "config.json",
        lambda c: c["quantization_config"]["config_groups"]["group_0"]["targets"].append("model.embed_tokens"),
        "model.embed_tokens.weight: not packed, though config.json says that it is",
    ),
    "recipe": (
        "recipe.json",
        lambda r: r["tensors"]["model.layers.0.mlp.up_proj.weight"].update(bits=8),
        "recipe.json: model.layers.0.mlp.up_proj.weight: the weight is another (expected {'bits': 8",
    ),
    "recipe of another": (
        "recipe.json",
        lambda r: r["tensors"].pop("model.layers.0.mlp.up_proj.weight"),
        "recipe.json: model.layers.0.mlp.up_proj.weight: packed, and not in the recipe",
    ),
    "size in the index": (
        "model.safetensors.index.json",
        lambda i: i["metadata"].update(total_size=5),
        "model.safetensors.index.json: wrong total_size (expected ",
    ),
    "index": (
        "model.safetensors.index.json",
        lambda i: i["weight_map"].pop("model.norm.weight"),
        "model.norm.weight: missing in model.safetensors.index.json",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_found_where_every_checksum_is_right(output, name):
    file, change, words = CONTRADICTIONS[name]
    change_json(output, file, change)
    problems = told(output)
    assert any(words in problem for problem in problems), problems


def test_a_manifest_that_lies(output):
    def move(manifest):
        manifest["tensors"]["model.norm.weight"]["file"] = "model-00001-of-00003.safetensors"
        manifest["tensors"]["ghost"] = {"file": "model-00001-of-00003.safetensors", "sha256": "0" * 64}
        del manifest["tensors"]["lm_head.weight_shape"]

    rewrite_manifest(output, move)
    last = "model-00003-of-00003.safetensors"
    assert sorted(told(output)) == [
        "model-00001-of-00003.safetensors: ghost: missing",
        "model-00001-of-00003.safetensors: model.norm.weight: missing",
        f"{last}: lm_head.weight_shape: llmq.json says that it is in no file",
        f"{last}: model.norm.weight: llmq.json says that it is in model-00001-of-00003.safetensors",
    ]


def test_scales_that_are_not_finite(output):
    tensor = "model.layers.0.mlp.up_proj.weight_scale"
    manifest = json.loads((output / "llmq.json").read_text())
    path = output / manifest["tensors"][tensor]["file"]
    tensors = load_file(path)
    tensors[tensor] = np.full_like(tensors[tensor], np.nan)
    save_file(tensors, path)
    (output / "llmq.json").unlink()
    assert f"{path.name}: {tensor}: holds 128 NaN and 0 infinite values" in told(output)


def test_infinity_that_was_kept_is_a_note(write_pico, tmp_path):
    weight = np.zeros((64, 64), np.float32)
    weight[1, 2] = np.inf
    write_pico(tmp_path / "in", edit={"model.layers.0.self_attn.q_proj.weight": weight})
    found = llmq.verify(llmq.quantize(tmp_path / "in", tmp_path / "out", nonfinite="keep").output)
    assert found.ok
    assert "q_proj.weight: holds 0 NaN and 1 infinite values" in found.notes[0]
    assert llmq.verify(tmp_path / "out", against=tmp_path / "in").problems == ()
