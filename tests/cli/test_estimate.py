import json

import pytest


def test_json_keeps_the_contract(call, sample_model, tmp_path):
    code, out, err = call(
        "estimate", sample_model, "--bits", "4,3", "--ram", "2GiB", "--context", 512, "-o", tmp_path, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == 1
    assert [option["bits"] for option in found["options"]] == [4, 3]
    keys = "bits output_bytes bits_per_weight peak_bytes disk_bytes download_bytes seconds run_bytes tokens_per_second"
    assert set(keys.split()) <= found["options"][0].keys()
    assert found["options"][0]["fits"] is True
    assert found["context"] == 512


def test_a_table_and_advice(call, sample_model, tmp_path):
    code, out, err = call("estimate", sample_model, "--bits", "4", "--ram", "2GiB", "-o", tmp_path)
    assert code == 0, err
    assert "bits/weight" in out
    assert "--ram 2048MiB --context" in out
    code, out, _ = call("estimate", sample_model, "--bits", "4", "--ram", "1MiB", "-o", tmp_path / "not" / "yet")
    assert code == 0
    assert "none fits" in out


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--bits", "4,x"], 2, "widths from 1 to 8"),
        (["--bits", "9"], 2, "widths from 1 to 8"),
        (["--bits", ""], 2, "widths from 1 to 8"),
        (["--method", "gptq"], 2, "only methods without data"),
        (["--context", "99999999"], 2, "longer than the model's"),
        (["--group-size", "7"], 2, ""),
        (["--revision", "main"], 2, "a revision needs a repository"),
    ],
)
def test_wrong_flags(call, sample_model, flags, code, words):
    found, _, err = call("estimate", sample_model, *flags)
    assert found == code
    assert words in err


def test_no_model(call, tmp_path):
    code, _, err = call("estimate", tmp_path / "nothing")
    assert code == 3
    assert "no such folder" in err
