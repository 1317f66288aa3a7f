import contextlib
import re
import time

import pytest

from llmq.errors import InputError
from llmq.formats.patterns import Patterns

NAMES = ["lm_head", "model.layers.0.mlp.up_proj", "model.layers.11.self_attn.q_proj", "layers.3.mlp.gate", "", "é\n"]
REAL = [
    ".*lm_head", r"^(?:model\.)?layers\.\d+\.mlp\.up_proj$", r"^(?:model\.)?layers\.(?:0|11)\.self_attn\.q_proj$",
    ".*mlp.gate$",
    "model.*self_attn.*", r"(?!.*mlp).*proj", "visual", r"[a-z_]+\.[a-z]+\.(\d+)\.", "",
]  # fmt: skip


def test_real_ones_match_as_re_does():
    patterns = Patterns(REAL)
    for text in REAL:
        for name in NAMES:
            assert patterns.match(text, name) == (re.match(text, name) is not None)


@pytest.mark.parametrize(
    "texts",
    [["((a{1,1000}){10000}){10000}b"], ["((a{10}){100}){99}b"] * 2, ["((a{ 400 }){,300})b"], ["a{99999999999}"]],
)
def test_repeats_are_not_written_out_for_ever(texts):
    with pytest.raises(InputError, match="repeat too much"):
        Patterns(texts)


def test_usual_repeats_are_fine():
    patterns = Patterns([rf"layers\.\d{{1,2}}\.mlp{n}" for n in range(900)])
    assert patterns.match(r"layers\.\d{1,2}\.mlp7", "layers.11.mlp7")


@pytest.mark.parametrize(
    "text", ["((a{1,40}){1,40}){1,40}b", r"(.*)*(.*)*(.*)*x$", ".*" * 30 + "y", r"(.+\.)+\d+\.(.+\.)+zzz"]
)
def test_none_takes_long(text):
    began = time.thread_time()
    patterns = Patterns([text])
    for name in ("a" * 3000, "a.b." * 700 + "!", "a" * 60 + "!"):
        with contextlib.suppress(InputError):
            patterns.match(text, name)
    assert time.thread_time() - began < 2


def test_one_that_takes_long_is_named():
    text = "((a{1,40}){1,40}){1,40}b"
    with pytest.raises(InputError, match=r"^config\.json: this regex takes too long \(found \(\(a"):
        Patterns([text]).match(text, "a" * 3000)


def test_many_quick_ones_are_no_slow_one():
    patterns = Patterns([r".*\.\d+\..*proj"])
    for number in range(20_000):
        patterns.match(r".*\.\d+\..*proj", f"model.layers.{number}.mlp.up_proj")


@pytest.mark.parametrize("text", ["(", "(?P<a>x)(?P<a", "(" * 5000, "*", "[", "(?<=.*)x)"])
def test_malformed(text):
    with pytest.raises(InputError, match="malformed regex"):
        Patterns([text])


def test_too_long_and_too_many():
    with pytest.raises(InputError, match="too long a regex"):
        Patterns(["a" * 100_000])
    with pytest.raises(InputError, match="too many regexes"):
        Patterns([str(number) for number in range(1001)])
