"""What is drawn depends on what it is for; the draws around it are not touched."""

from __future__ import annotations

import torch

from lightning_suite.seeding import seeded_by


def draw(*parts: int) -> torch.Tensor:
    with seeded_by(*parts, device=torch.device("cpu")):
        return torch.rand(4)


def test_parts_and_the_seed_of_the_process_decide() -> None:
    torch.manual_seed(1)
    first = draw(0, 2, 1)
    assert torch.equal(draw(0, 2, 1), first)
    assert not torch.equal(draw(2, 0, 1), first)
    torch.manual_seed(2)
    assert not torch.equal(draw(0, 2, 1), first)


def test_draws_before_and_after_are_what_they_were() -> None:
    torch.manual_seed(1)
    plain = torch.rand(6)
    torch.manual_seed(1)
    before = torch.rand(3)
    draw(5)
    assert torch.equal(torch.cat([before, torch.rand(3)]), plain)
    assert torch.initial_seed() == 1
