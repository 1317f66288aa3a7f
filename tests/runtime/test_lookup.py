from llmq.runtime.lookup import Lookup


def test_the_latest_and_longest_run_counts():
    text = [1, 2, 3, 7, 1, 2, 3, 8, 5, 2, 3, 9, 1, 2, 3]
    assert Lookup().guess(text, 2) == [8, 5], "1 2 3 stood last before 8, though 2 3 stood last before 9"


def test_nothing_comes_of_one_token_alone():
    assert Lookup().guess([], 4) == []
    assert Lookup().guess([1], 4) == []
    assert Lookup().guess([1, 1], 4) == []
    assert Lookup().guess([1, 2, 3, 1], 4) == []


def test_a_growing_text_gives_what_the_whole_one_gives():
    text = ([4, 5, 6, 7] * 5 + [6, 5, 4, 5, 6]) * 2
    growing = Lookup()
    for end in range(1, len(text)):
        assert growing.guess(text[:end], 3) == Lookup().guess(text[:end], 3)


def test_repetition_and_the_end():
    assert Lookup().guess([9, 9, 9, 9], 5) == [9]
    assert Lookup().guess([1, 2, 3, 1, 2], 5) == [3, 1, 2]
    assert Lookup().guess([1, 2, 3, 1, 2], 1) == [3]
