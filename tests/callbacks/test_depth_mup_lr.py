"""DepthMuPLRCallback: the right rate for every parameter, whatever else the trainer does."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer, same, weights
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from param_groups_reference import train_by_hand
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.rules import RULES, Rule
from lightning_suite.errors import SuiteError

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda groups: SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda groups: AdamW(groups, lr=0.01, weight_decay=0.1),
}


@pytest.fixture(autouse=True)
def _no_tips(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


def foreign_callback(**options: Any) -> DepthMuPLRCallback:
    return DepthMuPLRCallback(**{"base_depth": 2, "rule": "nfd", "patterns": PATTERNS, **options})


class ResidualClassifier(LightningModule):
    """Our residual net in somebody's module, in float64."""

    def __init__(self, net: nn.Module, make_optimizer: Any, make_scheduler: Any = None) -> None:
        super().__init__()
        self.any_name = net.double()
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return loss_of(self.any_name, batch)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(net(batch), torch.arange(len(batch)) % 3)


def inputs(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


def loader() -> DataLoader[Any]:
    return DataLoader(inputs(), batch_size=None)  # type: ignore[arg-type]


def residual_mlp(rule: Rule, depth: int = 8, width: int = 16, **options: Any) -> ResidualMLP:
    return ResidualMLP(
        5,
        3,
        width=width,
        depth=depth,
        branch_input="norm",
        bias=True,
        rule=rule,
        base_depth=2,
        base_width=8,
        readout_init="normal",
        generator=torch.Generator().manual_seed(1),
        **options,
    )


# ---- the trained weights


@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("depth", [8, 6])
def test_trained_weights_equal_those_of_hand_made_groups(
    rule: Rule, family: str, depth: int
) -> None:
    twin = residual_mlp(rule, depth).double()
    module = ResidualClassifier(copy.deepcopy(twin), OPTIMIZERS[family])
    callback = DepthMuPLRCallback(base_depth=2, base_width=8, rule=rule)
    quiet_trainer([callback]).fit(module, loader())
    train_by_hand(
        twin, loss_of, inputs() * 2, OPTIMIZERS[family], None, rule, family, 2.0, depth / 2
    )
    assert same(weights(module.any_name), weights(twin))


@pytest.mark.parametrize(
    ("family", "p", "chosen"),
    [("sgd", None, "nfd"), ("adam", None, "depth_mup"), ("adam", 0.25, "nfd")],
)
def test_without_a_rule_the_optimizer_chooses_the_one_derived_for_it(
    family: str, p: float | None, chosen: Rule, caplog: pytest.LogCaptureFixture
) -> None:
    trained = []
    for options in ({}, {"rule": chosen}):
        module = ResidualClassifier(residual_mlp("nfd").double(), OPTIMIZERS[family])
        callback = DepthMuPLRCallback(2, 8, p=p, **options)  # type: ignore[arg-type]
        trainer = quiet_trainer([callback])
        trainer.fit(module, loader())
        trained.append(weights(module))
    assert same(*trained)
    assert caplog.text.count(f"rule {chosen}, depth 8 / 2") == 2


def test_two_optimizers_each_take_their_own_rule() -> None:
    class Two(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()

        def configure_optimizers(self) -> Any:
            parameters = list(self.parameters())
            return [AdamW(parameters, lr=0.01), SGD(parameters, lr=0.01)]

    trainer = quiet_trainer([DepthMuPLRCallback(1, patterns=PATTERNS)])
    trainer.fit(Two(), Batches())
    adam, sgd = ({k.split("/")[-1]: v for k, v in lrs(o).items()} for o in trainer.optimizers)
    assert adam["hidden_first"] == adam["hidden_last"] == 0.005
    assert (sgd["hidden_first"], sgd["hidden_last"]) == (0.02, 0.01)


@pytest.mark.parametrize(("family", "rule"), [("sgd", "nfd"), ("adam", "depth_mup")])
def test_checkpoints_name_the_rule_that_was_chosen(family: str, rule: Rule, tmp_path: Path) -> None:
    def run(callback: Callback, stage: str = "fit", **options: Any) -> Any:
        trainer = quiet_trainer([callback])
        module = ForeignModule(OPTIMIZERS[family])
        getattr(trainer, stage)(module, Batches(), **options)
        return trainer

    def automatic() -> Callback:
        return DepthMuPLRCallback(2, patterns=PATTERNS)

    path = tmp_path / "any.ckpt"
    run(automatic()).save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"]["DepthMuPLRCallback"]
    assert state["rule"] == rule
    for callback in (automatic(), foreign_callback(rule=rule)):
        run(callback, ckpt_path=path)
    run(automatic(), "test", ckpt_path=path, verbose=False)
    other = "nfd" if rule == "depth_mup" else "depth_mup"
    with pytest.raises(SuiteError, match=f"rule: '{rule}' in the checkpoint, '{other}' now"):
        run(foreign_callback(rule=other), ckpt_path=path)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "step": lambda o: schedulers.StepLR(o, 2, 0.3),
    "multi step": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.3),
    "constant": lambda o: schedulers.ConstantLR(o, 0.3, 3),
    "linear": lambda o: schedulers.LinearLR(o, 0.1, total_iters=5),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 20),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 20),
    "cosine with floor": lambda o: schedulers.CosineAnnealingLR(o, 20, eta_min=0.004),
    "restarts with floor": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 5, eta_min=0.004),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "warm-up, then cosine": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.CosineAnnealingLR(o, 20)],
        milestones=[4],
    ),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.3, 3), schedulers.ExponentialLR(o, 0.9)], o
    ),
}


