"""Every sample's gradient in the middle of a training run, and nothing lost over a resume."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import (
    Batches,
    ForeignModule,
    KilledError,
    SaveThenDie,
    TwoOptimizers,
    built_late_in,
    quiet_trainer,
    same,
    weights,
)
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_suite import CausalLMModule, GradientFeatureCallback, ResidualNetModule
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.manifest import read_manifest
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import merge_shards, shard_files

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but", "ignore:Found . module"
)

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
}


class Given:
    """A loader of just these batches."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class StandStill(ForeignModule):
    """Weights that never move, so that batches can be compared with other ways to cut them."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


CALLBACK_OPTIONS = (
    "features",
    "modules",
    "layers",
    "reduction",
    "ids",
    "every_n_steps",
    "biases",
    "batch_first",
)


def read(folder: Path) -> dict[str, Any]:
    return table_columns(merge_shards(folder))


def record(folder: Path, module: LightningModule, data: Any, **options: Any) -> dict[str, Any]:
    arguments = {"features": ["grad_norm"], "folder": str(folder)}
    for name in CALLBACK_OPTIONS:
        if name in options:
            arguments[name] = options.pop(name)
    callback = GradientFeatureCallback(**arguments)
    quiet_trainer([callback], **{"max_epochs": 1, **options}).fit(
        module, Given(data) if isinstance(data, list) else data
    )
    return read(folder)


def autograd_norms(module: Any, batch: Any, names: list[str], loss: Any) -> dict[str, list[float]]:
    parameters = dict(module.named_parameters())
    rows = [
        torch.autograd.grad(
            loss(module, batch, n), [parameters[f"{name}.weight"] for name in names]
        )
        for n in range(len(batch[0]))
    ]
    return {name: [float(row[i].double().norm()) for row in rows] for i, name in enumerate(names)}


def image_loss(module: Any, batch: Any, n: int) -> Tensor:
    return F.cross_entropy(module(batch[0][n : n + 1]), batch[1][n : n + 1])


def images(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.arange(size) % 10


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_gradients_of_images_are_autograd_s(tmp_path: Path, architecture: Any) -> None:
    module = ResidualNetModule(
        architecture, width=8, depth=2, readout_init="normal", optimizer=torch.optim.SGD
    )
    batch = images()
    names = [name for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    expected = autograd_norms(module, batch, names, image_loss)
    table = record(tmp_path, module, [batch])
    assert set(table["status"]) == {"ok"}
    for name in names:
        found = np.sort(table[f"{name}.grad_norm"])  # rows are sorted by id, a hash of the content
        np.testing.assert_allclose(found, np.sort(expected[name]), rtol=1e-5)


def tokens(ids: str = "abcd") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, 32, (len(ids), 9), generator=generator)
    lengths = torch.arange(len(ids)) % 4 + 6
    mask = (torch.arange(9) < lengths[:, None]).long()
    labels = input_ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    labels[0] = -100  # nothing to learn in the first sample
    return {
        "ids": list(ids),
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": labels,
        "truncated": torch.tensor([False] * (len(ids) - 1) + [True]),
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_language_model_s_token_mean_is_taken_apart(tmp_path: Path, checkpointing: bool) -> None:
    module = CausalLMModule(
        LLAMA, optimizer=torch.optim.SGD, gradient_checkpointing=checkpointing, init_seed=0
    )
    batch = tokens()
    name = "model.model.layers.1.mlp.up_proj"
    weight = module.get_parameter(f"{name}.weight")
    expected = []
    for n in range(1, 4):
        one = {k: v[n : n + 1] for k, v in batch.items() if k not in ("ids", "truncated")}
        expected.append(float(torch.autograd.grad(module(one).loss, weight)[0].double().norm()))
    table = record(tmp_path, module, [batch], modules="up_proj", layers="last:1")
    assert list(table["sample_id"]) == list("abcd")
    assert list(table["status"]) == ["no_labels", "ok", "ok", "truncated"]
    assert list(table["n_label_tokens"]) == [0, 5, 6, 7]
    found = table[f"{name}.grad_norm"]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5)


def test_accumulation_of_three_is_one(tmp_path: Path) -> None:
    x, y = Batches(1, 12).batches[0]
    whole = record(tmp_path / "one", StandStill(), [(x, y)])
    parts = list(zip(x.split(4), y.split(4), strict=True))
    split = record(tmp_path / "three", StandStill(), parts, accumulate_grad_batches=3)
    assert list(whole["sample_id"]) == list(split["sample_id"])
    assert set(split["step"]) == {0}
    assert sorted(set(split["batch"])) == [0, 1, 2]
    for name in whole:
        if name.endswith("grad_norm"):
            np.testing.assert_allclose(split[name], whole[name], rtol=1e-5)


def test_a_loss_that_is_a_sum_says_so(tmp_path: Path) -> None:
    class Sum(StandStill):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.backbone(batch[0]), batch[1], reduction="sum")

    batch = Batches(1).batches[0]
    mean = record(tmp_path / "mean", StandStill(), [batch])
    summed = record(tmp_path / "sum", Sum(), [batch], reduction="sum")
    name = "backbone.head.grad_norm"
    np.testing.assert_allclose(summed[name], mean[name], rtol=1e-5)


def test_ids_under_a_key_or_a_position(tmp_path: Path) -> None:
    x, y = Batches(1, 3).batches[0]

    class Named(StandStill):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = (batch[k] for k in (("x", "y") if isinstance(batch, dict) else (0, 1)))
            return F.cross_entropy(self.backbone(x), y)

    by_key = record(tmp_path / "key", Named(), [{"x": x, "y": y, "name": list("abc")}], ids="name")
    by_place = record(tmp_path / "place", Named(), [(x, y, torch.tensor([10, 9, 2]))], ids=2)
    assert list(by_key["sample_id"]) == ["a", "b", "c"]
    assert list(by_place["sample_id"]) == ["2", "9", "10"]
    with pytest.raises(SuiteError, match="ids='nam'.*has nothing there. It has x, y, name"):
        record(tmp_path / "no", Named(), [{"x": x, "y": y, "name": list("abc")}], ids="nam")
    with pytest.raises(SuiteError, match="2 sample ids for a batch of 3"):
        record(tmp_path / "two", Named(), [{"x": x, "y": y, "name": list("ab")}], ids="name")


def test_training_is_bitwise_the_same_with_the_callback(tmp_path: Path) -> None:
    with_it, without = ForeignModule(), ForeignModule()
    record(tmp_path, with_it, Batches(), features=["adam1_mean_abs", "sketch"], biases=True)
    quiet_trainer(max_epochs=1).fit(without, Batches())
    assert same(weights(with_it), weights(without))


def test_hooks_are_gone_after_fit_and_after_an_exception(tmp_path: Path) -> None:
    class Breaks(ForeignModule):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("in the middle")

    for number, module in enumerate([ForeignModule(), Breaks()]):
        callback = GradientFeatureCallback(folder=str(tmp_path / str(number)))
        trainer = quiet_trainer([callback], max_epochs=1)
        with pytest.raises(RuntimeError, match="in the middle") if number else nullcontext():
            trainer.fit(module, Batches())
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
        assert not any(hooks)


def test_only_every_nth_step_is_recorded_and_logged(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []

    from lightning.pytorch.loggers import CSVLogger

    class Logger(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            seen.append((step or 0, dict(metrics)))

    table = record(
        tmp_path / "rows",
        ForeignModule(),
        Batches(8),
        every_n_steps=3,
        logger=Logger(tmp_path),
        log_every_n_steps=1,
    )
    assert sorted(set(table["step"])) == [0, 3, 6]
    logged = {step: m for step, m in seen if "resofilter/grad_norm" in m}
    assert sorted(logged) == [0, 3, 6]
    columns = [name for name in table if name.endswith("grad_norm")]
    at = table["step"] == 3
    each = np.mean([table[name][at] for name in columns], axis=0)
    assert logged[3]["resofilter/grad_norm"] == pytest.approx(each.mean())
    assert logged[3]["resofilter/grad_norm_max"] == pytest.approx(each.max())
    assert logged[3]["resofilter/samples"] == 8


def test_a_trainer_that_logs_nothing_still_records(tmp_path: Path) -> None:
    table = record(tmp_path, ForeignModule(), Batches(2), log_every_n_steps=0)
    assert len(table["status"]) == 16


def test_rate_and_step_are_recorded(tmp_path: Path) -> None:
    module = ForeignModule(
        lambda groups: torch.optim.SGD(groups, lr=0.5),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )
    table = record(tmp_path, module, Batches(3), modules="up")
    rates = {int(s): float(r) for s, r in zip(table["step"], table["lr"], strict=True)}
    assert rates == {0: 0.5, 1: 0.25, 2: 0.125}


# --- resume ---------------------------------------------------------------------------------------


def one_run(folder: Path, **options: Any) -> dict[str, Any]:
    return record(folder, ForeignModule(), Batches(7), **{"max_epochs": 2, **options})


class StopError(Exception):
    pass


class StopsOnce(ForeignModule):
    stops = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.stops and self.trainer.current_epoch * 7 + batch_idx == 10:
            raise StopError


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("same_folder", [True, False])
def test_a_resumed_run_has_each_row_once(
    tmp_path: Path, accumulate: int, same_folder: bool
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    options = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    whole = one_run(tmp_path / "whole", accumulate_grad_batches=accumulate)

    first = GradientFeatureCallback(folder=str(tmp_path / "rows"), rows_per_shard=3)
    saves, saves_too = (
        ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=3)
        for _ in range(2)
    )
    with pytest.raises(StopError):
        quiet_trainer([first, saves], **options).fit(StopsOnce(), Batches(7))
    (saved,) = (tmp_path / "saved").glob("*.ckpt")
    before = read(tmp_path / "rows")
    state = torch.load(saved, weights_only=True)["callbacks"]
    trained = next(v for k, v in state.items() if k.startswith("Gradient"))["batches"]
    assert max(before["batch"]) >= trained, "some rows are of batches that will come again"

    again = tmp_path / ("rows" if same_folder else "other")
    second = GradientFeatureCallback(folder=str(again), rows_per_shard=3)
    module = StopsOnce()
    module.stops = False
    quiet_trainer([second, saves_too], **options).fit(
        module, Batches(7), ckpt_path=str(saved), weights_only=True
    )
    table = read(again)
    assert len(table["batch"]) == len(whole["batch"])
    for name in ("sample_id", "batch", "step"):
        assert list(table[name]) == list(whole[name])
    for name in whole:
        if name.endswith("grad_norm"):
            np.testing.assert_allclose(table[name], whole[name], rtol=1e-5)
    if not same_folder:
        assert list(read(tmp_path / "rows")["batch"]) == list(before["batch"])


KINDS: dict[str, tuple[type[ForeignModule], dict[str, int]]] = {
    "plain": (ForeignModule, {}),
    "accumulation, within a step": (ForeignModule, {"accumulate_grad_batches": 2}),
    "every second step": (ForeignModule, {"every_n_steps": 2}),
    "two optimizers": (TwoOptimizers, {}),
}


@pytest.mark.parametrize("saves", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [2, 3, 9])
def test_whoever_saves_before_or_after_the_callback_no_row_is_lost(
    tmp_path: Path, saves: str, kind: str, batch: int
) -> None:
    """A checkpoint at the end of a batch holds that batch, whose turn it is in the list or not."""
    make, options = KINDS[kind]
    every = {"every_n_steps": options.get("every_n_steps", 1)}
    trainer_options = {k: v for k, v in options.items() if k not in every}

    def train(folder: Path, *other: Callback, ckpt_path: Path | None = None) -> dict[str, Any]:
        callbacks = [GradientFeatureCallback(["grad_norm"], folder=str(folder), **every), *other]
        trainer = quiet_trainer(callbacks[:: -1 if saves == "before" else 1], **trainer_options)
        trainer.fit(make(), Batches(6), ckpt_path=ckpt_path, weights_only=True)
        return read(folder)

    with pytest.raises(KilledError):
        train(tmp_path / "rows", SaveThenDie(tmp_path / "mid.ckpt", batch, later=2))
    resumed = train(tmp_path / "rows", ckpt_path=tmp_path / "mid.ckpt")
    whole = train(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    for name in ("sample_id", "batch", "step", "lr"):
        assert list(resumed[name]) == list(whole[name])
    if "accumulate_grad_batches" not in options or not batch % 2:
        # Lightning does not save the gradients of a step that is accumulated in part
        for name in whole:
            if name.endswith("grad_norm"):
                np.testing.assert_allclose(resumed[name], whole[name], rtol=1e-5)


def test_a_checkpoint_of_an_exception_holds_the_batch_that_was_trained(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_exception(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "dead.ckpt")

    class Dies(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                raise StopError

    callback = GradientFeatureCallback(folder=str(tmp_path / "rows"))
    with pytest.raises(StopError):
        quiet_trainer([Dies(), callback, Saves()]).fit(ForeignModule(), Batches(6))
    again = GradientFeatureCallback(folder=str(tmp_path / "rows"))
    quiet_trainer([again]).fit(
        ForeignModule(), Batches(6), ckpt_path=tmp_path / "dead.ckpt", weights_only=True
    )
    assert np.unique(read(tmp_path / "rows")["batch"], return_counts=True)[1].tolist() == [8] * 12


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_module_that_builds_its_net_late_is_recorded_and_resumed(
    tmp_path: Path, hook: str
) -> None:
    late = built_late_in(hook)

    def train(
        folder: Path, module: ForeignModule, *other: Callback, ckpt_path: Path | None = None
    ) -> dict[str, Any]:
        callback = GradientFeatureCallback(modules=["up", "head"], folder=str(folder))
        trainer = quiet_trainer([callback, *other])
        trainer.fit(module, Batches(6), ckpt_path=ckpt_path, weights_only=True)
        assert not any(m._forward_hooks for m in module.modules())
        return read(folder)

    with pytest.raises(KilledError):
        train(tmp_path / "rows", late(), SaveThenDie(tmp_path / "mid.ckpt", 9, later=1))
    resumed = train(tmp_path / "rows", late(), ckpt_path=tmp_path / "mid.ckpt")
    whole = train(tmp_path / "whole", ForeignModule())
    assert resumed.keys() == whole.keys()
    for name in whole:
        assert list(resumed[name]) == list(whole[name])


def test_what_a_module_puts_in_its_net_s_place_in_setup_is_what_is_recorded(tmp_path: Path) -> None:
    class Replaces(ForeignModule):
        def setup(self, stage: str) -> None:
            self.backbone.head = nn.Linear(8, 3)

    table = record(tmp_path, Replaces(), Batches(2))
    assert np.all(table["backbone.head.grad_norm"] > 0)


def test_a_late_module_without_a_match_is_refused_when_its_net_is_there(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"Did you mean 'up'\? There are: backbone.head, "):
        record(tmp_path, built_late_in("configure_model")(), Batches(), modules="upp")


@pytest.mark.filterwarnings("ignore:`weights_only` was not set")
def test_a_run_that_was_complete_is_not_continued_by_the_next_fit(tmp_path: Path) -> None:
    first = GradientFeatureCallback(folder=str(tmp_path / "rows"))
    trainer = quiet_trainer([first], max_epochs=1)
    trainer.fit(ForeignModule(), Batches(3))
    trainer.save_checkpoint(tmp_path / "done.ckpt")
    again = GradientFeatureCallback(folder=str(tmp_path / "rows"))
    trainer = quiet_trainer([again], max_epochs=1)
    trainer.fit(ForeignModule(), Batches(3), ckpt_path=str(tmp_path / "done.ckpt"))  # nothing left
    assert again.state_dict() == first.state_dict()
    again.folder = str(tmp_path / "new")
    quiet_trainer([again], max_epochs=1).fit(ForeignModule(), Batches(2))
    assert sorted(set(read(tmp_path / "new")["batch"])) == [0, 1]


def test_another_run_s_rows_are_not_overwritten(tmp_path: Path) -> None:
    one_run(tmp_path / "rows")
    before = {path: path.read_bytes() for path in shard_files(tmp_path / "rows")}
    with pytest.raises(SuiteError, match="holds the rows of another run"):
        one_run(tmp_path / "rows")
    assert {path: path.read_bytes() for path in shard_files(tmp_path / "rows")} == before


def test_other_features_in_the_same_folder_are_refused_with_the_difference(tmp_path: Path) -> None:
    one_run(tmp_path / "rows")
    with pytest.raises(SuiteError, match=r"features.grad_max.name: \(absent\) -> \"grad_max\""):
        one_run(tmp_path / "rows", features=["grad_norm", "grad_max"])


def test_the_manifest_says_online_and_knows_no_weights(tmp_path: Path) -> None:
    one_run(tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest["mode"] == "online"
    assert "weights" not in manifest
    assert manifest["precision"] == {"trainer": "32-true"}
    assert manifest["environment"]["products"]["matmul"] == "ieee"
    assert manifest["features"] == {"grad_norm": {"name": "grad_norm"}}
    json.dumps(manifest)


# --- strategies, precisions, other Lightnings -----------------------------------------------------


def rank_loop(rank: int, port: int, folder: str) -> None:
    import os

    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
    )
    batches = Batches(4, 6).batches
    callback = GradientFeatureCallback(folder=folder)
    quiet_trainer(
        [callback], max_epochs=1, devices=2, strategy="ddp", use_distributed_sampler=False
    ).fit(StandStill(), Given(batches[rank::2]))
    torch.distributed.destroy_process_group()


def test_two_ranks_record_what_one_does(tmp_path: Path) -> None:
    one = record(tmp_path / "one", StandStill(), Batches(4, 6).batches)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=rank_loop, args=(rank, port, str(tmp_path / "two")))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0
    assert {p.name[:5] for p in shard_files(tmp_path / "two")} == {"rank0", "rank1"}
    two = read(tmp_path / "two")
    assert list(two["sample_id"]) == list(one["sample_id"])
    for name in one:
        if name.endswith("grad_norm"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5)


def test_bfloat16_autocast_is_near_and_refused_where_it_must_be(tmp_path: Path) -> None:
    batch = Batches(1).batches[0]
    full = record(tmp_path / "full", StandStill(), [batch])
    half = record(tmp_path / "half", StandStill(), [batch], precision="bf16-mixed")
    name = "backbone.tower.0.up.grad_norm"
    np.testing.assert_allclose(half[name], full[name], rtol=0.1)
    with pytest.raises(SuiteError, match="adam1_mean_abs count entries near 1e-8, and autocast"):
        record(
            tmp_path / "no",
            StandStill(),
            [batch],
            features=["adam1_mean_abs"],
            precision="bf16-mixed",
        )


def test_weights_of_bfloat16_are_recorded(tmp_path: Path) -> None:
    full, half = (
        record(tmp_path / p, ForeignModule(), Batches(1), precision=p)
        for p in ("32-true", "bf16-true")
    )
    assert len(half["sample_id"]) == 8
    for name in full:
        if name.endswith("grad_norm"):
            one, other = (sorted(found[name]) for found in (full, half))
            np.testing.assert_allclose(one, other, rtol=0.1)


def test_the_scale_of_fp16_is_taken_out(tmp_path: Path) -> None:
    """A scaler on the CPU in place of a GPU: what it does to the loss is the same."""

    class Scaled(StandStill):
        def on_train_start(self) -> None:
            self.trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def backward(self, loss: Tensor) -> None:  # type: ignore[override]
            self.trainer.precision_plugin.scaler.scale(loss).backward()

        def optimizer_step(self, *args: Any) -> None:
            args[-1]()

    batch = Batches(1).batches[0]
    plain = record(tmp_path / "plain", StandStill(), [batch])
    scaled = record(tmp_path / "scaled", Scaled(), [batch])
    name = "backbone.head.grad_norm"
    np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-5)


def test_manual_optimization(tmp_path: Path) -> None:
    class Manual(StandStill):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss

    batch = Batches(1).batches[0]
    automatic = record(tmp_path / "automatic", StandStill(), [batch])
    manual = record(tmp_path / "manual", Manual(), [batch])
    for name in automatic:
        if name.endswith("grad_norm"):
            np.testing.assert_array_equal(manual[name], automatic[name])


class UsesTwice(StandStill):
    """The head's weight is used again, without a call of the head."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        penalty = self.backbone.head.weight.square().sum()
        return super().training_step(batch, batch_idx) + penalty


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_weight_that_is_also_used_without_its_layer_is_refused(
    tmp_path: Path, accumulate: int
) -> None:
    message = r"\n  backbone.head: norm \S+ from its rows, \S+ by autograd"
    with pytest.raises(SuiteError, match=message) as error:
        record(tmp_path, UsesTwice(), Batches(), accumulate_grad_batches=accumulate)
    assert "backbone.stem" not in str(error.value)
    assert not shard_files(tmp_path)


