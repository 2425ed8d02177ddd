r"""The stream's covariance in the limit of infinite width, by the recursion over the depth.

At initialisation and infinite width the stream is Gaussian: with
:math:`C_l(x, x') = \langle h_l(x), h_l(x') \rangle / n`, a residual branch adds to the covariance
the covariance of its own output (the last matrix is independent of all before it):

* one matrix: :math:`C_{l+1} = C_l + c^2\,V_\varphi(C_l)`
* two matrices: :math:`C_{l+1} = C_l + c^2\,V_\varphi(V_a(C_l))`

where :math:`V_\varphi(C)(x, x') = E[\varphi(u)\varphi(v)]` for :math:`(u, v) \sim N(0, C)`. With
:math:`c^2 = \tau / L` this is the Euler scheme of :math:`dC/dt = V(C)` on :math:`[0, \tau]`: the
discretisation error is :math:`O(1/L)`.

Source: the depth limit of residual networks as used by arXiv 2310.02244 and arXiv 2512.21075.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lightning_suite.errors import SuiteError

Scalar = Callable[[Tensor], Tensor]


@lru_cache(maxsize=4)
def _gauss_hermite(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(z)] for a standard normal z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def gaussian_expectation(phi: Scalar, covariance: Tensor, order: int = 64) -> Tensor:
    r"""Return :math:`E[\varphi(u_i)\varphi(u_j)]` for :math:`u \sim N(0, C)`, by quadrature.

    Args:
        phi: The nonlinearity, elementwise; smooth functions converge exponentially in ``order``.
        covariance: C, ``[N, N]``, positive semidefinite.
        order: Nodes of the Gauss-Hermite rule in each of the two dimensions.

    Returns:
        ``[N, N]``, float64.
    """
    covariance = covariance.double()
    nodes, weights = _gauss_hermite(order)
    scale = covariance.diagonal().sqrt()
    # u = s_i z1, v = s_j (rho z1 + sqrt(1 - rho^2) z2)
    rho = (covariance / scale.outer(scale)).clamp(-1, 1)
    # exactly 1, or the square root below would turn a rounding error of 1e-16 into 1e-8
    rho = rho.masked_fill(torch.eye(len(rho), dtype=torch.bool), 1.0)
    u = phi(scale[:, None] * nodes)  # [N, order]
    mixed = rho[..., None, None] * nodes[:, None]
    mixed = mixed + (1 - rho**2).sqrt()[..., None, None] * nodes
    v = phi(scale[:, None, None] * mixed) @ weights  # [N, N, order]
    return torch.einsum("ik,ijk,k->ij", u, v, weights)


def forward_covariance(
    initial: Tensor,
    depth: int,
    *,
    phi: Scalar = torch.tanh,
    branch_input: Scalar | None = None,
    block_depth: int = 2,
    tau: float = 1.0,
    order: int = 64,
) -> Tensor:
    r"""Return the stream's covariance after each block, at infinite width and initialisation.

    Args:
        initial: :math:`C_0`, ``[N, N]``: the covariance of the embedded inputs.
        depth: L.
        phi: The nonlinearity before the last matrix.
        branch_input: a, what a two-matrix branch applies to the stream first; None: identity.
        block_depth: Matrices in a branch, 1 or 2.
        tau: :math:`L c^2`: 1 for the residual multiplier :math:`c = 1/\sqrt{L}`.
        order: See :func:`gaussian_expectation`.

    Returns:
        ``[L + 1, N, N]`` float64; the first is ``initial``.

    Raises:
        SuiteError: ``depth`` is below 1, ``block_depth`` is not 1 or 2.

    Example:
        >>> forward_covariance(torch.eye(2), depth=8).shape
        torch.Size([9, 2, 2])
    """
    if depth < 1:
        raise SuiteError(f"depth={depth}, and it must be at least 1.")
    if block_depth not in (1, 2):
        raise SuiteError(f"block_depth={block_depth}; a branch has 1 or 2 matrices.")
    covariances = [initial.double()]
    for _ in range(depth):
        inner = covariances[-1]
        if block_depth == 2 and branch_input is not None:
            inner = gaussian_expectation(branch_input, inner, order)
        covariances.append(covariances[-1] + tau / depth * gaussian_expectation(phi, inner, order))
    return torch.stack(covariances)
