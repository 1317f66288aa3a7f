from llmq_kernels.sha256 import _ROUNDS, ORDER, START


def test_constants_are_those_of_the_standard():
    words = dict(zip(ORDER, START, strict=True))
    assert [hex(words[i]) for i in (0, 1, 7)] == ["0x6a09e667", "0xbb67ae85", "0x5be0cd19"]
    assert [hex(word) for word in (*_ROUNDS[:2], _ROUNDS[-1])] == ["0x428a2f98", "0x71374491", "0xc67178f2"]
