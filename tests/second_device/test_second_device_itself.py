"""The device of these tests computes what the CPU does, and refuses what a GPU refuses."""

from __future__ import annotations

import pytest
import torch
from second_device import NAME, SecondTensor, on_cpu, waits_counted
from torch import nn


def test_a_network_trains_on_it_as_on_the_cpu() -> None:
    weights = []
    for device in ("cpu", NAME):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)).to(device)
        x, labels = torch.randn(3, 4).to(device), torch.tensor([0, 1, 0], device=device)
        optimizer = torch.optim.AdamW(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
        assert all(p.device.type == device for p in net.parameters())
        weights.append([on_cpu(p) for p in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_tensors_of_two_devices_do_not_mix() -> None:
    there = torch.ones(3, device=NAME)
    assert isinstance(there, SecondTensor)
    with pytest.raises(RuntimeError, match=r"aten::add: expected all tensors on second:0"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="aten::index"):
        torch.ones(3)[torch.tensor([0], device=NAME)]
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert there[torch.tensor([0, 1])].shape == (2,)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def test_what_makes_the_host_wait_is_counted() -> None:
    there = torch.ones(3, device=NAME)
    with waits_counted() as none:
        (there * 2).sum()
        torch.zeros(3, device=NAME).copy_(there)
    assert not none
    with waits_counted() as some:
        float(there.sum()), there.cpu(), there.nonzero(), there.tolist(), bool(there.any())
    assert some == {
        "aten::_local_scalar_dense": 2,
        "aten::_to_copy": 1,
        "aten::nonzero": 1,
        "tolist": 1,
    }
