"""Tokenizers and chat templates that crash, hang, eat memory, or try to run code."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from tortures.attacks.case import Case, edit_json, read_json, write_json
from tortures.attacks.configs import malformed, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["TEMPLATES", "cases"]

_TOKENIZER: Final = "tokenizer.json"
_SETTINGS: Final = "tokenizer_config.json"
_RUN: Final = {"generate": 3}
_ANY: Final = {"generate": -1}

TEMPLATES: Final[dict[str, str]] = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaaaa{% endfor %}{% endfor %}",
    "repetition": "{{ 'a' * 10**10 }}",
    "repetition of a list": "{{ [1] * 10**10 }}",
    "repetition bit by bit": "{% set n = namespace(s='a') %}"
    "{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "powers of powers": "{{ 9 ** 9 ** 9 ** 9 }}",
    "long products": "{% set n = namespace(x=9) %}"
    "{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "format by percent": "{{ '%0999999999d' % 1 }}",
    "format filter": "{{ '%0999999999d' | format(1) }}",
    "format method": "{{ '{:9999999999d}'.format(1) }}",
    "format of attributes": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ '1'.zfill(10**10) }}",
    "expandtabs": "{{ ('\t' * 99).expandtabs(10**9) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "join": "{{ (range(99999) | list) | join('a' * 99999) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "indented JSON": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "JSON of itself": "{% set a = [] %}{{ a.append(a) }}{{ a | tojson }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slices": "{{ [1] | slice(10**9) | list }}",
    "wordwrap": "{{ ('a ' * 99999) | wordwrap(1) | wordwrap(1) | wordwrap(1) }}",
    "urlize": "{{ ('http://a.' * 50000) | urlize }}",
    "sums": "{{ range(99999) | map('string') | sum(start='') }}",
    "macros that call themselves": "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    "loops that call themselves": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "text without end": "{% for a in range(99999) %}{% for b in range(99) %}{{ b }}{{ messages }}{% endfor %}"
    "{% endfor %}",
    "class": "{{ messages.__class__ }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by attr": "{{ '' | attr('__class__') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro a() %}{% endmacro %}{{ a.__init__.__globals__ }}",
    "code": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "code by self": "{{ self._TemplateReference__context.eval_ctx.environment }}",
    "frames": "{{ (range(1) | map('string')).gi_frame.f_globals }}",
    "mutation": "{{ messages.append(1) }}",
    "a namespace with secrets": "{{ namespace(__class__=1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "raising": "{{ raise_exception('\x1b[31mno\nerror: all is well') }}",
    "division by zero": "{{ 1 / 0 }}",
    "an undefined name": "{{ a.b.c }}",
    "an unknown filter": "{{ 1 | nothing }}",
    "an unknown tag": "{% debug %}",
    "never closed": "{% for a in [1] %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 200 + "]" * 200 + " }}",
    "operators": "{{ 1" + " + 1" * 50_000 + " }}",
    "negations": "{{ " + "not " * 20_000 + "1 }}",
    "blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "many expressions": "{{ 1 }}" * 150_000,
    "many filters": "{{ 1" + "|string" * 20_000 + " }}",
    "a million braces": "{" * 1_000_000,
    "10 MB": "a" * 10_000_000,
    "NUL": "a\0{{ 1 }}\0",
    "half a surrogate pair": "\ud800",
}
"""Chat templates that must end soon, in few bytes, with one line."""

_SOUND: Final = (
    "power", "powers of powers", "urlize", "wordwrap", "class", "class by attr", "class by map", "globals", "NUL",
)  # fmt: skip
"""Those that render something, if only nothing: what they ask for is not there, or not much."""

_NO_JSON: Final = ("a million braces", "half a surrogate pair")
"""Those that the file is refused for already."""


def cases() -> Iterator[Case]:
    """All of them."""
    for name, template in TEMPLATES.items():
        code = -1 if name in _SOUND else -3
        words = () if name in _SOUND else (_SETTINGS,) if name in _NO_JSON else ("template",)
        yield Case(f"template: {name}", edit_json(_SETTINGS, chat_template=template), {"chat": code}, words)
    for what, value in {
        "a number": 5,
        "a list of numbers": [5],
        "an object": {"a": 1},
        "a list": [{"name": "default"}],
    }.items():
        yield Case(f"template: {what}", edit_json(_SETTINGS, chat_template=value), {"chat": -1})
    for name in ("chat_template.jinja", "chat_template.json"):
        yield Case(f"template: {name} without end", _endless(name), {"generate": 3}, (name,))
        yield Case(f"template: {name} is a FIFO", _pipe(name), {"generate": 3}, (name,))
    yield Case("template: a folder of links", _linked_templates, {"chat": 0})
    yield from _tokenizers()
    yield from _settings()


def _pipe(name: str) -> Callable[[Path], object]:
    return lambda folder: os.mkfifo(folder / name)


def _endless(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, 1 << 40)

    return change


def _linked_templates(folder: Path) -> None:
    (folder.parent / "outside" / "secret.safetensors").write_text("{{ secret }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to("../../outside/secret.safetensors")


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        found = read_json(folder / _TOKENIZER)
        edit(found)
        write_json(folder / _TOKENIZER, found)

    return change


def _set(**fields: Any) -> Callable[[Path], object]:
    return _edited(lambda found: found.update(fields))


def _model(**fields: Any) -> Callable[[Path], object]:
    return _edited(lambda found: found["model"].update(fields))


def _tokenizers() -> Iterator[Case]:
    for what, change in malformed(_TOKENIZER):
        yield Case(f"tokenizer: {what}", change, _RUN, ("tokenizer",))
    yield Case("tokenizer: of a size without end", _endless(_TOKENIZER), _RUN, (_TOKENIZER, "too long"))
    yield Case("tokenizer: missing", lambda folder: (folder / _TOKENIZER).unlink(), _RUN, ("tokenizer",))
    huge: Final = 10**12
    split_: Final = {"type": "Split", "pattern": {"Regex": "(a+)+$|(.*)*x"}, "behavior": "Isolated", "invert": False}
    odd: dict[str, Any] = {
        "version": (5, None, "9.9"), "model": (None, [], 5, {}, {"type": "Nothing"}, {"type": "BPE"},
        {"type": "Unigram"},
            {"type": "Unigram", "unk_id": 10**9, "vocab": [["a", 0.0]]}, {"type": "Unigram", "unk_id": 5, "vocab": []},
            {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "a"}, {"type": "WordPiece", "vocab": {}},
            {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "", "continuing_subword_prefix": "",
            "max_input_chars_per_word": 0}),
        "normalizer": (5, [], {"type": "Nothing"}, {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Precompiled", "precompiled_charsmap": "/////w=="}, {"type": "Precompiled",
            "precompiled_charsmap": 5},
            {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}, {"type": "Replace",
            "pattern": {"String": ""}, "content": "x"},
            {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "a"},
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 99999}] * 99}),
        "pre_tokenizer": (5, {"type": "Split"}, split_, {"type": "Split", "pattern": {"String": ""},
        "behavior": "Isolated", "invert": False},
            {"type": "Metaspace", "replacement": "too long"}, {"type": "FixedLength", "length": 0},
            {"type": "Sequence", "pretokenizers": [split_] * 1000}, {"type": "Digits", "individual_digits": 5}),
        "post_processor": ({"type": "TemplateProcessing"}, {"type": "BertProcessing", "sep": ["x", huge], "cls": ["y",
        0]},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "none", "type_id": 0}}], "pair": [],
            "special_tokens": {}},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}], "pair": [],
             "special_tokens": {"a": {"id": "a", "ids": [4294967295] * 3, "tokens": ["a"]}}}),
        "decoder": (5, {"type": "Nothing"}, {"type": "Strip", "content": " ", "start": huge, "stop": 0},
            {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}, {"type": "CTC"}),
        "padding": ({"strategy": {"Fixed": huge}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "a"},
            {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": huge, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "a"}, 5),
        "truncation": ({"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0},
            {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": huge}, 5),
        "added_tokens": (None, 5, {}, [5], [{"id": -1, "content": "a"}], [{"id": huge, "content": "a"}],
            [{"id": 4294967295, "content": "a", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}],
            [{"id": 0, "content": "", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}],
            [{"id": 0, "content": "x" * 10**6, "single_word": False, "lstrip": True, "rstrip": True,
            "normalized": True, "special": True}]),
    }  # fmt: skip
    for key, values in odd.items():
        for number, value in enumerate(values):
            yield Case(f"tokenizer: {key} {number}: {json.dumps(value)[:60]}", _set(**{key: value}), _ANY)
    models: dict[str, tuple[Any, ...]] = {
        "vocab": (None, [], 5, {}, {"a": -1}, {"a": huge}, {"a": "x"}, {"a": 0, "b": 0}, {"": 0}),
        "merges": (None, 5, ["a"], [["a"]], [["a", "b"]], ["a b c"], [["Ġ", "a"]] * 2, [[5, 5]], ["nothing here"]),
        "dropout": (2.0, -1.0, "x", 1.0), "unk_token": (5, "nothing"), "byte_fallback": (5, True),
        "continuing_subword_prefix": ("x" * 10**6, 5), "cache_capacity": (huge,), "fuse_unk": (5,),
        "ignore_merges": (True, 5),
    }  # fmt: skip
    for key, values in models.items():
        for number, value in enumerate(values):
            yield Case(f"tokenizer: model.{key} {number}: {json.dumps(value)[:60]}", _model(**{key: value}), _ANY)
    deep: Any = {"type": "Lowercase"}
    for _ in range(100):
        deep = {"type": "Sequence", "normalizers": [deep]}
    yield Case("tokenizer: normalizers 100 deep", _set(normalizer=deep), _ANY)
    yield Case("tokenizer: a million words", _million, _ANY)
    yield Case("tokenizer: only a sentencepiece model of noise", _sentencepiece, _RUN, ("tokenizer",))
    yield Case("tokenizer: only a tiktoken file of noise", _tiktoken, _RUN, ("tokenizer",))
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        yield Case(f"tokenizer: {name} without end", _endless(name), _RUN, (name, "too long"))


def _million(folder: Path) -> None:
    vocab = {f"w{number}": number + 2 for number in range(1_000_000)}
    _model(vocab=vocab | {"<s>": 0, "</s>": 1})(folder)


def _sentencepiece(folder: Path) -> None:
    (folder / _TOKENIZER).unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff\x0f" + os.urandom(1000))


def _tiktoken(folder: Path) -> None:
    (folder / _TOKENIZER).unlink()
    (folder / "x.tiktoken").write_bytes(os.urandom(1000))


def _settings() -> Iterator[Case]:
    for what, change in malformed(_SETTINGS):
        yield Case(f"tokenizer_config: {what}", change, _RUN, (_SETTINGS,))
    yield Case("tokenizer_config: of a size without end", _endless(_SETTINGS), _RUN, (_SETTINGS, "too long"))
    code = {"AutoTokenizer": ["evil.Evil", None]}
    odd: dict[str, tuple[Any, ...]] = {
        "tokenizer_class": (5, [], {}, "Evil", "../x", "os.system", "x\x1b[31m", "LlamaTokenizer", "GPT2Tokenizer",
        "BertTokenizer",
            "PreTrainedModel", "T5Tokenizer", "MistralCommonBackend", None, "PythonBackend", "ByT5Tokenizer",
            "__class__"),
        "auto_map": (code, {"AutoTokenizer": ["other/repo--evil.Evil", None]}, [None, "evil.Evil"],
        {"AutoTokenizer": []}, 5, "x"),
        "bos_token": (5, [], {}, {"__type": "AddedToken"}, {"__type": "AddedToken", "content": 5}, "x" * 10**6,
        {"content": "<s>"}),
        "added_tokens_decoder": (5, [], {"x": {}}, {"0": 5}, {"0": {"content": 5}}, {"-1": {"content": "a"}},
        {"4294967296": {"content": "a"}},
            {"99999999999999999999": {"content": "a"}}),
        "extra_special_tokens": (5, "x", [5], {"a": 5}, ["a"] * 1000), "model_max_length": ("x", -1, 0, 10**30, []),
        "init_inputs": ([1, 2, 3], 5, ["/etc/passwd"]), "vocab_file": ("/etc/passwd", 5),
        "tokenizer_file": ("/etc/passwd", "../x"),
        "fast_tokenizer_files": (["../outside/secret.safetensors"], 5, ["tokenizer.9.9.json"]),
        "name_or_path": ("/etc", 5, "org/name"),
        "padding_side": ("up", 5), "truncation_side": ("up", 5), "clean_up_tokenization_spaces": ("x", 5),
        "add_bos_token": ("x", True),
        "chat_template": ([], [{"name": "default", "template": 5}]), "backend": ("x", 5), "is_local": (False,),
        "local_files_only": (False,),
        "trust_remote_code": (True,), "tokenizer_object": (5,), "gguf_file": ("x.gguf",), "subfolder": ("..",),
        "cache_dir": ("/",),
        "response_schema": (5, {}), "sp_model_kwargs": (5, {"a": 1}), "legacy": (5,), "processor_class": (5, "Evil"),
        "self": (1,), "cls": (1,),
        "model_input_names": (5, ["x"]), "split_special_tokens": (5,), "x" * 100_000: (1,),
    }  # fmt: skip
    for key, values in odd.items():
        for number, value in enumerate(values):
            shown = f"{key[:24]} {number}: {json.dumps(value)[:60]}"
            yield Case(f"tokenizer_config: {shown}", _evil(key, value), {"generate": -1})
    for name in ("special_tokens_map.json", "added_tokens.json"):
        for number, value in enumerate(
            ({"bos_token": 5}, {"bos_token": {"content": 5}}, {"a": -1}, {"a": 10**12}, {"a": "x"}, {"": 0})
        ):
            yield Case(f"tokenizer_config: {name} {number}", text(name, json.dumps(value)), {"generate": -1})


def _evil(key: str, value: Any) -> Callable[[Path], object]:
    """Set a field, with code beside it that would leave a mark."""

    def change(folder: Path) -> None:
        (folder / "evil.py").write_text("open('pwned', 'w').write('x')\n")
        edit_json(_SETTINGS, **{key: value})(folder)

    return change
