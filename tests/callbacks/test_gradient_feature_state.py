"""A run that was broken and resumed logs and writes the gradient features of one that was not."""

from __future__ import annotations

import gc
import os
import socket
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import Batches, ForeignModule, KilledError, SaveThenDie, TwoOptimizers, quiet_trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_suite import GradientFeatureCallback
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import merge_shards
from lightning_suite.resofilter.verification import GradientCheck

Logged = dict[int, dict[str, float]]
PER_EPOCH = 5


class Remembers(CSVLogger):
    """A logger that can be asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seen: Logged = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        ours = {name: value for name, value in metrics.items() if name.startswith("resofilter/")}
        if ours:
            self.seen.setdefault(step or 0, {}).update(ours)


def train(
    folder: Path,
    *others: Callback,
    make: Any = ForeignModule,
    first: bool = True,
    ckpt_path: Path | None = None,
    every_n_steps: int = 1,
    **options: Any,
) -> Logged:
    """Train three epochs of five batches; return what was logged by step."""
    logger = Remembers(folder)
    ours = GradientFeatureCallback(
        ["grad_norm", "sketch", "grad_max"], folder=str(folder), every_n_steps=every_n_steps
    )
    callbacks = [ours, *others] if first else [*others, ours]
    options = {"max_epochs": 3, "log_every_n_steps": 4, "logger": logger, **options}
    trainer = quiet_trainer(callbacks, **options)
    with suppress(KilledError):
        trainer.fit(make(), Batches(PER_EPOCH), ckpt_path=ckpt_path, weights_only=True)
    return logger.seen


# Lightning does not save gradients that are accumulated in part: there whole steps are asked for.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3, "log_every_n_steps": 2},
    "every third step": {"every_n_steps": 3},
    "two optimizers": {"make": TwoOptimizers},
    "clipped": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [3, 8])
def test_what_is_logged_after_a_resume_is_what_would_have_been(
    tmp_path: Path, kind: str, batch: int
) -> None:
    options = {**KINDS[kind], "first": batch == 3}  # or after who saves
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "rows", SaveThenDie(tmp_path / "mid.ckpt", batch), **options)
    resumed = train(tmp_path / "rows", ckpt_path=tmp_path / "mid.ckpt", **options)
    assert len(whole) > 1
    assert resumed
    assert resumed == {step: whole[step] for step in resumed}
    assert max(resumed) == max(whole)


def test_a_checkpoint_of_an_earlier_release_has_no_means_and_is_resumed(tmp_path: Path) -> None:
    train(tmp_path / "rows", SaveThenDie(path := tmp_path / "mid.ckpt", 6))
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if key.startswith("Gradient"))
    del checkpoint["callbacks"][key]["means"]
    torch.save(checkpoint, path)
    logged = train(tmp_path / "rows", ckpt_path=path)
    assert [round(metrics["resofilter/samples"]) for metrics in logged.values()] == [24, 32, 16][:2]


def test_a_fit_that_goes_on_in_the_same_trainer_logs_what_one_would_have(tmp_path: Path) -> None:
    def logged(*epochs: int) -> Logged:
        folder = tmp_path / str(len(epochs))
        callback = GradientFeatureCallback(["grad_norm"], folder=str(folder / "rows"))
        logger = Remembers(folder)
        trainer = quiet_trainer([callback], logger=logger, log_every_n_steps=4)
        module = ForeignModule(lambda groups: torch.optim.SGD(groups, lr=0.05))
        for until in epochs:
            trainer.fit_loop.max_epochs = until
            trainer.fit(module, Batches(PER_EPOCH))
        return logger.seen

    assert logged(1, 3) == logged(3)


def test_a_callback_that_has_trained_lets_its_module_go(tmp_path: Path) -> None:
    callback, module = GradientFeatureCallback(folder=str(tmp_path)), ForeignModule()
    weight = weakref.ref(module.backbone.stem.weight)
    trainer = quiet_trainer([callback], max_epochs=1)
    trainer.fit(module, Batches(1))
    # Lightning keeps both
    module.backbone, trainer.optimizers = torch.nn.Identity(), []  # type: ignore[assignment]
    gc.collect()
    assert weight() is None


# --- nothing left to train ------------------------------------------------------------------------


def table(folder: Path) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in table_columns(merge_shards(folder)).items()}


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": 9, "max_steps": 7}])
def test_a_resume_with_nothing_left_to_train_has_the_whole_table_in_its_own_folder(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    first = GradientFeatureCallback(folder=str(tmp_path / "first"))
    trainer = quiet_trainer([first], **limit)
    trainer.fit(ForeignModule(), Batches(PER_EPOCH))
    trainer.save_checkpoint(tmp_path / "done.ckpt")
    again = GradientFeatureCallback(folder=str(tmp_path / "again"))
    other = quiet_trainer([again], **limit)
    other.fit(ForeignModule(), Batches(PER_EPOCH), ckpt_path=tmp_path / "done.ckpt")
    whole = table(tmp_path / "first")
    assert table(tmp_path / "again") == whole

    # and that folder is the one that a further fit goes on in
    other.save_checkpoint(tmp_path / "again.ckpt")
    assert again.state_dict()["folder"] == str(tmp_path / "again")
    last = GradientFeatureCallback(folder=str(tmp_path / "last"))
    quiet_trainer([last], max_epochs=3).fit(
        ForeignModule(), Batches(PER_EPOCH), ckpt_path=tmp_path / "again.ckpt"
    )
    batches = Counter(table(tmp_path / "last")["batch"])
    assert dict(batches) == dict.fromkeys(range(len(batches)), 8)
    assert len(batches) > 10


# --- several processes ----------------------------------------------------------------------------


class Given(Batches):
    """A rank's own batches."""

    def __init__(self, rank: int) -> None:
        super().__init__(2 * PER_EPOCH, 6)
        self.batches = self.batches[rank::2]