def test_the_comparison_can_be_left_out_and_leaves_no_hook(tmp_path: Path) -> None:
    module = UsesTwice()
    callback = GradientFeatureCallback(folder=str(tmp_path))
    callback.verify = False
    quiet_trainer([callback], max_epochs=1).fit(module, Batches())
    assert len(read(tmp_path)["status"]) == 32
    sound = ForeignModule()
    record(tmp_path / "sound", sound, Batches(), modules="head")
    assert not any(p._backward_hooks for p in [*module.parameters(), *sound.parameters()])


def test_parameters_that_are_not_trained_in_this_step_are_not_compared(tmp_path: Path) -> None:
    """As of a discriminator in the generator's step."""

    class Toggles(StandStill):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.backbone.head.requires_grad_(False)

    table = record(tmp_path, Toggles(), Batches(1))
    assert set(table["status"]) == {"ok"}


def test_a_gradient_that_a_hook_of_the_user_s_changes_is_not_compared(tmp_path: Path) -> None:
    module = StandStill()
    module.backbone.head.weight.register_hook(lambda g: 0 * g)
    assert set(record(tmp_path, module, Batches(1))["status"]) == {"ok"}


class Classifier(StandStill):
    """Labels of samples beside tokens, as of a sequence classifier."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(vocab_size=20, intermediate_size=12, **sizes, **none)
        self.net = BertForSequenceClassification(config).train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(**batch).loss


def test_a_sequence_classifier_s_loss_is_a_mean_of_samples(tmp_path: Path) -> None:
    module = Classifier()
    ids = torch.arange(12).view(3, 4)
    batch = {"input_ids": ids, "attention_mask": ids * 0 + 1, "labels": torch.tensor([0, 1, 1])}
    expected = []
    for n in range(3):
        loss = module.net(**{key: values[n : n + 1] for key, values in batch.items()}).loss
        (gradient,) = torch.autograd.grad(loss, module.net.classifier.weight)
        expected.append(float(gradient.norm()))
    table = record(tmp_path, module, [batch], modules="classifier")
    np.testing.assert_allclose(
        sorted(table["net.classifier.grad_norm"]), sorted(expected), rtol=1e-4
    )


class Sequences(StandStill):
    """A layer that sees as many positions as the batch has."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.layer, self.first = nn.Linear(3, 2), batch_first

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        x = batch[0] if self.first else batch[0].transpose(0, 1)
        y = self.layer(x).tanh().mean(0 if not self.first else 1)
        return y.square().sum(1).mean()