@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_every_scheduler_schedules_the_base_rate(schedule: str, family: str) -> None:
    # powers of two as ratios: multiplying by the factors rounds nothing, whatever the order
    twin = residual_mlp("nfd").double()
    module = ResidualClassifier(copy.deepcopy(twin), OPTIMIZERS[family], SCHEDULERS[schedule])
    callback = DepthMuPLRCallback(base_depth=2, base_width=8, rule="nfd")
    quiet_trainer([callback]).fit(module, loader())
    train_by_hand(
        twin,
        loss_of,
        inputs() * 2,
        OPTIMIZERS[family],
        SCHEDULERS[schedule],
        "nfd",
        family,
        2.0,
        4.0,
    )
    assert same(weights(module.any_name), weights(twin))


@pytest.mark.parametrize("family", OPTIMIZERS)
def test_both_mechanisms_train_the_same_weights(family: str) -> None:
    trained = []
    for apply in ("groups", "step"):
        module = ResidualClassifier(
            residual_mlp("nfd"), OPTIMIZERS[family], SCHEDULERS["one cycle"]
        )
        callback = DepthMuPLRCallback(2, 8, rule="nfd", apply=apply)  # type: ignore[arg-type]
        quiet_trainer([callback]).fit(module, loader())
        trained.append(weights(module))
    assert same(*trained)


@pytest.mark.parametrize("apply", ["groups", "step"])
@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_at_the_base_shape_training_is_bitwise_the_same_as_without(
    rule: Rule, family: str, apply: Any
) -> None:
    with_callback, without = (
        ForeignModule(OPTIMIZERS[family], SCHEDULERS["lambda"]) for _ in range(2)
    )
    callback = foreign_callback(base_depth=4, base_width=8, rule=rule, apply=apply)
    quiet_trainer([callback]).fit(with_callback, Batches())
    quiet_trainer().fit(without, Batches())
    assert same(weights(with_callback), weights(without))


@pytest.mark.parametrize("rule", RULES)
def test_hooks_on_a_plain_net_equal_a_net_built_by_the_rule(rule: Rule) -> None:
    trained = []
    for build in (rule, "sp"):
        net = residual_mlp("sp")
        net.parametrization = residual_mlp(build).parametrization  # type: ignore[arg-type]
        if build != "sp":
            net.readout_multiplier = net.parametrization.readout_multiplier
            for block in net.blocks:
                block.multiplier *= net.parametrization.residual_multiplier(1.0)
        module = ResidualClassifier(net, OPTIMIZERS["adam"])
        callback = DepthMuPLRCallback(base_depth=2, base_width=8, rule=rule)
        quiet_trainer([callback]).fit(module, loader())
        trained.append(weights(module))
    assert same(*trained)


# ---- what the user sees


def lrs(optimizer: Any) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


class Spy(Callback):
    """Calls ``look(trainer, module)`` at the start of training, after a checkpoint's restore."""

    def __init__(self, look: Callable[[Any, Any], None]) -> None:
        self.look = look

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.look(trainer, pl_module)


def test_groups_keep_the_users_options_and_have_readable_names() -> None:
    module = ForeignModule(lambda groups: AdamW(groups, lr=0.01, betas=(0.8, 0.9)))
    trainer = quiet_trainer([foreign_callback(base_depth=1)])
    trainer.fit(module, Batches())
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is AdamW
    assert lrs(optimizer) == {
        "depth_mup/pg1/input": 0.01,
        "depth_mup/pg1/hidden_first": 0.01,
        "depth_mup/pg1/hidden_last": 0.005,
        "depth_mup/pg1/vector": 0.005,
        "depth_mup/pg1/final_norm": 0.01,
        "depth_mup/pg2/output": 0.02,
        "depth_mup/pg2/output_bias": 0.02,
    }
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.9)
        assert group["weight_decay"] == (0.1 if "pg1" in group["name"] else 0.01)