def two_ranks(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
    )
    logged: list[Logged] = []
    for name, others, ckpt_path in (
        ("whole", [], None),
        ("killed", [SaveThenDie(folder / "mid.ckpt", 6)], None),
        ("killed", [], folder / "mid.ckpt"),
    ):
        logger = Remembers(folder / f"{name}{rank}")
        callback = GradientFeatureCallback(["grad_norm", "sketch"], folder=str(folder / name))
        trainer = quiet_trainer(
            [*others, callback],
            max_epochs=3,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
            logger=logger,
            log_every_n_steps=4,
        )
        with suppress(KilledError):
            trainer.fit(ForeignModule(), Given(rank), ckpt_path=ckpt_path, weights_only=True)
        logged.append(logger.seen)
    whole, _, resumed = logged
    if rank == 0:
        assert sorted(resumed) == [8, 12]
        assert resumed[8]["resofilter/samples"] == 4 * 2 * 6
        assert resumed == {step: whole[step] for step in resumed}
        (state,) = torch.load(folder / "mid.ckpt", weights_only=True)["callbacks"].values()
        assert len(state["means"]) == 2
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # Python's advice about forks
def test_of_two_ranks_a_checkpoint_has_what_each_of_them_has_to_log(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    ranks = [context.Process(target=two_ranks, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0


# --- the comparison with autograd -----------------------------------------------------------------


class UsesTwice(ForeignModule):
    """The head's weight is used again, without a call of the head."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        penalty = self.backbone.head.weight.square().sum()
        return super().training_step(batch, batch_idx) + penalty


def compared(
    monkeypatch: pytest.MonkeyPatch, module: ForeignModule, callbacks: Sequence[Any], **options: Any
) -> list[tuple[int, int]]:
    """Train on one batch; return of each comparison: how many targets, and how many were left."""
    seen: list[tuple[int, int]] = []

    def passed(check: GradientCheck) -> bool:
        seen.append((len(check.targets), len(check._truth.keys() - check._excluded)))
        return original(check)

    original = GradientCheck.passed
    monkeypatch.setattr(GradientCheck, "passed", passed)
    quiet_trainer(callbacks, max_epochs=1, **options).fit(module, Batches(1))
    return seen


def test_of_two_callbacks_both_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = [
        GradientFeatureCallback([name], folder=str(tmp_path / name), biases=name == "grad_max")
        for name in ("grad_norm", "grad_max")
    ]
    assert compared(monkeypatch, ForeignModule(), callbacks) == [(10, 10), (20, 20)]
    first, second = (table(tmp_path / name) for name in ("grad_norm", "grad_max"))
    for name in first:
        if name.endswith("grad_norm"):
            largest = second[name.replace("grad_norm", "grad_max")]
            assert all(a >= b for a, b in zip(first[name], largest, strict=True))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_sixteen_bits_are_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    def callback(name: str) -> GradientFeatureCallback:
        return GradientFeatureCallback(folder=str(tmp_path / name), biases=True)

    seen = compared(monkeypatch, ForeignModule(), [callback("sound")], precision=precision)
    assert seen == [(20, 20)]
    with pytest.raises(Exception, match=r"\n  backbone.head: norm \S+ from its rows") as error:
        compared(monkeypatch, UsesTwice(), [callback("wrong")], precision=precision)
    assert "backbone.stem" not in str(error.value)
