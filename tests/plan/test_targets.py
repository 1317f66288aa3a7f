import pytest

from llmq.checkpoint.source import open_source
from llmq.errors import UsageError
from llmq.plan import TARGETS, build_plan
from llmq.plan.recipes import make_recipe


@pytest.fixture(scope="module")
def wide(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("wide"), hidden_size=128, head_dim=32)


def plan(folder, **flags):
    with open_source(folder) as source:
        return build_plan(source, make_recipe(**flags))


@pytest.mark.parametrize("target", TARGETS)
def test_every_reader_can_read_its_own_defaults(wide, target):
    assert plan(wide, target=target).quantized


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"target": "transformers", "symmetric": False}, "symmetric"),
        ({"target": "vllm", "bits": 2}, "bits 4/8"),
        ({"target": "vllm", "group_size": 64}, "group size 128"),
        ({"target": "vllm", "lm_head": 8}, "head kept"),
        ({"target": "vllm", "embeddings": 8}, "embedding kept"),
        ({"target": "transformers", "embeddings": 8}, "embedding kept"),
        ({"target": "vllm", "overrides": ["q_proj=bits:8"]}, "one scheme"),
        ({"target": "vllm", "ignore": ["up_proj"]}, "one scheme"),
        ({"target": "onnx", "bits": 3}, "bits 2/4/8"),
        ({"target": "onnx", "group_size": 8}, "group size 16/"),
    ],
)
def test_what_the_reader_cannot_read_is_refused_by_name(wide, flags, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        plan(wide, **flags)
    assert flags["target"] in str(caught.value)
    assert caught.value.hint


def test_positive_scales_are_chosen_for_the_reader_that_needs_them(wide):
    assert not any(t.spec.signed_scale for t in plan(wide, target="vllm").quantized)
    assert all(t.spec.signed_scale for t in plan(wide).quantized)
