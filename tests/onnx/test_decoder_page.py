"""The program printed in docs/onnx.md, run as it stands on the sample."""

import re
from pathlib import Path

from tokenizers import Tokenizer

import llmq
from llmq.onnx import export_decoder

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"


def test_the_program_on_the_page_writes_what_llmq_writes(sample_model, tmp_path, monkeypatch, capsys):
    llmq.quantize(sample_model, tmp_path / "model", bits=4)
    export_decoder(tmp_path / "model", tmp_path / "model" / "model.onnx", compute="float32", check=False)
    section = PAGE.read_text(encoding="utf-8").split("## Packed decoders")[1].split("\n## ")[0]
    program = re.search(r"```python\n(import.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program[1], {})
    made = capsys.readouterr().out
    model, tokenizer = llmq.load("model", compute="float32"), Tokenizer.from_file("model/tokenizer.json")
    text = tokenizer.encode("It was a dark night").ids
    prompt = len(text)
    for _ in range(40):
        text.append(int(model(text)[-1].argmax()))
    assert made == tokenizer.decode(text[prompt:]) + "\n"
    assert len(made) > 60
