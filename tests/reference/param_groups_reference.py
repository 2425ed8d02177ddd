"""Literal twin of the learning-rate correction: one parameter group per parameter, by hand.

Nothing here is shared with the package: the factors are the table of the specification written out,
and the user's scheduler runs on a dummy optimizer whose options are copied into every group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# rule -> optimizer -> role -> learning-rate factor of r_n and r_L
FACTORS: dict[str, dict[str, dict[str, Callable[[float, float], float]]]] = {
    "sp": {
        "sgd": dict.fromkeys(("first", "last", "vector", "input", "output"), lambda n, d: 1.0),
        "adam": dict.fromkeys(("first", "last", "vector", "input", "output"), lambda n, d: 1.0),
    },
    "mup": {
        "sgd": {
            "first": lambda n, d: 1.0,
            "last": lambda n, d: 1.0,
            "vector": lambda n, d: n,
            "input": lambda n, d: n,
            "output": lambda n, d: n,
        },
        "adam": {
            "first": lambda n, d: 1 / n,
            "last": lambda n, d: 1 / n,
            "vector": lambda n, d: 1.0,
            "input": lambda n, d: 1.0,
            "output": lambda n, d: 1.0,
        },
    },
    "depth_mup": {
        "sgd": {
            "first": lambda n, d: 1.0,
            "last": lambda n, d: 1.0,
            "vector": lambda n, d: n,
            "input": lambda n, d: n,
            "output": lambda n, d: n,
        },
        "adam": {
            "first": lambda n, d: n**-1 * d**-0.5,
            "last": lambda n, d: n**-1 * d**-0.5,
            "vector": lambda n, d: d**-0.5,
            "input": lambda n, d: 1.0,
            "output": lambda n, d: 1.0,
        },
    },
    "nfd": {
        "sgd": {
            "first": lambda n, d: d**0.5,
            "last": lambda n, d: 1.0,
            "vector": lambda n, d: n,
            "input": lambda n, d: n,
            "output": lambda n, d: n,
        },
        "adam": {
            "first": lambda n, d: n**-1,
            "last": lambda n, d: n**-1 * d**-0.5,
            "vector": lambda n, d: d**-0.5,
            "input": lambda n, d: 1.0,
            "output": lambda n, d: 1.0,
        },
    },
    "completep": {
        "sgd": {
            "first": lambda n, d: d,
            "last": lambda n, d: d,
            "vector": lambda n, d: n * d,
            "input": lambda n, d: n,
            "output": lambda n, d: n,
        },
        "adam": {
            "first": lambda n, d: n**-1,
            "last": lambda n, d: n**-1,
            "vector": lambda n, d: 1.0,
            "input": lambda n, d: 1.0,
            "output": lambda n, d: 1.0,
        },
    },
}
ALPHA = {"sp": 0.0, "mup": 0.0, "depth_mup": 0.5, "nfd": 0.5, "completep": 1.0}


def role_of(name: str) -> str:
    """The role of a parameter of ``ResidualMLP``."""
    if "embed" in name or "final_norm" in name:
        return "input"
    if "readout" in name:
        return "output"
    if name.endswith("first.weight"):
        return "first"
    if name.endswith("last.weight"):
        return "last"
    return "vector"


def hand_made_groups(
    model: nn.Module, options: dict[str, Any], rule: str, family: str, r_n: float, r_L: float
) -> list[dict[str, Any]]:
    groups = []
    for name, parameter in model.named_parameters():
        role = role_of(name)
        group = {"params": [parameter], **options}
        group["lr"] = options["lr"] * FACTORS[rule][family][role](r_n, r_L)
        if family == "adam" and rule != "sp":
            if role in ("first", "last"):
                group["weight_decay"] = options["weight_decay"] * r_n
            group["eps"] = options["eps"] / r_n
            if role in ("first", "last", "vector"):
                group["eps"] *= r_L ** -ALPHA[rule]
        groups.append(group)
    return groups


def train_by_hand(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Tensor], Tensor],
    batches: Sequence[Tensor],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    make_scheduler: Callable[[torch.optim.Optimizer], Any] | None,
    rule: str,
    family: str,
    r_n: float,
    r_L: float,
) -> None:
    """Train ``model`` in place; the scheduler steps after every batch."""
    dummy = make_optimizer([nn.Parameter(torch.zeros(1))])
    scheduler = make_scheduler(dummy) if make_scheduler else None

    def options() -> dict[str, Any]:
        return {k: v for k, v in dummy.param_groups[0].items() if k != "params"}

    optimizer = type(dummy)(hand_made_groups(model, options(), rule, family, r_n, r_L))
    for batch in batches:
        fresh = hand_made_groups(model, options(), rule, family, r_n, r_L)
        for group, new in zip(optimizer.param_groups, fresh, strict=True):
            group.update(new)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        if scheduler is not None:
            dummy.step()
            scheduler.step()
