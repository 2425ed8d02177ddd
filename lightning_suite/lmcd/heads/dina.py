"""Soft DINA: every needed KC has to be mastered."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_suite.lmcd.heads.base import Head, bounded, of_student, of_text
from lightning_suite.lmcd.heads.irt import SLIP_START


class SoftDINA(Head):
    """Deterministic input, noisy "and", made soft: p = g + (1 - g)·s·Π_k σ(θ_k - δ_k)^kc_k.

    θ = W_t·e_u; δ = W_d·d_uv, what the exercise asks of each KC; guessing g = σ(w_g·q_v) and
    s = σ(3 + w_s·q_v). With masteries of 0 and 1 this is DINA (Junker and Sijtsma
    2001) with guessing g and slipping (1 - g)·(1 - s). An exercise without KCs is mastered by all.

    Args:
        width: H.
        num_kcs: K.
    """

    per_kc = True

    def __init__(self, width: int, num_kcs: int) -> None:
        super().__init__()
        self.num_abilities = num_kcs
        self.theta, self.difficulty = of_student(width, num_kcs), of_text(width, num_kcs)
        self.guessing, self.slipping = of_text(width, 1), of_text(width, 1)

    def ability(self, e_u: Tensor) -> Tensor:
        """Return the logit of mastery: [N, K]."""
        theta: Tensor = self.theta(e_u)
        return theta

    def interact(self, ability: Tensor, q_v: Tensor, d_uv: Tensor, kc: Tensor) -> Tensor:
        """Return the logit [N]."""
        mastered = (F.logsigmoid(ability - self.difficulty(d_uv)) * kc).sum(1)
        share = mastered + F.logsigmoid(SLIP_START + self.slipping(q_v)[:, 0])
        return bounded(self.guessing(q_v)[:, 0], share)

    def item_parameters(self, q_v: Tensor, d_uv: Tensor) -> dict[str, Tensor]:
        """Return ``guessing`` and ``slipping`` [N], ``difficulty`` [N, K] in logits."""
        guess = self.guessing(q_v)[:, 0].sigmoid()
        hit = torch.sigmoid(SLIP_START + self.slipping(q_v)[:, 0])
        return {
            "guessing": guess,
            "slipping": (1 - guess) * (1 - hit),
            "difficulty": self.difficulty(d_uv),
        }
