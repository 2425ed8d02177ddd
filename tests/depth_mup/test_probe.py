"""The probe measures the formulas, in every kind of block, and leaves no trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_suite.depth_mup import dynamics
from lightning_suite.depth_mup.dynamics import Dynamics
from lightning_suite.depth_mup.models import ResidualConvNet, ResidualMLP
from lightning_suite.depth_mup.probe import StreamProbe, choose_rows, fingerprint
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def measure(
    model: nn.Module, forward: Callable[[], Tensor], *, rows: int = 8, lr: float = 0.05
) -> tuple[Dynamics, dict[str, Tensor]]:
    """Take one SGD step, then measure against the start."""
    probe = StreamProbe(model, assign_roles(model), rows=rows)
    start = probe.snapshot()
    forward().square().mean().backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(lr * p.grad)
    with probe.attached():
        probe.arm(step=0)
        forward().square().mean().backward()
        return dynamics.unpack(dynamics.pack(probe.measure(start))), start


@pytest.fixture
def net() -> ResidualMLP:
    return ResidualMLP(
        5,
        3,
        width=16,
        depth=4,
        branch_input="activation",
        readout_init="normal",
        rule="nfd",
        base_depth=2,
    ).double()


def test_a_residual_net_is_measured_by_its_closed_form(net: ResidualMLP) -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    got, start = measure(net, lambda: net(x))
    h, first_sum, last_sum = net.embed(x), torch.zeros(()), torch.zeros(())
    for i, block in enumerate(net.blocks):
        w1, w2 = block.first.weight, block.last.weight
        old1, old2 = start[f"blocks.{i}.first.weight"], start[f"blocks.{i}.last.weight"]
        c, a = block.multiplier, torch.tanh(h)
        phi, phi_old = torch.tanh(a @ w1.T), torch.tanh(a @ old1.T)
        first, last = c * (phi - phi_old) @ old2.T, c * phi @ (w2 - old2).T
        change = ((w1 - old1).square().sum() + (w2 - old2).square().sum()).sqrt()
        norm = (old1.square().sum() + old2.square().sum()).sqrt()
        expected = {
            "first_update": rms(a @ (w1 - old1).T),
            "last_update": rms(phi @ (w2 - old2).T),
            "product": rms((phi - phi_old) @ (w2 - old2).T),
            "first_stream": rms(first),
            "last_stream": rms(last),
            "relative_change": (change / norm).item(),
        }
        h = block(h)
        expected["min_eigenvalue"] = torch.linalg.eigvalsh(h @ h.T / 16)[0].item()
        for name, value in expected.items():
            assert got.blocks[name][i] == pytest.approx(value, rel=1e-9), name
        first_sum, last_sum = first_sum + first, last_sum + last
    assert got.first_stream == pytest.approx(rms(first_sum), rel=1e-9)
    assert got.last_stream == pytest.approx(rms(last_sum), rel=1e-9)


def test_coupling_is_the_cosine_of_state_and_gradient(net: ResidualMLP) -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    got, _ = measure(net, lambda: net(x))
    states = [net.embed(x)]
    for block in net.blocks:
        states.append(block(states[-1]))
        states[-1].retain_grad()
    net.readout(states[-1] * net.readout_multiplier).square().mean().backward()
    for i, h in enumerate(states[1:]):
        assert h.grad is not None
        expected = torch.cosine_similarity(h, h.grad, dim=1).mean().item()
        assert got.blocks["coupling"][i] == pytest.approx(expected, rel=1e-9)


def test_one_matrix_blocks_have_no_first_matrix() -> None:
    net = ResidualMLP(5, 3, width=8, depth=2, block_depth=1, readout_init="normal")
    x = torch.randn(4, 5)
    got, _ = measure(net, lambda: net(x))
    assert set(got.summary()) == {
        "last_update",
        "last_stream",
        "relative_change",
        "coupling",
        "min_eigenvalue",
    }


def test_convolutions() -> None:
    net = ResidualConvNet(
        1, 3, width=4, depth=2, branch_input="activation", activation="tanh", readout_init="normal"
    ).double()
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    got, start = measure(net, lambda: net(x))
    h, block = net.embed(x), net.blocks[0]
    a = torch.tanh(h)
    delta = block.first.weight - start["blocks.0.first.weight"]
    expected = rms(nn.functional.conv2d(a, delta, padding=1))
    assert got.blocks["first_update"][0] == pytest.approx(expected, rel=1e-9)


def transformer(kind: str, dropout: float = 0.0) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a small model and its forward on fixed inputs."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "vit":
        config = transformers.ViTConfig(
            **shape, intermediate_size=24, image_size=8, patch_size=4, hidden_act="tanh"
        )
        model = transformers.ViTForImageClassification(config)
        inputs = torch.randn(4, 3, 8, 8)
    else:
        if kind == "llama":
            config = transformers.LlamaConfig(
                **shape, vocab_size=32, intermediate_size=24, num_key_value_heads=1
            )
        else:
            config = transformers.GPT2Config(
                vocab_size=32,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=16,
                attn_pdrop=dropout,
                embd_pdrop=dropout,
                resid_pdrop=dropout,
            )
        model = transformers.AutoModelForCausalLM.from_config(config)
        inputs = torch.randint(0, 32, (4, 9))
    return model.train(), lambda: model(inputs).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_the_two_contributions_add_up_to_all_that_learning_adds(kind: str) -> None:
    """first_stream + last_stream = block(h; W) - block(h; W_0), attention and gates or not."""
    model, forward = transformer(kind)
    role_map = assign_roles(model)
    old = copy.deepcopy(model)
    old.load_state_dict(
        {
            name: value + 0.1 * torch.randn_like(value)
            if role_map.roles.get(name, "").startswith("hidden")
            else value
            for name, value in model.state_dict().items()
        }
    )
    reference = StreamProbe(old, role_map).snapshot()
    probe = StreamProbe(model, role_map)
    calls = {}

    def keep(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        kwargs = {k: None if "past_key" in k else v for k, v in kwargs.items()}
        args = tuple(None if hasattr(a, "get_seq_length") else a for a in args)
        calls[len(calls)] = (args, kwargs, output)

    for name in role_map.blocks:
        model.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
    with probe.attached():
        probe.arm(step=0)
        forward().square().mean().backward()
        measured = probe.measure(reference)
    for i, name in enumerate(role_map.blocks):
        args, kwargs, output = calls[i]
        with torch.no_grad():
            before = old.get_submodule(name)(*args, **kwargs)
        tensors = [t[0] if isinstance(t, tuple) else t for t in (output, before)]
        block = measured[i]
        assert block is not None
        assert block.first_stream is not None
        torch.testing.assert_close(
            block.first_stream + block.last_stream, tensors[0].detach() - tensors[1]
        )
        assert rms(block.first_stream) > 1e-3
        assert rms(block.last_stream) > 1e-3


def test_dropout_masks_are_shared_by_all_evaluations() -> None:
    """With the weights of the start nothing is added, although half of the units are dropped."""
    model, forward = transformer("gpt2", dropout=0.5)
    probe = StreamProbe(model, assign_roles(model), rows=3)
    with probe.attached():
        probe.arm(step=0)
        forward().square().mean().backward()
        summary = dynamics.unpack(dynamics.pack(probe.measure(probe.snapshot()))).summary()
    assert (summary["first_stream"], summary["last_stream"]) == (0, 0)
    assert set(summary) == set(dynamics.QUANTITIES)


def test_batch_statistics_and_random_state_stay_as_they_were() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 8)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.last(self.drop(torch.tanh(self.norm(self.first(h)))))  # type: ignore[no-any-return]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 8)
            self.blocks = nn.Sequential(Block(), Block())
            self.readout = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.blocks(self.embed(x)))  # type: ignore[no-any-return]

    net = Net()
    probe = StreamProbe(net, assign_roles(net))
    with probe.attached():
        probe.arm(step=0)
        net(torch.randn(6, 4)).sum().backward()
        state = {name: value.clone() for name, value in net.state_dict().items()}
        random = torch.random.get_rng_state()
        probe.measure({name: w + 0.1 for name, w in probe.snapshot().items()})
    assert torch.equal(random, torch.random.get_rng_state())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_only_rows_are_kept_and_their_choice_is_reproducible() -> None:
    assert choose_rows(100, 4, seed=1, step=7).tolist() == choose_rows(100, 4, 1, 7).tolist()
    assert choose_rows(100, 4, seed=1, step=7).tolist() != choose_rows(100, 4, 1, 8).tolist()
    assert choose_rows(3, 8, seed=0, step=0).tolist() == [0, 1, 2]


def test_a_fingerprint_tells_weights_apart() -> None:
    a = {"w": torch.randn(7, 9)}
    assert fingerprint(a) == fingerprint({"w": a["w"].clone()})
    assert fingerprint(a) != fingerprint({"w": a["w"] * 1.0001})


def test_ranks_are_averaged_in_the_squares() -> None:
    """Packed measurements of two ranks, one of which has skipped the second block."""

    def block(value: float) -> dynamics.BlockMeasurement:
        return dynamics.BlockMeasurement(
            {"last_update": torch.tensor(value**2), "coupling": torch.tensor(value)},
            torch.eye(2, dtype=torch.float64),
            None,
            torch.full((2, 2), value),
        )

    summed = dynamics.pack([block(3.0), block(1.0)]) + dynamics.pack([block(4.0), None])
    got = dynamics.unpack(summed)
    assert got.blocks["last_update"] == pytest.approx([12.5**0.5, 1.0])
    assert got.blocks["coupling"] == pytest.approx([3.5, 1.0])


def test_a_diverged_model_is_measured_as_nothing(net: ResidualMLP) -> None:
    """The monitor must not be what ends the run."""
    probe = StreamProbe(net, assign_roles(net))
    start = probe.snapshot()
    with torch.no_grad():
        net.blocks[1].last.weight.fill_(float("nan"))
    with probe.attached():
        probe.arm(step=0)
        net(torch.randn(4, 5, dtype=torch.float64)).sum().backward()
        got = dynamics.unpack(dynamics.pack(probe.measure(start)))
    finite = [math.isfinite(value) for value in got.blocks["min_eigenvalue"]]
    assert finite == [True, False, False, False]
    assert got.summary()["first_update"] == 0  # of the one block that is left


def test_a_frozen_model_has_nothing_to_measure(net: ResidualMLP) -> None:
    net.requires_grad_(False)
    with pytest.raises(SuiteError, match="none of the 4 residual blocks has a trainable matrix"):
        StreamProbe(net, assign_roles(net))


def test_hooks_are_removed(net: ResidualMLP) -> None:
    probe = StreamProbe(net, assign_roles(net))
    with probe.attached():
        assert net.blocks[0]._forward_hooks
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in net.blocks)


class Masked(nn.Module):
    """Mixes a sequence by a mask that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = h + self.last(torch.tanh(self.first(mask @ h)))
        return out


