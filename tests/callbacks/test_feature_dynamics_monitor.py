"""The monitor measures what it says, and training does not notice it."""

from __future__ import annotations

import copy
import csv
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, built_late_in, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_suite import DepthMuPLRCallback, FeatureDynamicsMonitor
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder


class Regression(LightningModule):
    """A residual net on random data; `optimizers` many optimizers, manual when more than one."""

    def __init__(self, depth: int = 3, *, manual: bool = False, compiled: bool = False) -> None:
        super().__init__()
        net = ResidualMLP(
            6, 1, width=8, depth=depth, branch_input="norm", readout_init="normal", rule="nfd"
        )
        self.dropout = nn.Dropout(0.2)
        self.net: Any = torch.compile(net, backend="aot_eager") if compiled else net
        self.automatic_optimization = not manual

    def loss(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = (self.net(self.dropout(batch[0])) - batch[1]).square().mean()
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = self.loss(batch)
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        return None

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)
        half = len(list(self.parameters())) // 2
        parameters = list(self.parameters())
        return [
            torch.optim.SGD(parameters[:half], lr=1e-2),
            torch.optim.SGD(parameters[half:], lr=1e-2),
        ]


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randn(40, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=10)


def fit(
    folder: Path,
    *callbacks: Any,
    model: LightningModule | None = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> tuple[LightningModule, Any]:
    torch.manual_seed(1)
    model = model or Regression()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **{"max_epochs": 3, "logger": False, "devices": 1, **options},
    )
    trainer.fit(model, data(), data(), ckpt_path=ckpt_path)
    return model, trainer


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "artifacts" / "feature_dynamics.csv").open() as file:
        return list(csv.DictReader(file))


def steps(folder: Path) -> list[int]:
    return sorted({int(row["step"]) for row in table(folder)})


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    states = a.state_dict(), b.state_dict()
    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name


def test_training_with_the_monitor_is_bitwise_training_without_it(tmp_path: Path) -> None:
    """Dropout makes every draw from the global random state visible."""
    watched, _ = fit(tmp_path, FeatureDynamicsMonitor(every_n_steps=1, rows=4))
    plain, _ = fit(tmp_path)
    assert_same_weights(watched, plain)
    assert steps(tmp_path) == list(range(12))


def test_the_curves_are_one_row_a_block_and_the_metrics_their_aggregate(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, FeatureDynamicsMonitor(every_n_steps=5), max_steps=11)
    assert steps(tmp_path) == [0, 5, 10]
    last = [row for row in table(tmp_path) if row["step"] == "10"]
    assert [float(row["t"]) for row in last] == pytest.approx([1 / 3, 2 / 3, 1])
    rms = math.sqrt(sum(float(row["first_update"]) ** 2 for row in last) / 3)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert metrics["depth_mup/first_update"] == pytest.approx(rms)
    assert metrics["depth_mup/relative_change"] > 0
    assert -1 <= metrics["depth_mup/coupling"] <= 1
    assert set(metrics) >= {
        f"depth_mup/{name}"
        for name in ("last_update", "product", "first_stream", "last_stream", "min_eigenvalue")
    }


def test_nothing_has_changed_at_step_zero(tmp_path: Path) -> None:
    fit(tmp_path, FeatureDynamicsMonitor(), max_steps=1)
    (first, *_) = table(tmp_path)
    assert [float(first[k]) for k in ("first_update", "last_stream", "relative_change")] == [0] * 3
    assert float(first["coupling"]) != 0


def test_a_table_of_the_start_alone_says_why_it_is_all_zeros(tmp_path: Path) -> None:
    for interval, alone in ((100, True), (5, False)):
        folder = RunFolder(tmp_path / str(interval))
        fit(folder.path, FeatureDynamicsMonitor(every_n_steps=interval))
        (entry,) = folder.index()
        assert ("a smaller `every_n_steps`" in entry.caption) is alone
        assert ("The interval is 100 optimizer steps" in entry.caption) is alone
    # of an earlier fit that this one goes on from, changes are there to be seen
    folder = RunFolder(tmp_path / "goes on")
    monitor = FeatureDynamicsMonitor(every_n_steps=5)
    _, trainer = fit(folder.path, monitor, max_epochs=1)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, data(), data())
    assert "a smaller" not in folder.index()[0].caption


def test_loggers_get_every_measurement_whatever_log_every_n_steps_is(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    torch.manual_seed(1)
    Trainer(
        logger=logger,
        accelerator="cpu",
        callbacks=[FeatureDynamicsMonitor(every_n_steps=4)],
        max_steps=9,
        log_every_n_steps=50,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Regression(), data(), data())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["depth_mup/last_update"]]
    assert logged == [0, 4, 8]


