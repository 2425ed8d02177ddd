"""How often edits fire over many batches."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Firing(NamedTuple):
    """Counts over batches; plain numbers, so that a checkpoint takes them.

    Attributes:
        fired: Sequences in which an edit fired.
        sequences: All sequences.
        edits: Edits in the bank, summed over the batches.
        batches: Batches.
    """

    fired: float = 0.0
    sequences: float = 0.0
    edits: float = 0.0
    batches: float = 0.0

    @classmethod
    def of_batch(cls, fired: Tensor, edits: int) -> Firing:
        """Count one batch.

        Args:
            fired: In which of its sequences an edit fired, [N], bool.
            edits: How many the bank has.
        """
        return cls(float(fired.sum()), float(len(fired)), float(edits), 1.0)

    def plus(self, other: Firing) -> Firing:
        """Return the counts of both."""
        return Firing(*(one + more for one, more in zip(self, other, strict=True)))

    @property
    def share(self) -> float:
        """Of the sequences, in how many an edit fired; 0 of none."""
        return self.fired / max(self.sequences, 1.0)

    @property
    def mean_edits(self) -> float:
        """Edits in the bank, the mean over the batches; 0 of none."""
        return self.edits / max(self.batches, 1.0)
