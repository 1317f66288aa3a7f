import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture(scope="session")
def add_letters():
    """Puts a tokenizer of letters into a checkpoint, and returns its folder."""

    def add(folder):
        letters = {character: number for number, character in enumerate("abcdefghijklmnopqrstuvwxyz ")}
        tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return folder

    return add
