import json

import pytest

from llmq.checkpoint.companions import RECIPE_FILE
from llmq.checkpoint.source import open_source
from llmq.errors import InputError, LlmqError, UsageError
from llmq.plan import build_plan
from llmq.plan.recipe_files import check_replay, read_recipe, recipe_json
from llmq.plan.recipes import make_recipe


def plan(folder, recipe):
    with open_source(folder) as source:
        return build_plan(source, recipe)


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("pico"))


@pytest.fixture
def written(pico, tmp_path):
    """A recipe of mixed widths, and its file."""
    made = plan(pico, make_recipe(bits=3, overrides=["up_proj=bits:5,group:32"], ignore=["o_proj"], method="rtn"))
    path = tmp_path / RECIPE_FILE
    path.write_text(json.dumps(recipe_json(made)))
    return made, path


def test_every_weight_gets_what_it_got(pico, written):
    made, path = written
    for place in (path, path.parent):
        again = plan(pico, read_recipe(place))
        check_replay(again, "pico")
        assert [(t.name, t.spec, t.outputs) for t in again.tensors] == [
            (t.name, t.spec, t.outputs) for t in made.tensors
        ]
        assert again.recipe.method == "rtn"


def test_a_recipe_of_another_model_is_refused_by_name(written, tmp_path, write_pico):
    _, path = written
    for count, words in ((1, "model has not.*layers.1"), (3, "does not name.*layers.2")):
        other = write_pico(tmp_path / str(count), num_hidden_layers=count)
        with pytest.raises(UsageError, match=words):
            check_replay(plan(other, read_recipe(path)), "other")
    narrow = write_pico(tmp_path / "narrow", intermediate_size=80)
    with pytest.raises(UsageError, match=r"down_proj.*does not divide"):
        check_replay(plan(narrow, read_recipe(path)), "narrow")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": "1"},
        {"schema": True},
        {"surplus": 1},
        {"method": "magic"},
        {"method": ["rtn"]},
        {"for": {}},
        {"range": "wide"},
        {"signed_scale": 1},
        {"tensors": []},
        {"tensors": {"a": 4}},
        {"tensors": {"a": {"bits": 4}}},
        {"tensors": {"a": {"bits": 9, "group_size": 64, "symmetric": True}}},
        {"tensors": {"a": {"bits": 4.0, "group_size": 64, "symmetric": True}}},
        {"tensors": {"a": {"bits": 4, "group_size": -5, "symmetric": True}}},
        {"tensors": {"a": {"bits": 4, "group_size": 64, "symmetric": 1}}},
        {"tensors": {"a": {"bits": None, "group_size": 64, "symmetric": True}}},
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(written, change):
    _, path = written
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LlmqError) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1, "schema": 1}', "{" * 5000, "\xff"])
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        read_recipe(path)
    with pytest.raises(InputError, match="no recipe"):
        read_recipe(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no recipe"):
        read_recipe(tmp_path)


def test_names_are_no_patterns(pico, written):
    _, path = written
    value = json.loads(path.read_text())
    options = value["tensors"].pop("lm_head.weight")
    value["tensors"][".*"] = options
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match="model has not"):
        check_replay(plan(pico, read_recipe(path)), "pico")


def test_a_recipe_of_nothing(written):
    _, path = written
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tensors": {}}))
    with pytest.raises(InputError, match="the recipe names no weights"):
        read_recipe(path)