def test_learning_rate_monitor_shows_the_roles(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor()
    trainer = quiet_trainer(
        [foreign_callback(base_depth=1), monitor], logger=logger, log_every_n_steps=2
    )
    trainer.fit(ForeignModule(OPTIMIZERS["adam"]), Batches())
    assert set(monitor.lrs["lr-AdamW/depth_mup/pg1/hidden_last"]) == {0.005}
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "lr-AdamW/depth_mup/pg1/hidden_first" in header


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_effective_rates_are_logged_at_the_trainers_interval(tmp_path: Path, apply: Any) -> None:
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(
        [foreign_callback(base_depth=1, apply=apply)], logger=logger, log_every_n_steps=2
    )
    trainer.fit(ForeignModule(OPTIMIZERS["adam"], SCHEDULERS["exponential"]), Batches())
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    steps = [line.split(",") for line in lines[1:]]
    column = header.index("depth_mup/lr/pg1/hidden_last")
    logged = {int(row[header.index("step")]): float(row[column]) for row in steps if row[column]}
    assert logged == pytest.approx({step: 0.01 / 2 * 0.9**step for step in (1, 3, 5, 7)})


def test_no_rates_are_logged_where_the_user_says_so(tmp_path: Path) -> None:
    # Lightning overwrites an attribute `log` of callbacks with a method
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer([foreign_callback(log=False)], logger=logger, log_every_n_steps=1)
    trainer.fit(ForeignModule(), Batches())
    assert "depth_mup/lr" not in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_table_is_printed_once_and_can_be_silenced(caplog: pytest.LogCaptureFixture) -> None:
    for verbose, expected in ((True, 1), (False, 0)):
        caplog.clear()
        trainer = quiet_trainer([foreign_callback(base_depth=1, verbose=verbose)])
        trainer.fit(ForeignModule(), Batches())
        tables = [r.getMessage() for r in caplog.records if "DepthMuPLRCallback" in r.getMessage()]
        assert len(tables) == expected
        assert all("backbone.tower.*.up.weight" in table for table in tables)


def test_weight_decay_of_vectors_is_kept_unless_told() -> None:
    for decay_vectors, expected in ((True, 0.1), (False, 0.0)):
        trainer = quiet_trainer([foreign_callback(decay_vectors=decay_vectors)])
        trainer.fit(ForeignModule(), Batches())
        decays = {g["name"]: g["weight_decay"] for g in trainer.optimizers[0].param_groups}
        assert decays["depth_mup/pg1/vector"] == expected
        assert decays["depth_mup/pg1/final_norm"] == expected
        assert decays["depth_mup/pg1/hidden_first"] == 0.1


def test_decay_grows_with_the_width_only_where_the_rate_multiplies_it() -> None:
    for make, factor in ((AdamW, 2.0), (torch.optim.Adam, 1.0), (torch.optim.NAdam, 1.0)):
        trainer = quiet_trainer([foreign_callback(base_width=4)])
        trainer.fit(ForeignModule(make), Batches())  # type: ignore[arg-type]
        decays = {g["name"]: g["weight_decay"] for g in trainer.optimizers[0].param_groups}
        assert decays["depth_mup/pg1/hidden_first"] == 0.1 * factor


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    trained = []
    for lr in (0.01, torch.tensor(0.01)):
        module = ForeignModule(lambda groups, lr=lr: AdamW(groups, lr=lr, foreach=False))
        trainer = quiet_trainer([foreign_callback(base_depth=1)])
        trainer.fit(module, Batches())
        trained.append(weights(module))
        rates = [g["lr"] for g in trainer.optimizers[0].param_groups[:5]]
        assert all(isinstance(rate, type(lr)) for rate in rates)
    for name, weight in trained[0].items():
        torch.testing.assert_close(weight, trained[1][name], rtol=1e-5, atol=1e-6)


# ---- the function of the model


def test_branches_are_scaled_in_every_stage_and_only_inside_the_trainer() -> None:
    module = ForeignModule()
    data = Batches()
    x = data.batches[0][0]
    before = module.backbone(x)

    by_hand = copy.deepcopy(module)
    for block in by_hand.backbone.tower:
        with torch.no_grad():
            block.down.weight.mul_(0.5)
            block.down.bias.mul_(0.5)
    trainer = quiet_trainer([foreign_callback(base_depth=1)])
    inside = torch.cat(trainer.predict(module, data))
    torch.testing.assert_close(
        inside, torch.cat([by_hand.backbone(x) for x, _ in data.batches]).detach()
    )
    assert torch.equal(module.backbone(x), before)


def test_who_uses_the_model_after_fit_is_told_that_the_hooks_are_off() -> None:
    module = ForeignModule()
    trainer = quiet_trainer([foreign_callback(base_depth=1, base_width=4)])
    message = (
        r"multiplied the branches' outputs by 0\.5 and the readout's input by 0\.5 with hooks"
        r".*callback\.fold\(module\)"
    )
    with pytest.warns(UserWarning, match=message):
        trainer.fit(module, Batches())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="DepthMuPLRCallback")
        trainer.test(module, Batches(), verbose=False)
        trainer.predict(module, Batches())
        quiet_trainer([foreign_callback(base_depth=4)]).fit(module, Batches())  # no hooks


