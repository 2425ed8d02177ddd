"""The sweep: its grid, its folder, what it resumes, and what it concludes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_suite.depth_mup.lr_optimum import (
    analyse,
    best_log2_lr,
    bootstrap,
    parabola_vertex,
    resamples,
)
from lightning_suite.depth_mup.lr_transfer import (
    BatchedEngine,
    Chunk,
    Grid,
    NetSettings,
    RuleChoice,
    RunResult,
    final_loss,
    parse_log2_lrs,
    plan,
    shard_of,
)
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings
from lightning_suite.depth_mup.sweep_store import SweepStore, run_sweep
from lightning_suite.errors import SuiteError

GRID = Grid((RuleChoice("sp"), RuleChoice("nfd", 0.25)), (2, 4, 8), (-3.0, -2.0, -1.0), (0, 1), 4)


def make_engine() -> BatchedEngine:
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.randn(64, 1, 4, 4, generator=generator),
        torch.randint(3, (64,), generator=generator),
    )
    return BatchedEngine(
        NetSettings(width=8), OptimizerSettings("sgd"), data, data, 4, 8, 16, final_steps=2
    )


def valley(optimum: Callable[[RuleChoice, int], float]) -> Callable[..., list[RunResult]]:
    """A trainer whose loss is a parabola in log2 lr with a known optimum; a seed scales it."""

    def train(chunk: Chunk, on_progress: Callable[[float], None]) -> list[RunResult]:
        on_progress(1.0)
        best = optimum(chunk.rule, chunk.depth)
        losses = [math.exp((p.log2_lr - best) ** 2 / 4) * (1 + p.seed) for p in chunk.points]
        return [
            RunResult(chunk.rule.label, chunk.depth, p.log2_lr, p.seed, loss, loss, 0.5, None)
            for p, loss in zip(chunk.points, losses, strict=True)
        ]

    return train


# --- the grid


def test_chunks_cover_the_grid_once_and_stay_below_the_limit() -> None:
    chunks = plan(GRID, lambda depth: 4 if depth == 8 else 32)
    runs = [(c.rule.label, c.depth, p) for c in chunks for p in c.points]
    assert len(runs) == len(set(runs)) == 2 * 3 * 3 * 2
    assert [len(c.points) for c in chunks] == [6, 6, 3, 3] * 2
    assert len({c.name for c in chunks}) == len(chunks)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_shards_are_a_partition_balanced_by_cost(count: int) -> None:
    chunks = plan(GRID, lambda _: 2)
    shards = [shard_of(chunks, i, count) for i in range(count)]
    assert sorted(c.name for s in shards for c in s) == sorted(c.name for c in chunks)
    costs = [sum(c.cost for c in s) for s in shards]
    assert max(costs) - min(costs) <= max(c.cost for c in chunks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2^-2..2^0", (-2, -1, 0)),
        ("2^-1..2^0:0.5", (-1, -0.5, 0)),
        ("0.25,2^-1, 1", (-2, -1, 0)),
        ("0.125..0.5", (-3, -2, -1)),
        ("2**3", (3,)),
    ],
)
def test_learning_rates_are_read(text: str, expected: tuple[float, ...]) -> None:
    assert parse_log2_lrs(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2^0..2^-3", "smaller rate first"),
        ("2^-3..2^0:0", "octaves above 0"),
        ("2^-3..2^0:x", "octaves above 0"),
        ("fast", "'fast' is not a learning rate"),
        ("-1", "'-1' is not a learning rate"),
        ("0", "'0' is not a learning rate"),
        ("2^-300..2^0", "301 rates"),
        ("", "'' is not a learning rate"),
    ],
)
def test_bad_learning_rates_are_explained(text: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        parse_log2_lrs(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nfdd", "Did you mean 'nfd'"),
        ("nfd:half", "'half' is not a number"),
        ("nfd:0.7", "between 0"),
        ("sp:0.5", "belongs to the rule 'nfd'"),
    ],
)
def test_bad_rules_are_explained(text: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        RuleChoice.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": ()}, "depths: give at least one"),
        ({"depths": (2, 2)}, "appears twice"),
        ({"depths": (0, 2)}, "depths: 0"),
        ({"base_depth": 0}, "base_depth: 0"),
        ({"seeds": (-1,)}, "seeds: -1"),
    ],
)
def test_bad_grids_are_explained(change: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        replace(GRID, **change)


# --- the folder


def test_a_resumed_sweep_trains_only_what_is_missing_and_ends_the_same(tmp_path: Path) -> None:
    engine = make_engine()
    whole = run_sweep(GRID, SweepStore(tmp_path / "a", {}), engine, engine.runs_at_once)
    store = SweepStore(tmp_path / "b", {})
    trained: list[str] = []

    def stops_after_two(chunk: Chunk, on_progress: Callable[[float], None]) -> list[RunResult]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(chunk.name)
        return engine(chunk, on_progress)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(GRID, store, stops_after_two, engine.runs_at_once)
    trained.append("resumed")
    assert run_sweep(GRID, store, engine, engine.runs_at_once) == whole
    for file in (tmp_path / "a" / "chunks").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "chunks" / file.name).read_bytes()


def test_shards_merge_to_the_unsharded_sweep(tmp_path: Path) -> None:
    engine = make_engine()
    whole = run_sweep(GRID, SweepStore(tmp_path / "whole", {}), engine, engine.runs_at_once)
    for i in range(3):
        shard = SweepStore(tmp_path / f"shard{i}", {})
        run_sweep(GRID, shard, engine, engine.runs_at_once, shard=(i, 3))
    merged = SweepStore(tmp_path / "merged", {})
    assert sum(merged.merge(tmp_path / f"shard{i}") for i in range(3)) == 6
    assert merged.merge(tmp_path / "shard0") == 0

    def nothing_is_missing(*_: object) -> list[RunResult]:
        raise AssertionError

    assert run_sweep(GRID, merged, nothing_is_missing, engine.runs_at_once) == whole


def test_another_sweep_cannot_use_the_folder(tmp_path: Path) -> None:
    engine = make_engine()
    store = SweepStore(tmp_path, engine.settings(GRID))
    chunk = plan(GRID, engine.runs_at_once)[0]
    store.write(chunk, engine(chunk, lambda _: None))
    SweepStore(tmp_path, engine.settings(GRID))  # the same may
    other = replace(engine, steps=9, optimizer=OptimizerSettings("adamw"))
    with pytest.raises(SuiteError, match="optimizer.name: sgd in the folder, adamw now") as error:
        SweepStore(tmp_path, other.settings(GRID))
    assert "steps: 8 in the folder, 9 now" in str(error.value)
    assert "width" not in str(error.value)
    data = (engine.train[0] + 1, engine.train[1])
    with pytest.raises(SuiteError, match="data: "):
        SweepStore(tmp_path, replace(engine, train=data).settings(GRID))


def test_a_folder_in_which_nothing_is_finished_is_free_for_another_sweep(tmp_path: Path) -> None:
    engine = make_engine()
    first = SweepStore(tmp_path, engine.settings(GRID))
    second = SweepStore(tmp_path, replace(engine, steps=9).settings(GRID))
    chunk = plan(GRID, engine.runs_at_once)[0]
    results = engine(chunk, lambda _: None)
    with pytest.raises(SuiteError, match="steps: 9 in the folder, 8 now"):
        first.write(chunk, results)  # had it gone on, both would be in one table
    second.write(chunk, results)
    with pytest.raises(SuiteError, match="steps: 9 in the folder, 8 now"):
        SweepStore(tmp_path, engine.settings(GRID))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    engine = make_engine()
    store = SweepStore(tmp_path, {})
    chunk = plan(GRID, engine.runs_at_once)[0]
    store.write(chunk, engine(chunk, lambda _: None))
    with pytest.raises(SuiteError, match="holds other runs"):
        store.read(replace(chunk, depth=16))
    file = tmp_path / "chunks" / f"{chunk.name}.csv"
    file.write_text("rule,depth\nsp,2\n")
    with pytest.raises(SuiteError, match="not a table of runs"):
        store.read(chunk)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SuiteError, match="not readable as JSON"):
        SweepStore(tmp_path, {})
    with pytest.raises(SuiteError, match="holds no sweep"):
        store.merge(tmp_path / "nowhere")


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    heard: list[float] = []
    engine = make_engine()
    run_sweep(
        GRID,
        SweepStore(tmp_path, {}),
        engine,
        engine.runs_at_once,
        on_progress=lambda part, _: heard.append(part),
    )
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1)


# --- extension of the grid


def test_the_grid_grows_to_the_side_of_the_optimum_for_all_depths_of_the_rule(
    tmp_path: Path,
) -> None:
    def optimum(rule: RuleChoice, depth: int) -> float:
        return -2.0 if rule.rule == "nfd" else {2: -2.0, 4: -3.0, 8: -6.0}[depth]

    results = run_sweep(GRID, SweepStore(tmp_path, {}), valley(optimum), lambda _: 32, extend=5)
    lrs = {(r.rule, r.depth): set() for r in results}
    for r in results:
        lrs[r.rule, r.depth].add(r.log2_lr)
    for depth in GRID.depths:
        assert lrs["sp", depth] == set(range(-7, 0))
        assert lrs["nfd:0.25", depth] == {-3, -2, -1}
    optima, _ = analyse(results, 4)
    assert [o.log2_lr.value for o in optima[:3]] == pytest.approx([-2, -3, -6])
    assert not any(o.edge for o in optima)


def test_the_extension_ends_at_its_limit_and_the_edge_is_flagged(tmp_path: Path) -> None:
    results = run_sweep(
        GRID, SweepStore(tmp_path, {}), valley(lambda *_: 10.0), lambda _: 32, extend=3
    )
    assert max(r.log2_lr for r in results) == 2
    optima, drifts = analyse(results, 4)
    assert {o.edge for o in optima} == {"high"}
    assert all(d.edge for d in drifts)


# --- conclusions


def test_the_vertex_is_that_of_the_parabola() -> None:
    for x in ((-1.0, 0.0, 1.0), (-3.0, -1.0, 0.5)):
        y = [3 * (v + 0.7) ** 2 + 5 for v in x]
        assert parabola_vertex(x, y) == pytest.approx(-0.7)
    assert parabola_vertex((0.0, 1.0, 2.0), (4.0, 4.0, 4.0)) == 1


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3, 2, 1], (2.0, 2, "high")),
        ([1, 2, 3], (0.0, 0, "low")),
        ([2, 1, math.inf], (1.0, 1, "")),  # a cliff: no parabola through infinity
        ([math.inf, 1, 2], (1.0, 1, "")),
        ([4, 1, 4], (1.0, 1, "")),
    ],
)
def test_the_best_rate_of_a_curve(losses: list[float], expected: tuple[float, int, str]) -> None:
    assert best_log2_lr(np.arange(3.0), np.array(losses, dtype=float)) == expected


def test_a_curve_on_which_everything_diverges_has_no_best_rate() -> None:
    value, index, edge = best_log2_lr(np.arange(2.0), np.full(2, math.inf))
    assert math.isnan(value)
    assert (index, edge) == (-1, "")


def test_the_final_loss_of_a_run_that_ends_above_its_first_is_infinite() -> None:
    losses = torch.tensor([[2.0, 1.0, 0.5], [2.0, 1e30, 1e29], [2.0, math.inf, math.inf]])
    assert final_loss(losses, 2).tolist() == [0.75, math.inf, math.inf]


def test_few_seeds_are_resampled_exhaustively() -> None:
    assert sorted(map(tuple, resamples(2).tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert resamples(5).shape == (3125, 5)
    assert resamples(6).shape == (10_000, 6)
    assert np.array_equal(resamples(6), resamples(6))


def test_the_bootstrap_of_a_mean_has_its_closed_form() -> None:
    values = np.random.default_rng(0).normal(size=40)
    interval = bootstrap(lambda i: float(values[i].mean()), len(values))
    assert interval.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - error, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.03)


def test_the_interval_covers_as_much_as_its_docstring_says() -> None:
    rng = np.random.default_rng(0)

    def covers(seeds: int) -> bool:
        values = rng.normal(size=seeds)
        interval = bootstrap(lambda i: float(values[i].mean()), seeds)
        return interval.low <= 0 <= interval.high

    # binomial standard error 0.025
    assert np.mean([covers(2) for _ in range(400)]) == pytest.approx(0.51, abs=0.08)
    assert np.mean([covers(3) for _ in range(400)]) == pytest.approx(0.75, abs=0.08)
    assert np.mean([covers(4) for _ in range(400)]) == pytest.approx(0.80, abs=0.08)


def test_two_seeds_give_the_interval_between_them() -> None:
    interval = bootstrap(lambda i: float(np.array([1.0, 3.0])[i].mean()), 2)
    assert (interval.value, interval.low, interval.high) == (2, 1, 3)


def table(optimum: Callable[[str, int, int], float], depths: tuple[int, ...]) -> list[RunResult]:
    return [
        RunResult(rule, d, lr, s, math.exp((lr - optimum(rule, d, s)) ** 2), 0.0, 0.5, None)
        for rule in ("sp", "nfd")
        for d in depths
        for lr in np.arange(-9.0, 3.0)
        for s in (0, 1, 2)
    ]


def test_drift_and_regret_of_known_curves() -> None:
    # sp loses half an octave a doubling; nfd stays; seeds agree
    results = table(lambda rule, d, s: -0.5 * math.log2(d) if rule == "sp" else -1.0, (2, 8, 32))
    optima, (sp, nfd) = analyse(results, base_depth=8)
    assert sp.per_doubling.value == pytest.approx(-0.5)
    assert (sp.per_doubling.low, sp.per_doubling.high) == pytest.approx((-0.5, -0.5))
    assert sp.total.value == pytest.approx(-2)
    assert sp.depths == (2, 32)
    assert nfd.total.value == pytest.approx(0)
    assert nfd.largest_regret == pytest.approx(0)
    # the rates of the grid nearest to -1.5 are -1 and -2; argmin takes the first of equals
    kept = optima[1].grid_log2_lr
    deepest = optima[2]
    best = min(abs(lr + 2.5) for lr in (-2, -3))
    assert deepest.regret.value == pytest.approx(math.exp((kept + 2.5) ** 2 - best**2) - 1)


def test_seeds_that_disagree_widen_the_interval_and_depths_share_the_resample() -> None:
    # every seed has its own optimum, the same at all depths: the rate is uncertain, its drift not
    results = table(lambda rule, d, s: float(s - 3), (2, 8))
    optima, drifts = analyse(results, base_depth=2)
    assert optima[0].seed_log2_lrs == pytest.approx((-3, -2, -1))
    assert optima[0].log2_lr.low < -2 < optima[0].log2_lr.high
    assert (drifts[0].total.low, drifts[0].total.high) == pytest.approx((0, 0))


def test_keeping_a_rate_that_diverges_has_infinite_regret() -> None:
    results = [
        replace(r, train_loss=math.inf) if r.depth == 8 and r.log2_lr >= -2 else r
        for r in table(lambda rule, d, s: -1.0 if d == 2 else -4.0, (2, 8))
    ]
    optima, drifts = analyse(results, base_depth=2)
    assert math.isinf(optima[1].kept_loss)
    assert math.isinf(drifts[0].largest_regret)


def test_missing_runs_are_named() -> None:
    results = table(lambda *_: 0.0, (2, 4))
    with pytest.raises(SuiteError, match="sp, depth 2: 1 run.* log2 lr -9, seed 0"):
        analyse(results[1:], base_depth=2)
