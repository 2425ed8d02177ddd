from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.language.batching import token_budget_batches, unfinished

LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@given(LENGTHS, st.integers(1, 200), st.none() | st.integers(1, 9))
def test_every_sample_is_in_one_batch_and_the_budget_holds(
    lengths: list[int], budget: int, max_samples: int | None
) -> None:
    batches = token_budget_batches(lengths, budget, max_samples)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert max_samples is None or len(batch) <= max_samples
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(lengths, reverse=True)[:1] + firsts[1:]
    assert firsts == sorted(firsts, reverse=True)


def test_the_batches_are_as_full_as_the_order_allows() -> None:
    assert token_budget_batches([3, 5, 3, 1, 5], 10) == [[1, 4], [0, 2, 3]]


def test_a_batch_is_repeated_whole_if_one_of_its_samples_is_missing() -> None:
    batches = [[0, 1], [2, 3]]
    assert unfinished(batches, ["a", "b", "c", "d"], {"a", "b", "c"}) == [[2, 3]]
