"""Runs that train together end where they end alone."""

from __future__ import annotations

import math

import pytest
import torch
from reference.lr_transfer_reference import train_alone
from torch import Tensor, nn

from lightning_suite.depth_mup.batched import (
    BatchedResult,
    Run,
    batch_order,
    evaluate_batched,
    runs_per_batch,
    train_batched,
)
from lightning_suite.depth_mup.lr_transfer import BatchedEngine, NetSettings, RuleChoice
from lightning_suite.depth_mup.param_groups import Factors
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings
from lightning_suite.errors import SuiteError

STEPS, BATCH = 12, 16
OPTIMIZERS = {
    "sgd": OptimizerSettings("sgd"),
    "momentum": OptimizerSettings("sgd", momentum=0.9, weight_decay=0.01),
    "nesterov": OptimizerSettings("sgd", momentum=0.9, nesterov=True),
    "adam": OptimizerSettings("adam", weight_decay=0.1, betas=(0.8, 0.95)),
    "adamw": OptimizerSettings("adamw", weight_decay=0.1, eps=1e-6),
}


def images(rows: int = 100) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator)


def engine(optimizer: OptimizerSettings, **net: object) -> BatchedEngine:
    options = {"width": 8, "base_width": 4, "bias": True, "readout_init": "normal", **net}
    return BatchedEngine(
        NetSettings(**options),
        optimizer,
        images(),
        images(),
        base_depth=2,
        steps=STEPS,
        batch_size=BATCH,
        final_steps=3,
        dtype=torch.float64,
    )


def train(setup: BatchedEngine, rule: RuleChoice, depth: int, runs: list[Run]) -> BatchedResult:
    return train_batched(
        lambda seed: setup.make_net(rule.rule, depth, seed),
        runs,
        setup.optimizer,
        setup.train,
        steps=STEPS,
        batch_size=BATCH,
        factors=setup.factors(rule, depth),
        val=setup.val,
        dtype=torch.float64,
    )


def assert_equal_to_runs_alone(
    setup: BatchedEngine, rule: RuleChoice, depth: int, runs: list[Run]
) -> None:
    together = train(setup, rule, depth, runs)
    for i, run in enumerate(runs):
        losses, net = train_alone(
            lambda seed: setup.make_net(rule.rule, depth, seed),
            run,
            setup.optimizer,
            setup.train,
            steps=STEPS,
            batch_size=BATCH,
            factors=setup.factors(rule, depth),
        )
        torch.testing.assert_close(together.losses[i], losses, rtol=0, atol=1e-10)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(
                together.params[name][i], parameter.detach(), rtol=0, atol=1e-10
            )


@pytest.mark.parametrize("rule", ["sp", "mup", "depth_mup", "nfd", "nfd:0.25", "completep"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_runs_together_equal_runs_alone_for_every_rule(optimizer: str, rule: str) -> None:
    rate = 0.1 if OPTIMIZERS[optimizer].family == "sgd" else 0.01
    runs = [Run(0, rate), Run(1, rate / 2), Run(0, rate / 4)]
    assert_equal_to_runs_alone(engine(OPTIMIZERS[optimizer]), RuleChoice.parse(rule), 4, runs)


@pytest.mark.parametrize(
    "net",
    [
        {"block_depth": 1, "activation": "relu"},
        {"branch_input": "norm", "activation": "gelu"},
        {"architecture": "conv", "branch_input": "norm", "downsample": 1},
    ],
)
def test_every_kind_of_net_can_be_batched(net: dict[str, object]) -> None:
    runs = [Run(3, 0.05), Run(4, 0.1)]
    assert_equal_to_runs_alone(engine(OPTIMIZERS["adamw"], **net), RuleChoice("nfd"), 3, runs)


def test_a_diverging_run_leaves_and_the_others_never_notice() -> None:
    # relu without norm: a huge rate makes the loss overflow within a few steps
    setup = engine(OPTIMIZERS["momentum"], activation="relu")
    sane = [Run(0, 0.05), Run(1, 0.1)]
    result = train(setup, RuleChoice("sp"), 4, [sane[0], Run(0, 1e30), sane[1]])
    alone = train(setup, RuleChoice("sp"), 4, sane)

    step = result.diverged_at[1]
    assert step is not None
    assert 0 < step < STEPS
    assert torch.isfinite(result.losses[1, :step]).all()
    assert torch.isinf(result.losses[1, step:]).all()
    assert result.val_loss is not None
    assert result.val_accuracy is not None
    assert math.isinf(result.val_loss[1])
    assert result.val_accuracy[1] == 0
    assert result.diverged_at[::2] == [None, None]
    torch.testing.assert_close(result.losses[[0, 2]], alone.losses, rtol=0, atol=1e-12)
    for name, value in alone.params.items():
        torch.testing.assert_close(result.params[name][[0, 2]], value, rtol=0, atol=1e-12)


def test_all_runs_may_diverge() -> None:
    result = train(
        engine(OPTIMIZERS["sgd"], activation="relu"), RuleChoice("sp"), 4, [Run(0, 1e30)]
    )
    assert result.diverged_at[0] is not None
    assert torch.isinf(result.losses[0, -1])


def test_evaluation_equals_the_net_on_all_rows() -> None:
    setup = engine(OPTIMIZERS["sgd"])
    net = setup.make_net("sp", 2, 0).double()
    x, y = images(101)
    params = {n: torch.stack([p, p + 0.1]).detach() for n, p in net.named_parameters()}
    loss, accuracy = evaluate_batched(net, params, (x, y), rows_at_once=25)
    logits = net(x).detach()
    torch.testing.assert_close(loss[0], nn.functional.cross_entropy(logits, y))
    assert accuracy[0] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert loss[0] != loss[1]


def test_the_order_shows_every_row_once_an_epoch_and_depends_on_the_seed() -> None:
    order = batch_order(rows=10, batch_size=3, steps=6, seed=1)
    assert order.shape == (6, 3)
    assert len(set(order[:3].flatten().tolist())) == 9
    assert len(set(order[3:].flatten().tolist())) == 9
    assert not torch.equal(order[:3], order[3:])
    assert torch.equal(order[:4], batch_order(10, 3, 4, seed=1))
    assert not torch.equal(order, batch_order(10, 3, 6, seed=2))


def test_batches_hold_fewer_runs_of_wide_nets() -> None:
    sizes = [runs_per_batch(nn.Linear(n, n, bias=False)) for n in (8, 128, 256, 4096)]
    assert sizes == [32, 16, 4, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": []}, "no runs to train"),
        ({"batch_size": 101}, "batch_size=101 with 100 training rows"),
        ({"factors": {"blocks.9": Factors()}}, "the network lacks: blocks.9"),
        ({"make_net": lambda _: nn.BatchNorm1d(3)}, "BatchNorm1d has buffers"),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, object], message: str) -> None:
    setup = engine(OPTIMIZERS["sgd"])
    arguments = {
        "make_net": lambda seed: setup.make_net("sp", 2, seed),
        "runs": [Run(0, 0.1)],
        "settings": setup.optimizer,
        "train": images(),
        "steps": 1,
        "batch_size": 10,
        **change,
    }
    with pytest.raises(SuiteError, match=message):
        train_batched(**arguments)