@pytest.mark.parametrize("order", [1, -1])
def test_names_that_were_given_for_the_learning_rates_count_here_too(order: int) -> None:
    callbacks = [
        DepthMuPLRCallback(base_depth=2, patterns=PATTERNS, verbose=False),
        FeatureDynamicsMonitor(every_n_steps=1, write_table=False),
    ]
    trainer = quiet_trainer(callbacks=callbacks[::order], max_steps=2, max_epochs=1)
    with pytest.warns(UserWarning, match="multiplied the branches' outputs"):
        trainer.fit(ForeignModule(), Batches())
    assert trainer.callback_metrics["depth_mup/first_update"] > 0


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_load_state_dict_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)


def test_hooks_are_gone_after_fit_and_after_an_exception(tmp_path: Path) -> None:
    class Failing(Regression):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("on purpose")

    model, _ = fit(tmp_path, FeatureDynamicsMonitor(), max_steps=2)
    assert hooks(model) == 0
    failing = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path, FeatureDynamicsMonitor(), model=failing)
    assert hooks(failing) == 0


def going_on(folder: Path, *epochs: int, between: Any = None) -> list[dict[str, str]]:
    """Train until these epochs, one fit after another in one trainer; return the table."""
    monitor = FeatureDynamicsMonitor(1, patterns=PATTERNS)
    trainer = quiet_trainer([monitor], default_root_dir=folder)
    module = ForeignModule(lambda groups: torch.optim.SGD(groups, lr=0.05))
    for until in epochs:
        trainer.fit_loop.max_epochs = until
        trainer.fit(module, Batches())
        if between is not None:
            between(trainer, module)
    return table(folder)


def test_a_fit_that_goes_on_in_the_same_trainer_measures_from_the_same_start(
    tmp_path: Path,
) -> None:
    def evaluate(trainer: Any, module: ForeignModule) -> None:
        trainer.test(module, Batches(), verbose=False)

    whole = going_on(tmp_path / "whole", 3)
    assert [int(row["step"]) for row in whole[::4]] == list(range(12))
    assert going_on(tmp_path / "parts", 1, 1, 3) == whole  # in the second is nothing to do
    assert going_on(tmp_path / "tested", 1, 3, between=evaluate) == whole


def test_weights_that_were_changed_between_two_fits_are_a_new_start(tmp_path: Path) -> None:
    def change(_: Any, module: ForeignModule) -> None:
        with torch.no_grad():
            module.backbone.tower[0].up.weight.mul_(2)  # type: ignore[union-attr,operator]

    rows = going_on(tmp_path, 1, 2, between=change)
    assert [int(row["step"]) for row in rows[::4]] == list(range(8)), "the rows so far are kept"
    changes = {row["step"]: float(row["relative_change"]) for row in rows}
    assert changes["4"] == 0 < changes["3"]


def test_a_second_fit_starts_from_its_own_reference(tmp_path: Path) -> None:
    monitor = FeatureDynamicsMonitor(every_n_steps=2)
    model, _ = fit(tmp_path, monitor, max_steps=3)
    assert float(table(tmp_path)[-1]["relative_change"]) > 0
    fit(tmp_path, monitor, model=model, max_steps=3)
    assert steps(tmp_path) == [0, 2]
    assert float(table(tmp_path)[0]["relative_change"]) == 0


