from llmq.checkpoint.companions import is_weight_file, split_companions


def test_no_code_is_ever_copied():
    names = [
        "modeling_x.py",
        "config.json",
        "tokenizer_config.json",
        "tokenizer.py",
        "LICENSE.txt",
        "setup.sh",
        "README.md",
    ]
    names += ["training_args.bin", ".gitattributes", "chat_template.jinja", "USE_POLICY.md", "tokenizer.model"]
    copied, skipped = split_companions(names)
    assert copied == (
        "LICENSE.txt", "README.md", "USE_POLICY.md", "chat_template.jinja", "tokenizer.model", "tokenizer_config.json",
    )  # fmt: skip
    assert skipped == (".gitattributes", "modeling_x.py", "setup.sh", "tokenizer.py", "training_args.bin")


def test_weight_files():
    assert all(map(is_weight_file, ["a.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.gguf"]))
    assert not any(map(is_weight_file, ["config.json", "tokenizer.model"]))
