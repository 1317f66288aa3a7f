"""Tiny random models as transformers saves them."""

from __future__ import annotations

import numpy as np
import pytest

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def save_model():
    """Save a random model of transformers, and return what it reads back in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def save(folder, model_type="llama", *, dtype="float32", max_shard_size="5GB", seed=0, **config):
        torch.manual_seed(seed)
        parsed = transformers.AutoConfig.for_model(model_type, **{**SIZES, **config})
        model = transformers.AutoModelForCausalLM.from_config(parsed, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Biases begin as zeros and norms as ones, which would hide them.
                if parameter.ndim == 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if name.endswith("bias") else 1.0))
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
        # Read anew: rounding the model has rounded its rotary frequencies too.
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    return save


@pytest.fixture(scope="session")
def their_logits():
    """Logits of a model of transformers for some tokens, float32 (n, vocab_size)."""
    torch = pytest.importorskip("torch")

    def logits(model, tokens) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()

    return logits


@pytest.fixture(scope="session")
def write_tokenizer():
    """Return `write_tokenizer(folder, kind="bytes", **extra)`."""
    return _write_tokenizer


def _write_tokenizer(folder, kind="bytes", **extra):
    """Write a tokenizer of all 256 bytes: "bytes" as GPT-2 spells them, "pieces" as Llama does."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    special = ["<s>", "</s>"]
    if kind == "bytes":
        letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate([*special, *letters, "Ġw", "or", "Ġwor"])}
        merges = [("Ġ", "w"), ("o", "r"), ("Ġw", "or")]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
    else:
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        vocab = {token: i for i, token in enumerate([*special, *bytes_, "▁", *"abcdefghij", "▁a", "▁b"])}
        merges = [("▁", "a"), ("▁", "b")]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
        steps = [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
        tokenizer.decoder = tokenizers.decoders.Sequence(steps)
    tokenizer.add_special_tokens(special)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False, **extra
    )
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="session")
def chatty(tmp_path_factory, save_model):
    """Folder of a tiny model with a byte tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    save_model(folder, vocab_size=300, max_position_embeddings=200)
    template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<s>{% endif %}"
    )
    _write_tokenizer(folder, chat_template=template)
    return folder