def test_folded_model_computes_by_itself_what_it_computed_in_the_trainer(tmp_path: Path) -> None:
    module, data = ForeignModule(), Batches()
    callback = foreign_callback(base_depth=1, base_width=4)
    trainer = quiet_trainer([callback])
    with pytest.raises(SuiteError, match="needs a run of the trainer"):
        callback.fold(module)
    trainer.fit(module, data)
    inside = torch.cat(trainer.predict(module, data))
    with pytest.raises(SuiteError, match="lacks layers of the model that was trained"):
        callback.fold(ForeignModule(depth=2))
    callback.fold(module)
    outside = torch.cat([module.backbone(x) for x, _ in data.batches]).detach()
    torch.testing.assert_close(outside, inside)
    for again in (
        lambda: callback.fold(module),
        lambda: trainer.predict(module, data),
        lambda: trainer.save_checkpoint(tmp_path / "folded.ckpt"),
    ):
        with pytest.raises(SuiteError, match="were folded into this model's weights"):
            again()


def test_fold_is_refused_while_the_hooks_are_on() -> None:
    callback = foreign_callback(base_depth=1)
    spy = Spy(lambda _, pl_module: callback.fold(pl_module))
    with pytest.raises(SuiteError, match="that is over"):
        quiet_trainer([callback, spy]).fit(ForeignModule(), Batches())


