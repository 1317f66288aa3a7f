import pytest

from llmq.architectures.roles import Role, layer_index, roles


def role(name, shape=(128, 128), **how):
    how = {"linears": None, "known_family": True} | how
    return roles({name: shape}, **how)[name]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.3.self_attn.q_proj.weight", (128, 128), Role.LINEAR),
        ("model.layers.3.mlp.gate_proj.weight", (128, 64), Role.LINEAR),
        ("model.embed_tokens.weight", (1000, 64), Role.EMBEDDING),
        ("lm_head.weight", (1000, 64), Role.HEAD),
    ],
)
def test_roles_of_a_known_family(name, shape, expected):
    assert role(name, shape).role is expected


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.norm.weight", (64,), "norm"),
        ("model.layers.0.self_attn.q_norm.weight", (64, 64), "norm"),
        ("model.layers.0.self_attn.q_proj.bias", (64,), "bias"),
        ("model.layers.0.mlp.gate.weight", (64, 128), "router"),
        ("model.layers.0.mlp.shared_expert_gate.weight", (64, 128), "router"),
        ("model.layers.0.block_sparse_moe.gate.weight", (8, 4096), "router"),
        ("model.vision_tower.layers.0.self_attn.q_proj.weight", (128, 128), "tower"),
        ("model.audio_tower.layers.0.fc1.weight", (128, 128), "tower"),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 64, 64), "3-D"),
        ("model.layers.0.conv.weight", (64, 64, 3), "3-D"),
        ("model.layers.0.self_attn.q_proj.weight", (8, 8), "fewer than 4096"),
        ("model.extra.weight", (128, 128), "not a linear"),
    ],
)
def test_what_is_kept_says_why(name, shape, reason):
    kept = role(name, shape)
    assert kept.role is Role.OTHER
    assert reason in kept.reason


def test_an_unknown_architecture_trusts_what_was_instantiated():
    module = "encoder.block.0.strange"
    assert role(f"{module}.weight", linears={module}, known_family=False).role is Role.LINEAR
    assert role(f"{module}.weight", linears=set(), known_family=False).role is Role.OTHER


def test_an_unknown_architecture_without_torch_is_read_conservatively():
    how = {"linears": None, "known_family": False}
    assert role("model.layers.0.attn.q_proj.weight", **how).role is Role.LINEAR
    assert "unknown" in role("model.layers.0.mixer.weird.weight", **how).reason
    assert role("model.layers.0.mlp.experts.1.up_proj.weight", **how).role is Role.OTHER


def test_layer_index():
    assert layer_index("model.layers.12.mlp.up_proj.weight") == 12
    assert layer_index("transformer.h.3.attn.weight") == 3
    assert layer_index("model.norm.weight") is None