def test_gradient_accumulation_measures_once_a_step(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "max_epochs": 3}
    watched, _ = fit(tmp_path, FeatureDynamicsMonitor(every_n_steps=2), **options)
    assert steps(tmp_path) == [0, 2, 4]
    assert_same_weights(watched, fit(tmp_path, **options)[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_reduced_precision_is_measured_in_float32(tmp_path: Path, precision: str) -> None:
    fit(tmp_path, FeatureDynamicsMonitor(every_n_steps=4), precision=precision, max_epochs=2)
    rows = [row for row in table(tmp_path) if row["step"] == "4"]
    assert all(0 < float(row["first_update"]) < 1 for row in rows)


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    """The global step counts both optimizers: 0, 2, 4, …"""
    watched, _ = fit(
        tmp_path, FeatureDynamicsMonitor(every_n_steps=3), model=seeded(Regression, manual=True)
    )
    assert steps(tmp_path) == [0, 4, 6, 10, 12, 16, 18, 22]
    assert_same_weights(watched, fit(tmp_path, model=seeded(Regression, manual=True))[0])


def seeded(make: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return make(**options)


# torch's own tracing looks at .grad of any tensor
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_is_measured_like_an_eager_one(tmp_path: Path) -> None:
    fit(
        tmp_path / "eager",
        FeatureDynamicsMonitor(every_n_steps=2),
        model=seeded(Regression),
        max_steps=5,
    )
    fit(
        tmp_path / "compiled",
        FeatureDynamicsMonitor(every_n_steps=2),
        model=seeded(Regression, compiled=True),
        max_steps=5,
    )
    eager, compiled = table(tmp_path / "eager"), table(tmp_path / "compiled")
    assert len(compiled) == 9
    for a, b in zip(eager, compiled, strict=True):
        for key, value in a.items():
            assert float(value) == pytest.approx(float(b[key]), rel=1e-4, abs=1e-7), key


class Halves(Regression):
    """Each of several ranks takes its rows of the same batches."""

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = data().dataset
        ranks = self.trainer.world_size
        sampler: DistributedSampler[Any] = DistributedSampler(
            dataset, num_replicas=ranks, rank=self.global_rank, shuffle=False
        )
        return DataLoader(dataset, batch_size=10 // ranks, sampler=sampler)


@pytest.mark.filterwarnings("ignore")  # Lightning's and Python's advice about forks
def test_two_ranks_measure_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are measured; squares are averaged over ranks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    for ranks in (1, 2):
        model = seeded(Halves)
        model.dropout.p = 0.0
        Trainer(
            default_root_dir=tmp_path / str(ranks),
            accelerator="cpu",
            devices=ranks,
            strategy="ddp_fork" if ranks > 1 else "auto",
            use_distributed_sampler=False,
            callbacks=[FeatureDynamicsMonitor(every_n_steps=2, rows=10)],
            max_steps=5,
            max_epochs=2,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(model)
    one, two = table(tmp_path / "1"), table(tmp_path / "2")
    assert [row["step"] for row in two] == [row["step"] for row in one] == [*"000222444"]
    for a, b in zip(one, two, strict=True):
        for key in ("first_update", "last_update", "first_stream", "coupling", "relative_change"):
            assert float(b[key]) == pytest.approx(float(a[key]), rel=1e-3, abs=1e-5), key


def test_the_other_lightning_package_takes_it_too(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Other(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = ResidualMLP(6, 1, width=8, depth=3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.net(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(1)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=[FeatureDynamicsMonitor(every_n_steps=2)],
        max_steps=4,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Other(), data())
    assert steps(tmp_path) == [0, 2]


class Resume:
    """Train two epochs of four steps, save, go on to the third."""

    def __init__(self, folder: Path, *, seed: int, **options: Any) -> None:
        _, trainer = fit(folder / "a", FeatureDynamicsMonitor(4, **options), max_epochs=2)
        self.checkpoint = folder / "half.ckpt"
        trainer.save_checkpoint(self.checkpoint)
        torch.manual_seed(seed)
        fit(
            folder / "b",
            FeatureDynamicsMonitor(4, **options),
            model=Regression(),
            ckpt_path=str(self.checkpoint),
            max_epochs=3,
        )
        self.rows = table(folder / "b")


def uninterrupted(folder: Path) -> list[dict[str, str]]:
    fit(folder / "c", FeatureDynamicsMonitor(4), max_epochs=3)
    return table(folder / "c")


def test_a_resumed_run_with_the_same_seed_keeps_its_reference_and_its_rows(tmp_path: Path) -> None:
    resumed = Resume(tmp_path, seed=1)
    full = uninterrupted(tmp_path)
    assert [row["step"] for row in resumed.rows] == ["0"] * 3 + ["4"] * 3 + ["8"] * 3
    # the weights at step 8 and the reference are the same; the dropout of the forward is not
    assert [r["relative_change"] for r in resumed.rows] == [r["relative_change"] for r in full]


def test_a_resumed_run_of_another_seed_says_from_where_it_measures(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="measured from step 8 on"):
        Resume(tmp_path, seed=2)


def test_a_saved_reference_survives_another_seed(tmp_path: Path) -> None:
    resumed = Resume(tmp_path, seed=2, save_reference=True)
    assert float(resumed.rows[-1]["relative_change"]) > 0
    state = torch.load(resumed.checkpoint, weights_only=True)["callbacks"]
    assert state["FeatureDynamicsMonitor"]["reference_step"] == 0


class SaveAndDie(Callback):
    """Saves at the end of a step, and dies at that of the next."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        elif trainer.global_step > self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("saves", ["before", "after"])
def test_a_killed_run_that_goes_on_in_its_folder_loses_no_row(tmp_path: Path, saves: str) -> None:
    """Who saves may stand before the monitor or after it, and the same table is written again."""

    def train(folder: Path, *other: Callback, ckpt_path: Path | None = None) -> None:
        callbacks = [FeatureDynamicsMonitor(1, patterns=PATTERNS), *other]
        trainer = quiet_trainer(
            callbacks[:: -1 if saves == "before" else 1], max_epochs=3, default_root_dir=folder
        )
        trainer.fit(ForeignModule(), Batches(), ckpt_path=ckpt_path, weights_only=True)

    checkpoint = tmp_path / "mid.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "a", SaveAndDie(checkpoint, 6))
    train(tmp_path / "a", ckpt_path=checkpoint)
    train(tmp_path / "b")
    assert steps(tmp_path / "a") == list(range(12))
    assert table(tmp_path / "a") == table(tmp_path / "b")


@pytest.mark.parametrize("order", [1, -1])
def test_a_resumed_run_measures_from_weights_that_another_callback_drew(
    tmp_path: Path, order: int
) -> None:
    def train(folder: Path, *other: Callback, ckpt_path: Path | None = None) -> None:
        torch.manual_seed(1)
        rates = DepthMuPLRCallback(1, patterns=PATTERNS, reinit=True, verbose=False)
        callbacks = [rates, FeatureDynamicsMonitor(1)][::order]
        trainer = quiet_trainer([*callbacks, *other], default_root_dir=folder)
        trainer.fit(ForeignModule(), Batches(), ckpt_path=ckpt_path)

    checkpoint = tmp_path / "mid.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "a", SaveAndDie(checkpoint, 6))
    train(tmp_path / "a", ckpt_path=checkpoint)  # a warning would be an error
    train(tmp_path / "b")
    assert table(tmp_path / "a") == table(tmp_path / "b")


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_module_that_builds_its_net_late_is_measured_and_resumed(
    tmp_path: Path, hook: str
) -> None:
    late = built_late_in(hook)

    def train(
        folder: Path, module: ForeignModule, *other: Callback, ckpt_path: Path | None = None
    ) -> None:
        callbacks = [FeatureDynamicsMonitor(1, patterns=PATTERNS), *other]
        trainer = quiet_trainer(callbacks, default_root_dir=folder)
        trainer.fit(module, Batches(), ckpt_path=ckpt_path)
        assert not hooks(module)

    checkpoint = tmp_path / "mid.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "a", late(), SaveAndDie(checkpoint, 6))
    train(tmp_path / "a", late(), ckpt_path=checkpoint)
    train(tmp_path / "b", ForeignModule())
    assert table(tmp_path / "a") == table(tmp_path / "b")


def test_a_search_for_the_batch_size_is_no_start(tmp_path: Path) -> None:
    class Sized(ForeignModule):
        batch_size = 4

        def train_dataloader(self) -> DataLoader[Any]:
            x, y = Batches(1, 16).batches[0]
            return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    monitor = FeatureDynamicsMonitor(1, patterns=PATTERNS)
    search = BatchSizeFinder(max_trials=1, steps_per_trial=1)
    quiet_trainer([search, monitor], default_root_dir=tmp_path).fit(Sized())
    assert {float(r["relative_change"]) for r in table(tmp_path) if r["step"] == "0"} == {0.0}


def test_a_checkpoint_stays_small(tmp_path: Path) -> None:
    monitor = FeatureDynamicsMonitor()
    fit(tmp_path, monitor, max_steps=1)
    state = monitor.state_dict()
    assert set(state) == {"version", "reference_step", "fingerprint", "table", "next"}
    assert state["table"]["values"].shape == (3, 11)  # of the one step that was measured
    assert all(len(entries) <= 8 for entries in state["fingerprint"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0, and it must be at least 1"),
        ({"rows": 0}, "rows=0, and it must be at least 1"),
        ({"reference_device": "gpu"}, "choose 'cpu' or 'model'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        FeatureDynamicsMonitor(**options)


def test_sharded_parameters_are_refused() -> None:
    class FSDPStrategy:
        pass

    class FakeTrainer:
        strategy = FSDPStrategy()

    with pytest.raises(SuiteError, match="a shard of them"):
        FeatureDynamicsMonitor().setup(FakeTrainer(), Regression(), "fit")  # type: ignore[arg-type]


class WithArgument(nn.Module):
    """A branch that mixes a sequence by weights that come with the call, as ALiBi or a mask do."""

    def __init__(self, *, sequence_first: bool) -> None:
        super().__init__()
        self.sequence_first = sequence_first
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, h: Tensor, argument: Tensor) -> Tensor:
        if self.sequence_first:
            mixed = torch.einsum("st,tbn->sbn", argument, h)
        else:
            rows, length, _ = h.shape
            weights = argument.view(rows, 2, 1, length).expand(-1, -1, length, -1).mean(1)
            mixed = weights.softmax(-1) @ h
        return h + self.last(torch.tanh(self.first(mixed)))


class WithArguments(Regression):
    """Regression on sequences of twelve; ten rows a batch."""

    def __init__(self, *, sequence_first: bool) -> None:
        super().__init__()
        self.sequence_first = sequence_first
        self.net = nn.ModuleDict(
            {
                "embed": nn.Linear(6, 8),
                "blocks": nn.ModuleList(
                    WithArgument(sequence_first=sequence_first) for _ in range(3)
                ),
                "readout": nn.Linear(8, 1),
            }
        )

    def loss(self, batch: list[Tensor]) -> Tensor:
        h = self.net["embed"](batch[0])
        if self.sequence_first:
            h, argument = h.expand(12, -1, -1), torch.full((12, 12), 1 / 12)
        else:
            h, argument = h[:, None].repeat(1, 12, 1), torch.zeros(len(h) * 2, 1, 12)
        for block in self.net["blocks"]:
            h = block(h, argument)
        out = self.net["readout"](h).mean(0 if self.sequence_first else 1)
        loss: Tensor = (out - batch[1]).square().mean()
        return loss


def test_an_argument_that_holds_all_heads_of_all_rows_is_divided(tmp_path: Path) -> None:
    fit(tmp_path, FeatureDynamicsMonitor(rows=4), model=WithArguments(sequence_first=False))
    assert steps(tmp_path) == [0]


def test_a_block_that_cannot_run_alone_ends_the_measurements_and_not_training(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    watched = WithArguments(sequence_first=True)
    plain = copy.deepcopy(watched)
    monitor = FeatureDynamicsMonitor(every_n_steps=1, rows=4)
    with pytest.warns(UserWarning, match=r"nothing more.*'net\.blocks\.0'.*RuntimeError") as seen:
        fit(tmp_path, monitor, model=watched)
    assert len([w for w in seen if "FeatureDynamicsMonitor" in str(w.message)]) == 1
    fit(tmp_path, model=plain)
    assert_same_weights(watched, plain)
    assert not (tmp_path / "artifacts").exists()


def test_a_resumed_run_measures_what_several_optimizers_stepped_over(tmp_path: Path) -> None:
    """The global step is 0, 2, 4, …: of every third one 4 is due, and 6, when a resume is at 4."""

    def train(folder: Path, *other: Callback, ckpt_path: Path | None = None) -> list[int]:
        model = seeded(Regression, manual=True)
        callbacks = [FeatureDynamicsMonitor(3), *other]
        trainer = quiet_trainer(callbacks, max_epochs=3, default_root_dir=folder)
        trainer.fit(model, data(), data(), ckpt_path=ckpt_path, weights_only=True)
        return steps(folder)

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "a", SaveAndDie(tmp_path / "mid.ckpt", 4))
    whole = [0, 4, 6, 10, 12, 16, 18, 22]
    assert train(tmp_path / "a", ckpt_path=tmp_path / "mid.ckpt") == whole
    assert train(tmp_path / "b") == whole
    state = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    del state["callbacks"]["FeatureDynamicsMonitor"]["next"]  # as of an earlier release
    torch.save(state, tmp_path / "old.ckpt")
    assert train(tmp_path / "c", ckpt_path=tmp_path / "old.ckpt") == [0, *whole[2:]]


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": 9, "max_steps": 7}])
def test_a_resume_with_nothing_left_to_train_has_the_whole_table_in_its_own_folder(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    def train(folder: Path, ckpt_path: Path | None = None, **limit: int) -> Any:
        monitor = FeatureDynamicsMonitor(2, patterns=PATTERNS)
        trainer = quiet_trainer([monitor], default_root_dir=folder, **limit)
        trainer.fit(ForeignModule(), Batches(), ckpt_path=ckpt_path, weights_only=True)
        return trainer

    train(tmp_path / "a", **limit).save_checkpoint(done := tmp_path / "done.ckpt")
    train(tmp_path / "b", done, **limit).save_checkpoint(again := tmp_path / "again.ckpt")
    assert table(tmp_path / "b") == table(tmp_path / "a")
    train(tmp_path / "c", again, max_epochs=3)
    assert table(tmp_path / "c")[: len(table(tmp_path / "a"))] == table(tmp_path / "a")
    assert steps(tmp_path / "c")[:5] == [0, 2, 4, 6, 8]