def test_a_callback_that_has_trained_lets_its_modules_go_and_can_be_copied() -> None:
    callback = foreign_callback(base_depth=1, reinit=True)
    module = ForeignModule()
    net = weakref.ref(module.backbone)
    quiet_trainer([callback]).fit(module, Batches())
    module.backbone = nn.Identity()  # type: ignore[assignment]  # Lightning keeps the module
    gc.collect()
    assert net() is None
    assert pickle.loads(pickle.dumps(callback)).base_depth == 1
    assert copy.deepcopy(callback).base_depth == 1


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def hooks_on(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_no_hook_is_left_after_fit_or_after_an_exception(apply: Any) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("stop here")

    module = ForeignModule()
    seen: list[int] = []
    spy = Spy(lambda trainer, pl_module: seen.append(hooks_of(pl_module)))
    for callbacks in ([], [Stop()]):
        trainer = quiet_trainer([foreign_callback(base_width=4, apply=apply), spy, *callbacks])
        with pytest.raises(RuntimeError, match="stop here") if callbacks else nullcontext():
            trainer.fit(module, Batches())
        assert hooks_of(module) == 0
        assert hooks_on(trainer.optimizers[0]) == 0
    assert set(seen) == {4 + 1}  # four branch ends and one readout


def test_second_fit_with_the_same_optimizer_object_does_not_scale_twice() -> None:
    class KeepsOptimizer(ForeignModule):
        kept: Any = None

        def configure_optimizers(self) -> Any:
            self.kept = self.kept or super().configure_optimizers()
            return self.kept

    module = KeepsOptimizer(OPTIMIZERS["adam"], SCHEDULERS["exponential"])
    callback = foreign_callback(base_depth=1)
    rates = []
    spy = Spy(lambda trainer, _: rates.append(lrs(trainer.optimizers[0])))
    for _ in range(2):
        quiet_trainer([callback, spy], max_epochs=1).fit(module, Batches())
    assert len(rates) == 8
    assert [r["depth_mup/pg1/hidden_last"] for r in rates] == pytest.approx(
        [0.005 * 0.9**step for step in range(8)]
    )


def test_second_fit_with_other_factors_on_the_same_optimizer_is_refused() -> None:
    module = ForeignModule()
    optimizer = module.configure_optimizers()
    module.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    quiet_trainer([foreign_callback(base_depth=1)]).fit(module, Batches())
    with pytest.raises(SuiteError, match=r"in an earlier fit.*return a new optimizer"):
        quiet_trainer([foreign_callback(base_depth=2)]).fit(module, Batches())


def test_second_fit_in_steps_on_an_optimizer_that_was_split_is_refused() -> None:
    module = ForeignModule()
    optimizer = module.configure_optimizers()
    module.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    quiet_trainer([foreign_callback(base_depth=1)]).fit(module, Batches())
    with pytest.raises(SuiteError, match=r"by an earlier fit.*this fit needs apply='step'"):
        quiet_trainer([foreign_callback(base_depth=1, apply="step")]).fit(module, Batches())


def test_a_plateau_schedule_falls_alike_for_all_roles_down_to_nothing() -> None:
    """Torch skips reductions below an absolute threshold: small factors must not meet it first."""
    callback = foreign_callback(base_depth=1, base_width=1)
    seen = []
    spy = Spy(lambda *_: seen.append(callback.effective_lrs()))
    module = ForeignModule(
        OPTIMIZERS["adam"],
        lambda o: schedulers.ReduceLROnPlateau(
            o, factor=0.1, patience=0, threshold=1e9, mode="max"
        ),
        interval="epoch",
    )
    quiet_trainer([callback, spy], max_epochs=12).fit(module, Batches(count=1))
    first, last = (
        [lrs[f"depth_mup/lr/pg1/{r}"] for r in ("input", "hidden_last")]
        for lrs in (seen[0], seen[-1])
    )
    assert last[0] < 1e-7
    assert last[1] / last[0] == pytest.approx(first[1] / first[0])


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_module_that_builds_its_net_late_trains_the_same(hook: str) -> None:
    class Late(ForeignModule):
        def build(self, stage: str = "") -> None:
            if not hasattr(self, "backbone"):
                self.backbone = ForeignModule().backbone

    setattr(Late, hook, Late.build)
    late = Late()
    del late.backbone
    early = ForeignModule()
    for module in (late, early):
        quiet_trainer([foreign_callback(base_depth=1)]).fit(module, Batches())
    assert same(weights(late), weights(early))


def test_a_net_that_setup_replaces_is_the_one_that_is_scaled() -> None:
    class Replaces(ForeignModule):
        def setup(self, stage: str) -> None:
            self.backbone = ForeignModule(depth=8).backbone

    trainer = quiet_trainer([foreign_callback(base_depth=2)])
    seen: list[int] = []
    trainer.callbacks.append(Spy(lambda _, pl_module: seen.append(hooks_of(pl_module))))
    module = Replaces()
    trainer.fit(module, Batches())
    assert set(seen) == {8}
    assert lrs(trainer.optimizers[0])["depth_mup/pg1/hidden_last"] == 0.001 * 0.5
    with pytest.raises(SuiteError, match="builds its network in __init__"):
        quiet_trainer([foreign_callback(reinit=True)]).fit(Replaces(), Batches())


def test_reinit_draws_weights_once_and_the_same_for_one_seed() -> None:
    first = []
    for _ in range(2):
        torch.manual_seed(5)
        module = ForeignModule()
        start = weights(module)
        seen: list[dict[str, Tensor]] = []
        spy = Spy(lambda trainer, pl_module, seen=seen: seen.append(weights(pl_module)))  # type: ignore[misc]
        callback = foreign_callback(reinit=True)
        quiet_trainer([callback, spy], max_epochs=1).fit(module, Batches())
        trained = weights(module)
        quiet_trainer([callback, spy], max_epochs=1).fit(module, Batches())
        assert same(seen[4], trained)  # the second fit goes on
        assert not same(seen[0], start)
        first.append(seen[0])
    assert same(*first)


def test_reinit_draws_every_model_that_the_callback_is_given() -> None:
    callback = foreign_callback(reinit=True)
    for _ in range(2):
        module = ForeignModule()
        with torch.no_grad():
            module.backbone.stem.weight.zero_()
        seen: list[Tensor] = []
        spy = Spy(lambda _, m, seen=seen: seen.append(m.backbone.stem.weight.detach().clone()))  # type: ignore[misc]
        quiet_trainer([callback, spy], max_epochs=1).fit(module, Batches())
        assert seen[0].abs().min() > 0


# ---- what else the trainer does


def test_gradient_accumulation_and_clipping_change_nothing_about_the_factors() -> None:
    trained = []
    for apply in ("groups", "step"):
        module = ForeignModule(OPTIMIZERS["sgd"])
        trainer = quiet_trainer(
            [foreign_callback(base_depth=1, apply=apply)],
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
        )
        trainer.fit(module, Batches())
        assert trainer.global_step == 4
        trained.append(weights(module))
    # not to the bit: torch 2.6 adds up the norm that is clipped in the order of the groups
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("apply", ["groups", "step"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(precision: Any, apply: Any) -> None:
    module = ForeignModule(OPTIMIZERS["adam"])
    start = weights(module)
    quiet_trainer([foreign_callback(apply=apply)], precision=precision).fit(module, Batches())
    assert all(torch.isfinite(w).all() for w in weights(module).values())
    assert not same(weights(module), start)


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_a_gradient_scaler_may_skip_a_step(apply: Any) -> None:
    """The scaler of fp16 calls ``step`` without a closure, or not at all."""
    from lightning_suite.depth_mup.apply import AppliedFactors
    from lightning_suite.depth_mup.param_groups import Factors, plan_groups

    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1)
    names, roles = {id(weight): "w"}, {"w": "hidden_first"}
    AppliedFactors(
        optimizer,
        [],
        lambda groups: plan_groups(groups, names, roles, {"hidden_first": Factors(2.0)}),  # type: ignore[arg-type]
        apply,
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale((weight * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, torch.ones(2) if bad else torch.full((2,), 0.8))


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_compiled_model_trains_as_the_plain_one(apply: Any) -> None:
    plain, compiled = ForeignModule(), ForeignModule()
    torch._dynamo.reset()
    compiled.backbone = torch.compile(compiled.backbone, backend="eager")  # type: ignore[assignment]
    quiet_trainer([foreign_callback(base_depth=1, apply=apply)]).fit(plain, Batches())
    # the compiler wraps the module: its parameters are named backbone._orig_mod.…
    module = compiled
    quiet_trainer([foreign_callback(base_depth=1, apply=apply)]).fit(module, Batches())
    torch._dynamo.reset()
    renamed = {name.replace("_orig_mod.", ""): w for name, w in weights(compiled).items()}
    assert renamed.keys() == weights(plain).keys()
    for name, weight in weights(plain).items():
        torch.testing.assert_close(renamed[name], weight)


class ManualTwoOptimizers(ForeignModule):
    """Manual optimization: SGD for the tower, AdamW for the rest, each with its own scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        tower = SGD(self.backbone.tower.parameters(), lr=0.1, momentum=0.9)
        rest = AdamW([p for n, p in self.named_parameters() if "tower" not in n], lr=0.01)
        return [tower, rest], [schedulers.StepLR(tower, 2), schedulers.ExponentialLR(rest, 0.9)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()


def test_manual_optimization_with_two_optimizers_of_different_families() -> None:
    trained, effective = [], []
    for apply in ("groups", "step"):
        module = ManualTwoOptimizers()
        callback = foreign_callback(base_depth=1, base_width=4, apply=apply)
        spy = Spy(lambda *_, callback=callback: effective.append(callback.effective_lrs()))  # type: ignore[misc]
        quiet_trainer([callback, spy]).fit(module, Batches())
        trained.append(weights(module))
    assert same(*trained)
    assert (
        effective[0]
        == effective[8]
        == {
            "depth_mup/lr/optimizer1/hidden_first": 0.1 * 2,  # SGD: r_L^1/2
            "depth_mup/lr/optimizer1/hidden_last": 0.1,
            "depth_mup/lr/optimizer1/vector": 0.1 * 2,  # r_n
            "depth_mup/lr/optimizer2/input": 0.01,  # Adam
            "depth_mup/lr/optimizer2/output": 0.01,
            "depth_mup/lr/optimizer2/output_bias": 0.01,
            "depth_mup/lr/optimizer2/final_norm": 0.01,
        }
    )


def test_rates_set_by_hand_are_refused_in_groups_and_right_in_steps() -> None:
    class WarmsUpByHand(ForeignModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            for group in self.optimizers().param_groups:
                group["lr"] = 0.001 * (1 + self.global_step)
            return super().training_step(batch, batch_idx)

    with pytest.raises(SuiteError, match=r"overwrote the learning rate .*apply='step'"):
        quiet_trainer([foreign_callback(base_depth=1)]).fit(WarmsUpByHand(), Batches())

    class ByScheduler(ForeignModule):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            for group in optimizer.param_groups:
                group["lr"] = 0.001
            scheduler = schedulers.LambdaLR(optimizer, lambda step: 1 + step)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    by_hand, by_scheduler = WarmsUpByHand(OPTIMIZERS["sgd"]), ByScheduler(OPTIMIZERS["sgd"])
    quiet_trainer([foreign_callback(base_depth=1, apply="step")]).fit(by_hand, Batches())
    quiet_trainer([foreign_callback(base_depth=1)]).fit(by_scheduler, Batches())
    for name, weight in weights(by_hand).items():
        torch.testing.assert_close(weight, weights(by_scheduler)[name])


def test_groups_added_during_training_are_refused_in_groups_and_scaled_in_steps() -> None:
    class Unfreezes(ForeignModule):
        def configure_optimizers(self) -> Any:
            return SGD(self.backbone.head.parameters(), lr=0.1)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 2:
                self.optimizers().add_param_group(
                    {"params": list(self.backbone.tower.parameters())}
                )

    with pytest.raises(SuiteError, match=r"had 2 parameter groups .* has 3 now.*apply='step'"):
        quiet_trainer([foreign_callback(base_depth=1)]).fit(Unfreezes(), Batches())
    callback = foreign_callback(base_depth=1, apply="step")
    seen = []
    spy = Spy(lambda *_: seen.append(callback.effective_lrs()))
    quiet_trainer([callback, spy]).fit(Unfreezes(), Batches())
    assert "depth_mup/lr/pg2/hidden_first" not in seen[0]
    assert seen[-1]["depth_mup/lr/pg2/hidden_first"] == 0.2


# ---- adapters and pretrained weights


def small_gpt2(**options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=4, n_embd=8, n_head=2, vocab_size=11, n_positions=8, **options
    )
    return transformers.GPT2LMHeadModel(config)


class LanguageModel(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lm = model

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.lm(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> Any:
        return AdamW((p for p in self.parameters() if p.requires_grad), lr=0.01)


def tokens() -> DataLoader[Any]:
    return DataLoader([torch.randint(0, 11, (2, 6)) for _ in range(3)], batch_size=None)  # type: ignore[arg-type]


def test_lora_matrices_have_the_role_of_what_they_adapt() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["c_attn", "c_proj"], r=2, fan_in_fan_out=True)
    module = LanguageModel(peft.get_peft_model(small_gpt2(), config))
    trainer = quiet_trainer([DepthMuPLRCallback(1, rule="nfd", residual_scale="none")])
    trainer.fit(module, tokens())
    assert lrs(trainer.optimizers[0]) == {
        "depth_mup/hidden_first": 0.01,
        "depth_mup/hidden_last": 0.005,
    }
    sizes = [len(group["params"]) for group in trainer.optimizers[0].param_groups]
    assert sizes == [4 * 2, 4 * 2 * 2]  # A and B of c_attn; of both c_proj


def test_pretrained_weights_keep_their_function_and_the_user_is_told() -> None:
    model = small_gpt2()
    model.config.name_or_path = "somebody/their-gpt2"
    hooks: list[int] = []
    spy = Spy(lambda _, pl_module: hooks.append(hooks_of(pl_module)))
    with pytest.warns(UserWarning, match=r"look pretrained \('somebody/their-gpt2'\)"):
        quiet_trainer([DepthMuPLRCallback(base_depth=1), spy]).fit(LanguageModel(model), tokens())
    quiet_trainer([DepthMuPLRCallback(1, pretrained=True), spy]).fit(LanguageModel(model), tokens())
    assert set(hooks) == {0}
    quiet_trainer([DepthMuPLRCallback(1, pretrained=False), spy], max_epochs=1).fit(
        LanguageModel(model), tokens()
    )
    assert hooks[-1] == 8
    with pytest.raises(SuiteError, match="reinit=True would overwrite pretrained weights"):
        quiet_trainer([DepthMuPLRCallback(1, pretrained=True, reinit=True)]).fit(
            LanguageModel(model), tokens()
        )


def test_tied_readout_is_right_with_hooks_and_refused_without() -> None:
    quiet_trainer([DepthMuPLRCallback(1, base_width=4)]).fit(LanguageModel(small_gpt2()), tokens())
    for options in ({"readout_scale": "none"}, {"pretrained": True}):
        callback = DepthMuPLRCallback(1, base_width=4, **options)  # type: ignore[arg-type]
        with pytest.raises(SuiteError, match=r"shares its weight with the embedding"):
            quiet_trainer([callback]).fit(LanguageModel(small_gpt2()), tokens())
    untied = LanguageModel(small_gpt2(tie_word_embeddings=False))
    trainer = quiet_trainer([DepthMuPLRCallback(1, base_width=4, readout_scale="none")])
    trainer.fit(untied, tokens())
    assert lrs(trainer.optimizers[0])["depth_mup/output"] == 0.005  # 1/r_n instead


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "nfdd"}, r"unknown rule 'nfdd'. Did you mean 'nfd'\? The rules are"),
        ({"base_depth": 0}, r"base_depth=0, .* of at least 1"),
        ({"base_width": 0}, r"base_width=0, .* of at least 1"),
        ({"base_depth": "4"}, r"base_depth='4', and it must be a whole number"),
        ({"base_depth": 4.5}, r"base_depth=4.5, and it must be a whole number"),
        ({"width": 0}, r"width=0, .* at least 1"),
        ({"p": 0.7}, r"p=0.7, and it must lie between 0 .* and 0.5"),
        ({"rule": "completep", "p": 0.5}, r"belongs to the rule 'nfd'.*Leave p out"),
        ({"apply": "steps"}, r"apply='steps' is not known. Did you mean 'step'\?"),
        ({"residual_scale": "yes"}, r"residual_scale='yes' is not known.*auto, model, none"),
        ({"readout_scale": "on"}, r"readout_scale='on' is not known"),
        ({"optimizer_family": "adm"}, r"optimizer_family='adm' is not known. Did you mean 'adam'"),
    ],
)
def test_bad_arguments_are_refused_when_the_callback_is_made(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        DepthMuPLRCallback(**{"base_depth": 2, **options})


class NoBlocks(ForeignModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 3)  # type: ignore[assignment]


class UnregisteredLoss(ForeignModule):
    def configure_optimizers(self) -> Any:
        return SGD([*self.parameters(), nn.Parameter(torch.zeros(7))], lr=0.1)


class Adafactor(SGD):
    """As that of transformers, which chooses its rate by itself."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups)
        for group in self.param_groups:
            group["lr"] = None


class Unknown(torch.optim.Rprop):
    pass


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (NoBlocks, {}, r"no residual blocks were found"),
        (ForeignModule, {"patterns": None}, r"have no role(.|\n)*backbone.stem.weight"),
        (ForeignModule, {"preset": "lama"}, r"unknown preset 'lama'. Did you mean 'llama'"),
        (UnregisteredLoss, {}, r"shape \(7,\).*does not belong to the LightningModule"),
        (lambda: ForeignModule(Adafactor), {}, r"Adafactor has no learning rate \(lr=None\)"),
        (lambda: ForeignModule(Unknown), {}, r"Unknown is of no family.*optimizer_family='sgd'"),
        (
            lambda: ForeignModule(AdamW, SCHEDULERS["cosine with floor"]),
            {"apply": "groups"},
            r"apply='groups' cannot scale CosineAnnealingLR.*Use apply='step' or apply='auto'",
        ),
    ],
)
def test_what_cannot_be_done_right_is_refused(
    module: Callable[[], Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        quiet_trainer([foreign_callback(**options)]).fit(module(), Batches())


def test_two_callbacks_are_refused() -> None:
    trainer = quiet_trainer([foreign_callback(), foreign_callback()])
    with pytest.raises(SuiteError, match=r"has 2 DepthMuPLRCallbacks.*Keep one"):
        trainer.fit(ForeignModule(), Batches())


def test_a_search_for_the_rate_of_the_uncorrected_model_is_refused() -> None:
    trainer = quiet_trainer([foreign_callback(), LearningRateFinder()])
    with pytest.raises(SuiteError, match=r"Find that on the base model, and take the finder out"):
        trainer.fit(ForeignModule(), Batches())
    tuner = Tuner(quiet_trainer([foreign_callback()]))
    with pytest.raises(SuiteError, match=r"after Tuner\.lr_find: make a new Trainer"):
        tuner.lr_find(ForeignModule(), Batches())


@pytest.mark.parametrize("apply", ["groups", "step"])
@pytest.mark.parametrize("rule", ["auto", "nfd"])
def test_after_a_search_for_the_batch_size_training_is_as_if_it_had_been_known(
    rule: Any, apply: Any, tmp_path: Path
) -> None:
    class Sized(ForeignModule):
        batch_size = 2

        def train_dataloader(self) -> DataLoader[Any]:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(16, 4, generator=generator)
            y = torch.randint(0, 3, (16,), generator=generator)
            return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    def fit(module: Sized, *search: Callback) -> dict[str, Tensor]:
        callback = foreign_callback(base_depth=1, rule=rule, apply=apply)
        quiet_trainer([callback, *search], default_root_dir=tmp_path).fit(module)
        return weights(module)

    searched, known = Sized(), Sized()
    found = fit(searched, BatchSizeFinder(max_trials=2, steps_per_trial=2))
    assert searched.batch_size > 2
    known.batch_size = searched.batch_size
    assert same(found, fit(known))


def test_weight_averaging_may_set_rates_in_steps_only() -> None:
    def fit(**options: Any) -> Any:
        averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
        callback = foreign_callback(base_depth=1, **options)
        quiet_trainer([callback, averaging], max_epochs=3).fit(ForeignModule(), Batches())

    with pytest.raises(SuiteError, match=r"overwrote the learning rate.*apply='step'"):
        fit()
    fit(apply="step")


def test_a_net_built_by_another_rule_or_base_is_refused() -> None:
    module = ResidualClassifier(residual_mlp("completep"), OPTIMIZERS["adam"])
    with pytest.raises(SuiteError, match=r"was built with rule='completep'.*callback says rule='n"):
        quiet_trainer([DepthMuPLRCallback(2, 8)]).fit(module, loader())
    module = ResidualClassifier(residual_mlp("sp"), OPTIMIZERS["adam"])
    with pytest.raises(SuiteError, match=r"base_depth=2, .*the callback says .*base_depth=4"):
        quiet_trainer([DepthMuPLRCallback(4, 8)]).fit(module, loader())


# ---- checkpoints (resuming: tests/integration/test_resume.py)


def test_checkpoint_holds_plain_types_and_loads_with_weights_only(tmp_path: Path) -> None:
    trainer = quiet_trainer([foreign_callback(base_width=4)])
    trainer.fit(ForeignModule(), Batches())
    trainer.save_checkpoint(tmp_path / "after_fit.ckpt")
    checkpoint = torch.load(tmp_path / "after_fit.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["DepthMuPLRCallback"] == {
        "version": 1,
        "rule": "nfd",
        "p": 0.5,
        "base_depth": 2,
        "base_width": 4,
        "depth": 4,
        "width": 8,
        "residual_multiplier": 2**-0.5,
        "readout_multiplier": 0.5,
        "decay_vectors": True,
        "apply": ["groups"],
    }


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_step_mode_saves_base_rates_and_groups_save_scaled_ones(tmp_path: Path, apply: Any) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    trainer = quiet_trainer(
        [foreign_callback(base_depth=1, apply=apply), saver],
        enable_checkpointing=True,
        max_epochs=1,
    )
    trainer.fit(ForeignModule(OPTIMIZERS["adam"]), Batches())
    checkpoint = torch.load(saver.best_model_path, weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    saved = [group["lr"] for group in groups if group["params"]]
    if apply == "step":
        assert saved == [0.01, 0.02]
    else:
        assert saved == [0.01, 0.01, 0.005, 0.005, 0.01, 0.02, 0.02]