def test_as_many_samples_as_positions_need_a_word_only_at_the_start(tmp_path: Path) -> None:
    data, options = [(torch.randn(n, 4, 3),) for n in (3, 4)], {"modules": "layer"}
    for module in (Sequences(), Sequences(batch_first=False)):
        with pytest.raises(SuiteError, match="say so with batch_first=True"):
            record(tmp_path / "no", module, data[1:], **options)
    known = record(tmp_path / "known", Sequences(), data, **options)
    said = record(tmp_path / "said", Sequences(), data[1:], **options, batch_first=True)
    assert len(said["sample_id"]) == 4
    assert len(known["sample_id"]) == 7
    first = GradientFeatureCallback(modules="layer", folder=str(tmp_path / "first"))
    trainer = quiet_trainer([first], max_epochs=1)
    trainer.fit(Sequences(), Given(data[:1]))
    state = first.state_dict()  # of a checkpoint that is saved when the fit is over
    assert state["batch_first"] == ["layer"]
    resumed = GradientFeatureCallback(modules="layer", folder=str(tmp_path / "resumed"))
    resumed.load_state_dict({**state, "batches": 0})
    trainer = quiet_trainer([resumed], max_epochs=1)
    trainer.fit(Sequences(), Given(data[1:]))
    assert len(read(tmp_path / "resumed")["sample_id"]) == 4