def test_a_mask_is_not_taken_for_rows_where_the_batch_is_as_long_as_the_sequence() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList(Masked() for _ in range(2))})
    h, mask = torch.randn(6, 6, 4), torch.ones(6, 6).tril()

    def forward() -> Tensor:
        out = h
        for block in model["blocks"]:
            out = block(out, mask)
        return out

    measured, _ = measure(model, forward, rows=3)
    assert min(measured.blocks["first_update"]) > 0
    assert min(measured.blocks["last_stream"]) > 0


def test_errors_in_a_block_come_out_of_measure_and_not_of_the_forward() -> None:
    class Whole(Masked):
        def forward(self, h: Tensor, mask: Tensor) -> Tensor:
            return super().forward(h, mask[: len(h)] * torch.ones(6, 1, 1))

    model = nn.ModuleDict({"blocks": nn.ModuleList(Whole() for _ in range(2))})
    probe = StreamProbe(model, assign_roles(model), rows=3)
    start = probe.snapshot()
    with probe.attached():
        probe.arm(step=0)
        model["blocks"][0](torch.randn(6, 6, 4), torch.ones(6, 6)).sum().backward()
        with pytest.raises(SuiteError, match=r"the block 'blocks\.0' cannot be run alone"):
            probe.measure(start)
        assert not probe.captured
