from llmq.plan.priors import FIRST_MLP, LAST_BLOCK, PATTERN, priors


def test_first_mlp_last_block_and_queries_and_keys_are_told_apart():
    names = [
        f"model.layers.{n}.{m}.weight"
        for n in range(3)
        for m in ("self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
    ]
    found = list(priors([*names, "lm_head.weight", "model.embed_tokens.weight"]).values())
    assert found == [
        PATTERN, 1, FIRST_MLP,
        PATTERN, 1, 1,
        LAST_BLOCK * PATTERN, LAST_BLOCK, LAST_BLOCK,
        1, 1,
    ]  # fmt: skip


def test_names_without_numbers_weigh_alike():
    assert priors(["a.weight", "b.weight"]) == {"a.weight": 1.0, "b.weight": 1.0}
    assert priors([]) == {}