def test_compiled_models_are_refused(tmp_path: Path) -> None:
    module = torch.compile(ForeignModule(), backend="eager")
    with pytest.raises(SuiteError, match="the model is compiled"):
        record(tmp_path, module, Batches())  # type: ignore[arg-type]
    inner = ForeignModule()
    inner.backbone.tower[0] = torch.compile(inner.backbone.tower[0], backend="eager")  # type: ignore[assignment]
    with pytest.raises(SuiteError, match="the model is compiled"):
        record(tmp_path, inner, Batches())


def test_batch_normalisation_in_training_mode_is_refused(tmp_path: Path) -> None:
    module = ForeignModule()
    module.backbone.tail_norm = nn.BatchNorm1d(8)  # type: ignore[assignment]
    with pytest.raises(SuiteError, match=r"backbone.tail_norm: batch normalisation in training"):
        record(tmp_path, module, Batches())
    module.backbone.tail_norm.eval()
    assert len(record(tmp_path, module, Batches())["status"]) == 32


def test_sharded_parameters_are_refused() -> None:
    class FSDPStrategy:
        pass

    class Fake:
        strategy = FSDPStrategy()

    callback: Any = GradientFeatureCallback()
    with pytest.raises(SuiteError, match="FSDPStrategy leaves each process a shard"):
        callback.setup(Fake(), ForeignModule(), "fit")


