"""Fusion and head together: the probability that a student answers an exercise right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_suite.lmcd.fusion import Fused, StudentFusion
from lightning_suite.lmcd.heads.base import Head
from lightning_suite.lmcd.heads.irt import IRT, MIRT, SCALE
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.ridge import fit_ridge

Reader = Literal["student", "start"]


class DiagnosisModel(nn.Module):
    """A student reads an exercise (fusion), and a head says how likely the answer is right.

    The head sees states in units of the root mean square of their kind, one number for all
    coordinates: heads start alike whatever the backbone's scale is. (Rescaling each coordinate
    would blow up the many that say nothing.)

    Args:
        fusion: Students and backbone.
        head: Of the same width.
        reader: Who stands at the student token when difficulty is read: each ``student``, as
            published, or for all the same ``start`` token: then a student costs no pass through
            the backbone, and difficulty is that of the exercise alone.
    """

    units: Tensor

    def __init__(self, fusion: StudentFusion, head: Head, reader: Reader = "student") -> None:
        super().__init__()
        self.fusion, self.head = fusion, head
        self.reader: Reader = reader
        self.register_buffer("units", torch.ones(3))

    def forward(self, prefixes: Prefixes, rows: Tensor, students: Tensor, kcs: Tensor) -> Tensor:
        """Return the logits of N answers.

        Args:
            prefixes: M exercises.
            rows: Of each answer, into the exercises: int64 [N].
            students: int64 [N].
            kcs: What each exercise needs: [M, K].
        """
        return self.logit(prefixes, rows, self.fusion.students(students), kcs)

    def logit(self, prefixes: Prefixes, rows: Tensor, vectors: Tensor, kcs: Tensor) -> Tensor:
        """Return the logits of N answers of students with given vectors [N, H]."""
        states = self.states(prefixes, rows, vectors)
        with _exact(vectors):
            return self.head.logit(*states, kcs[rows])

    def states(self, prefixes: Prefixes, rows: Tensor, vectors: Tensor) -> Fused:
        """Return the three states of N pairs, in their units."""
        if self.reader == "student":
            fused = self.fusion.fuse(prefixes, rows, vectors)
        else:
            one = self.fusion.read_alike(prefixes, self.fusion.start)
            fused = Fused(vectors.float(), one.exercise[rows], one.relative[rows])
        student, exercise, relative = self.units
        return Fused(fused.student / student, fused.exercise / exercise, fused.relative / relative)

    def proficiency(self) -> Tensor:
        """Return what is reported of each student: [S, D]."""
        return self.head.proficiency(self.fusion.students.weight / self.units[0])

    def kc_abilities(self, kcs: int) -> Tensor | None:
        """Return each student's ability in each KC, [S, K], or one for all KCs, [S, 1].

        Args:
            kcs: K.

        Returns:
            None where abilities have nothing to do with KCs.
        """
        if not kcs or not (self.head.per_kc or self.head.num_abilities == 1):
            return None
        return self.proficiency()[:, : max(1, min(kcs, self.head.num_abilities))]

    def prior(self, students: Tensor) -> Tensor:
        """Return the prior's penalty on the abilities of these students: a scalar."""
        with _exact(students):
            return self.head.prior(self.fusion.students(students) / self.units[0])

    @torch.no_grad()
    def read_at_start(self, prefixes: Prefixes) -> Fused:
        """Return the states of M exercises as the start token sees them, in the model's units.

        Without dropout, which would make them others on every rank.
        """
        training = self.fusion.training
        states = self.fusion.eval().read_alike(prefixes, self.fusion.start)
        self.fusion.train(training)
        return Fused(*(state / unit for state, unit in zip(states, self.units, strict=True)))

    @torch.no_grad()
    def measure_units(self, prefixes: Iterable[Prefixes]) -> None:
        """Take the units of the states from exercises, a few at a time, and the start token."""
        self.units.fill_(1.0)
        states = [self.read_at_start(part) for part in prefixes]
        kinds = [torch.cat(kind) for kind in zip(*states, strict=True)]
        self.units.copy_(torch.stack([kind.square().mean().sqrt() for kind in kinds]))

    @torch.no_grad()
    def start_difficulty(self, prefixes: Iterable[Prefixes], easiness: Tensor) -> bool:
        """Start the difficulty of an IRT or MIRT head from a ridge regression.

        With it, a student of ability 0 has the predicted chances, guessing aside. The heads have
        no intercept: it goes along the part of the states that all exercises share.

        Args:
            prefixes: M training exercises, a few at a time.
            easiness: Logit of the share of right answers to each: [M].

        Returns:
            Whether the head has a single difficulty to start; the others are left alone.
        """
        if not isinstance(self.head, IRT | MIRT):
            return False
        relative = torch.cat([self.read_at_start(part).relative for part in prefixes])
        fit = fit_ridge(relative, -easiness)
        weight = fit.weight + fit.intercept * _reads_one(relative.double())
        if isinstance(self.head, IRT):
            blank = relative.new_zeros(1, relative.shape[1])  # where a map that is zero starts
            a = self.head.item_parameters(blank, blank)["discrimination"].double()
            weight = weight / (SCALE * a)
        self.head.difficulty.weight.copy_(weight.float()[None])
        return True


def _reads_one(x: Tensor) -> Tensor:
    """Return v with x_i·v = 1 for all rows of x [n, H], or 0 where rows share no direction."""
    middle = x.mean(0)
    span = torch.linalg.qr((x - middle).mT).Q[:, : min(len(x) - 1, x.shape[1])]
    shared = middle - span @ (span.mT @ middle)
    size = shared.square().sum()
    enough = size > 1e-6 * middle.square().sum()
    return shared / size if enough else torch.zeros_like(shared)


def _exact(where: Tensor) -> torch.autocast:
    """Keep heads in float32 under mixed precision: its rounding hides what tells texts apart."""
    return torch.autocast(where.device.type, enabled=False)
