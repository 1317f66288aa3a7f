import json
import subprocess

import pytest

from llmq.architectures import discover as module
from llmq.architectures.discover import discover

NAMES = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]


@pytest.fixture
def told(monkeypatch):
    """What the process that instantiates an architecture would be given; it is not started."""
    calls = []

    def run(command, **how):
        calls.append((json.loads(how["input"]), how["env"]))
        answer = {"linears": ["model.layers.0.mlp.up_proj"], "prefix": "model", "transposed": False}
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(module.subprocess, "run", run)
    return calls


def test_linears_are_spelled_as_in_the_checkpoint(told):
    found = discover({"model_type": "strange"}, NAMES)
    assert found.linears == {"model.layers.0.mlp.up_proj"}
    assert not found.transposed


def test_a_config_cannot_name_code(told):
    evil = {
        "auto_map": {"AutoModelForCausalLM": "evil/repository--code.Model"},
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
        "experts_implementation": "evil/kernel",
        "use_kernels": True,
        "use_pretrained_backbone": True,
    }
    discover({"model_type": "strange", "hidden_size": 8, "parts": [evil], "text_config": evil} | evil, NAMES)
    (config, environment), *_ = told
    assert config == {"model_type": "strange", "hidden_size": 8, "parts": [{}], "text_config": {}}
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("config", [{"model_type": 7}, {}, {"model_type": "strange", "num_hidden_layers": 10**9}])
def test_nonsense_is_not_instantiated(told, config):
    assert discover(config, NAMES) is None
    assert not told
