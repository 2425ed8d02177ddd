"""Item response models: logistic with one to four parameters, and several abilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.heads.base import Head, between, bounded, of_student, of_text

SCALE = 1.702  # brings the logistic curve within .01 of the normal ogive
BOUND = 10.0
SLIP_START = 3.0  # nearly nobody who knows the answer slips before the data say so


class IRT(Head):
    """One ability θ against difficulty b: p = c + (1 - c)·s·σ(1.702·a·(θ - b)).

    θ = w_t·e_u and b = w_b·d_uv, clamped to ±10; a = softplus(w_a·q_v clamped to ±10), 1 with one
    parameter; guessing c = σ(w_c·q_v), 0 with fewer than three; s = σ(3 + w_s·q_v), 1 with fewer
    than four. With three parameters this is arXiv 2505.21239. Who slips, with probability
    (1 - c)·(1 - s), answers wrong whatever the ability.

    Args:
        width: H.
        num_kcs: Not used: there is one ability.
        parameters: 1 to 4.
    """

    def __init__(self, width: int, num_kcs: int = 0, parameters: int = 3) -> None:
        super().__init__()
        if not 1 <= parameters <= 4:
            raise SuiteError(f"head irt: parameters is {parameters}; choose 1, 2, 3 or 4.")
        self.num_abilities = 1
        self.theta, self.difficulty = of_student(width, 1), of_text(width, 1)
        self.discrimination = of_text(width, 1) if parameters > 1 else None
        self.guessing = of_text(width, 1) if parameters > 2 else None
        self.slipping = of_text(width, 1) if parameters > 3 else None

    def ability(self, e_u: Tensor) -> Tensor:
        """Return θ: [N, 1]."""
        theta: Tensor = self.theta(e_u)
        return theta.clamp(-BOUND, BOUND)

    def interact(self, ability: Tensor, q_v: Tensor, d_uv: Tensor, kc: Tensor) -> Tensor:
        """Return the logit [N]."""
        z = SCALE * self._a(q_v) * (ability[:, 0] - self._b(d_uv))
        if self.guessing is None:
            return z
        guess = self.guessing(q_v)[:, 0]
        if self.slipping is None:
            return between(guess, z)
        return bounded(guess, F.logsigmoid(z) + F.logsigmoid(SLIP_START + self.slipping(q_v)[:, 0]))

    def item_parameters(self, q_v: Tensor, d_uv: Tensor) -> dict[str, Tensor]:
        """Return ``discrimination``, ``difficulty``, ``guessing`` and ``slipping``: [N] each."""
        zero = torch.zeros_like(q_v[:, 0])
        guess = zero if self.guessing is None else self.guessing(q_v)[:, 0].sigmoid()
        slip = zero if self.slipping is None else (-SLIP_START - self.slipping(q_v)[:, 0]).sigmoid()
        return {
            "discrimination": self._a(q_v).expand_as(zero),
            "difficulty": self._b(d_uv),
            "guessing": guess,
            "slipping": (1 - guess) * slip,
        }

    def _a(self, q_v: Tensor) -> Tensor:
        if self.discrimination is None:
            return q_v.new_ones(())
        return F.softplus(self.discrimination(q_v)[:, 0].clamp(-BOUND, BOUND))

    def _b(self, d_uv: Tensor) -> Tensor:
        b: Tensor = self.difficulty(d_uv)[:, 0]
        return b.clamp(-BOUND, BOUND)


class MIRT(Head):
    """Several abilities: p = c + (1 - c)·σ(α·θ - β), from arXiv 2505.21239.

    θ = W_t·e_u, α = softplus(W_a·q_v), so that no ability lowers the chance; β = w_b·d_uv and
    c = σ(w_c·q_v).

    Args:
        width: H.
        num_kcs: Not used: abilities are not tied to KCs.
        dim: D, the number of abilities.
    """

    def __init__(self, width: int, num_kcs: int = 0, dim: int = 4) -> None:
        super().__init__()
        if dim < 1:
            raise SuiteError(f"head mirt: dim is {dim}; it must be 1 or more.")
        self.num_abilities = dim
        self.theta, self.discrimination = of_student(width, dim), of_text(width, dim)
        self.difficulty, self.guessing = of_text(width, 1), of_text(width, 1)

    def ability(self, e_u: Tensor) -> Tensor:
        """Return θ: [N, D]."""
        theta: Tensor = self.theta(e_u)
        return theta

    def interact(self, ability: Tensor, q_v: Tensor, d_uv: Tensor, kc: Tensor) -> Tensor:
        """Return the logit [N]."""
        alpha = F.softplus(self.discrimination(q_v))
        z = (alpha * ability).sum(1) - self.difficulty(d_uv)[:, 0]
        return between(self.guessing(q_v)[:, 0], z)

    def item_parameters(self, q_v: Tensor, d_uv: Tensor) -> dict[str, Tensor]:
        """Return ``discrimination`` [N, D], ``difficulty`` and ``guessing`` [N]."""
        return {
            "discrimination": F.softplus(self.discrimination(q_v)),
            "difficulty": self.difficulty(d_uv)[:, 0],
            "guessing": self.guessing(q_v)[:, 0].sigmoid(),
        }
