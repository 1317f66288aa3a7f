import pytest

from llmq.errors import UsageError
from llmq.plan.recipes import make_recipe, parse_override
from llmq.spec import Override


def test_defaults_are_four_bits_in_groups_of_64_with_an_eight_bit_head():
    recipe = make_recipe()
    assert (recipe.spec.bits, recipe.spec.group_size, recipe.spec.symmetric) == (4, 64, True)
    assert (recipe.lm_head, recipe.embeddings, recipe.method) == (8, None, "mse")


def test_defaults_follow_the_reader():
    recipe = make_recipe(target="vllm")
    assert (recipe.spec.group_size, recipe.lm_head, recipe.spec.signed_scale) == (128, None, False)


def test_an_override_names_bits_and_group():
    assert parse_override(r"down_proj=bits:8,group:32") == Override("down_proj", bits=8, group_size=32)
    assert parse_override(r"a=b=bits:2") == Override("a=b", bits=2)
    assert parse_override("x=symmetric:false") == Override("x", symmetric=False)


def test_an_asymmetric_checkpoint_has_one_scheme_unless_asked_otherwise():
    assert make_recipe(symmetric=False).lm_head is None
    assert make_recipe(symmetric=False, bits=8).lm_head == 8
    assert make_recipe(symmetric=False, lm_head=8).lm_head == 8


@pytest.mark.parametrize("text", ["down_proj", "x=bits:four", "x=width:4", "x=bits:9", "=", "x=bits:8,", "x=group:0"])
def test_an_override_not_understood_is_refused(text):
    with pytest.raises((UsageError, ValueError)):
        parse_override(text)


@pytest.mark.parametrize(
    "flags",
    [
        {"bits": 0},
        {"bits": 9},
        {"group_size": 0},
        {"range": "wide"},
        {"range": "narrow", "bits": 1},
        {"range": "narrow", "symmetric": False},
        {"lm_head": "most"},
        {"embeddings": 9},
        {"ignore": ["("]},
        {"overrides": ["x=bits:99"]},
        {"overrides": ["(=bits:8"]},
        {"target": "ollama"},
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(flags):
    with pytest.raises(UsageError) as caught:
        make_recipe(**flags)
    assert "\n" not in str(caught.value)
