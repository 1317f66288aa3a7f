import pytest

from llmq.checkpoint.json_strict import dumps, loads
from llmq.errors import InputError


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b'\xff{"a": 1}', "not UTF-8 text at byte 0"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": 1, "a": 1}', "duplicate key 'a'"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "duplicate key 'a'"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e999]", "1e999 is out of range"),
        (b"1" * 5000, "an integer is out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'["\\ud800"]', "half a surrogate pair"),
        (b'{"\\udfff": 1}', "half a surrogate pair"),
        (b'["\x01"]', "not valid JSON"),
        (b"[" * 101 + b"]" * 101, "nested too deeply"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested too deeply"),
        (b"[" + b"[]," * 700_000 + b"[]]", "too much JSON (expected at most 600,000 lists and objects"),
        (b'{"a":[' + b"{}," * 700_000 + b"{}]}", "too much JSON"),
        (b"[" + b"0," * 5_000_001 + b"0]", "too much JSON"),
    ],
)
def test_refused(data, what):
    with pytest.raises(InputError, match=r"f\.json: ") as error:
        loads(data, "f.json")
    assert what in str(error.value)


def test_accepted():
    deep = b'{"a":' * 99 + b"[]" + b"}" * 99
    assert loads(dumps(loads(deep, "f")), "f")
    assert loads('{"a": [1, 2.5, null, "\\ud83d\\ude00é"]}'.encode(), "f") == {"a": [1, 2.5, None, "😀é"]}
    assert isinstance(loads(b"-0", "f"), float)


def test_dumps_is_read_back():
    value = {"b": 1, "a": ["é", None]}
    assert loads(dumps(value), "f") == value
    assert dumps(value).endswith(b"}\n")
    with pytest.raises(ValueError, match="Out of range"):
        dumps(float("nan"))
