"""Neural diagnosis of each KC: a table of KCs (NCDM), or KCs by their texts (KaNCD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.heads.base import Head, of_student, of_text


class NonNegative(nn.Linear):
    """A linear layer whose weights count by their absolute value, so that it never decreases."""

    def forward(self, input: Tensor) -> Tensor:
        """Return |W|·input + bias."""
        return F.linear(input, self.weight.abs(), self.bias)


def monotone_network(inputs: int, dropout: float) -> nn.Sequential:
    """Return n → 4n → 2n → 1 with tanh between, non-decreasing in every input."""
    layers = nn.Sequential(
        NonNegative(inputs, 4 * inputs),
        nn.Tanh(),
        nn.Dropout(dropout),
        NonNegative(4 * inputs, 2 * inputs),
        nn.Tanh(),
        nn.Dropout(dropout),
        NonNegative(2 * inputs, 1),
    )
    for layer in layers:
        if isinstance(layer, NonNegative):
            nn.init.xavier_normal_(layer.weight)
    return layers


class NCDM(Head):
    """Neural cognitive diagnosis with a column for each KC, as in arXiv 2505.21239.

    θ = σ(W_t·e_u), diff = σ(W_d·d_uv), K + 1 numbers each (the last belongs to every exercise);
    disc = σ(w·q_v); the logit is a monotone network of disc·(θ - diff)·[kc, 1].

    Args:
        width: H.
        num_kcs: K.
        dropout: In the network.
    """

    per_kc = True

    def __init__(self, width: int, num_kcs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.num_abilities = num_kcs + 1
        self.theta, self.difficulty = of_student(width, num_kcs + 1), of_text(width, num_kcs + 1)
        self.discrimination = of_text(width, 1)
        self.network = monotone_network(num_kcs + 1, dropout)

    def ability(self, e_u: Tensor) -> Tensor:
        """Return W_t·e_u: [N, K + 1]."""
        theta: Tensor = self.theta(e_u)
        return theta

    def interact(self, ability: Tensor, q_v: Tensor, d_uv: Tensor, kc: Tensor) -> Tensor:
        """Return the logit [N]."""
        disc = self.discrimination(q_v).sigmoid()
        gap = ability.sigmoid() - self.difficulty(d_uv).sigmoid()
        needed = torch.cat([kc.to(gap.dtype), kc.new_ones(len(kc), 1, dtype=gap.dtype)], dim=1)
        logit: Tensor = self.network(disc * gap * needed)[:, 0]
        return logit

    def item_parameters(self, q_v: Tensor, d_uv: Tensor) -> dict[str, Tensor]:
        """Return ``discrimination`` [N] and ``difficulty`` [N, K + 1], both in [0, 1]."""
        return {
            "discrimination": self.discrimination(q_v)[:, 0].sigmoid(),
            "difficulty": self.difficulty(d_uv).sigmoid(),
        }


class KaNCD(Head):
    """Neural cognitive diagnosis with KCs known by their texts, so that new ones are no strangers.

    v_k = V·t_k + v_0 from the text vector t_k; mastery θ_uk = σ(mean of w·(T·e_u)·v_k) and
    diff_k = σ(mean of w'·(D·d_uv)·v_k), as the bilinear form of KaNCD (NeuralCD, IEEE TKDE 2023);
    disc = σ(w·q_v). The gaps disc·(θ_uk - diff_k) are averaged over the KCs of the exercise before
    the monotone network: a column of its own would leave an unseen KC without weights. For an
    exercise without KCs they are averaged over all KCs.

    v_0 is what all KCs share. The text vectors are centred, so without it a student who is good at
    everything could not be told, and an unseen KC would start from nothing. The mean over the
    vector's numbers keeps a step of Adam as large as it is in NCDM.

    Args:
        width: H.
        num_kcs: K.
        kc_vectors: Text vectors t_k: float32 [K, H'].
        dim: Length of v_k.
        dropout: In the network.
    """

    per_kc = True
    kc_vectors: Tensor

    def __init__(
        self,
        width: int,
        num_kcs: int,
        kc_vectors: Tensor | None = None,
        dim: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kc_vectors is None or len(kc_vectors) != num_kcs:
            given = "none" if kc_vectors is None else str(len(kc_vectors))
            raise SuiteError(
                f"head kancd: {num_kcs} KCs need as many text vectors; {given} are given. Every "
                "KC of the data must have a name."
            )
        self.num_abilities = num_kcs
        self.register_buffer("kc_vectors", kc_vectors.float())
        self.kc = nn.Linear(kc_vectors.shape[1], dim, dtype=torch.float32)
        nn.init.ones_(self.kc.bias)
        self.theta, self.difficulty = of_student(width, dim), of_text(width, dim)
        self.theta_weight = nn.Parameter(torch.ones(dim))
        self.difficulty_weight = nn.Parameter(torch.ones(dim))
        self.discrimination = of_text(width, 1)
        self.network = monotone_network(2, dropout)

    def ability(self, e_u: Tensor) -> Tensor:
        """Return the logit of mastery: [N, K]."""
        theta: Tensor = self.theta(e_u) * self.theta_weight
        return theta @ self._kcs().mT / theta.shape[1]

    def interact(self, ability: Tensor, q_v: Tensor, d_uv: Tensor, kc: Tensor) -> Tensor:
        """Return the logit [N]."""
        kc = kc.to(ability.dtype)
        kc = kc.where(kc.any(1, keepdim=True), torch.ones_like(kc))
        gap = (ability.sigmoid() - self._difficulty(d_uv)) * kc
        mean = gap.sum(1, keepdim=True) / kc.sum(1, keepdim=True)
        x = self.discrimination(q_v).sigmoid() * mean
        logit: Tensor = self.network(torch.cat([x, torch.ones_like(x)], dim=1))[:, 0]
        return logit

    def item_parameters(self, q_v: Tensor, d_uv: Tensor) -> dict[str, Tensor]:
        """Return ``discrimination`` [N] and ``difficulty`` [N, K], both in [0, 1]."""
        return {
            "discrimination": self.discrimination(q_v)[:, 0].sigmoid(),
            "difficulty": self._difficulty(d_uv),
        }

    def _kcs(self) -> Tensor:
        vectors: Tensor = self.kc(self.kc_vectors)
        return vectors

    def _difficulty(self, d_uv: Tensor) -> Tensor:
        difficulty: Tensor = self.difficulty(d_uv) * self.difficulty_weight
        return (difficulty @ self._kcs().mT / difficulty.shape[1]).sigmoid()
