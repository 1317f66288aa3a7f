import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq.errors import InputError
from llmq.runtime.stops import StopStrings, stop_tokens


def test_ids_of_both_files_count(tmp_path):
    assert stop_tokens(tmp_path, {}) == frozenset()
    assert stop_tokens(tmp_path, {"eos_token_id": 0}) == {0}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert stop_tokens(tmp_path, {"eos_token_id": 2}) == {2, 5, 6}
    assert stop_tokens(tmp_path, {"eos_token_id": None}) == {5, 6}


@pytest.mark.parametrize("text", ['{"eos_token_id": "</s>"}', '{"eos_token_id": [true]}', "[]", "{"])
def test_malformed_files(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        stop_tokens(tmp_path, {})


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    strings=st.lists(st.text("abc", max_size=3), max_size=3),
)
def test_cuts_at_the_first_stop_string(pieces, strings):
    stops, shown, whole = StopStrings(strings), "", "".join(pieces)
    for piece in pieces:
        shown += stops.add(piece)
        if stops.hit:
            break
    shown += stops.rest()
    places = [whole.find(string) for string in strings if string and string in whole]
    assert stops.hit == bool(places)
    if places:
        # What is shown ends where the first string to be complete begins.
        assert any(whole.startswith(shown + string) for string in strings if string)
        assert not any(string in shown for string in strings if string)
    else:
        assert shown == whole


def test_holds_back_only_what_may_become_a_stop_string():
    stops = StopStrings(["\nUser:"])
    assert stops.add("hello\n") == "hello"
    assert stops.add("Us") == ""
    assert stops.add("ual") == "\nUsual"
    assert stops.add(" end\nUser: x") == " end"
    assert stops.hit
