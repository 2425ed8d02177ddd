"""Put samples of like length together, the same way every time."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def token_budget_batches(
    lengths: Sequence[int], budget: int, max_samples: int | None = None
) -> list[list[int]]:
    """Return batches of sample indices, longest samples first, padding included in the budget.

    The longest come first, so that a batch that does not fit into memory fails at once. The
    batches depend on the lengths alone: a run that resumes must form the same ones, as a sample's
    last digits depend on its batch.

    Args:
        lengths: Tokens of each sample.
        budget: Most tokens of a batch, padding included; a longer sample is a batch alone.
        max_samples: Most samples of a batch.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = batch and (len(batch) + 1) * lengths[batch[0]] > budget
        if full or len(batch) == max_samples:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches


def unfinished(
    batches: Sequence[Sequence[int]], ids: Sequence[str], finished: Collection[str]
) -> list[Sequence[int]]:
    """Return the batches that hold a sample that is not finished, whole."""
    return [batch for batch in batches if any(ids[i] not in finished for i in batch)]