def test_without_a_logger_a_folder_is_needed() -> None:
    with pytest.raises(SuiteError, match="Set folder"):
        quiet_trainer([GradientFeatureCallback()], max_epochs=1).fit(ForeignModule(), Batches())


def test_the_run_s_own_folder_is_the_default(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    trainer = quiet_trainer([GradientFeatureCallback()], max_epochs=1, logger=CSVLogger(tmp_path))
    trainer.fit(ForeignModule(), Batches(60, 2))
    assert len(read(Path(trainer.log_dir) / "gradient_features")["status"]) == 120


def test_the_other_lightning_package_takes_it_too(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Other(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = GradientFeatureCallback(folder=str(tmp_path))
    quiet_trainer([callback], cls=pl.Trainer, max_epochs=1).fit(
        Other(), DataLoader(list(zip(*Batches(1).batches[0], strict=True)), batch_size=4)
    )
    assert len(read(tmp_path)["net.grad_norm"]) == 8


def arguments() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"every_n_steps": 0}, "every_n_steps=0, and it must be at least 1"
    yield {"features": ["grad_nrom"]}, "Did you mean 'grad_norm'"
    yield {"reduction": "median"}, "reduction='median' is not known"


@pytest.mark.parametrize(("options", "message"), list(arguments()))
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        GradientFeatureCallback(**options)


def test_a_pattern_that_matches_nothing_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="nothing matches 'up_proj'"):
        record(tmp_path, ForeignModule(), Batches(), modules="up_proj")
