"""Every feature against its definition on the whole gradient, and the registry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_suite.errors import PlacedError, SuiteError
from lightning_suite.resofilter import rows as rows_module
from lightning_suite.resofilter.features import (
    REGISTRY,
    AdamMeanAbs,
    AdamState,
    Sketch,
    compute_features,
    make_features,
)
from lightning_suite.resofilter.rows import InputRows, LayerGradients

LENGTHS = [3, 0, 9, 1]  # the second sample has no rows: its gradient is 0
O, I = 6, 5  # noqa: E741


def layer(dtype: torch.dtype = torch.float64, scale: float = 1e-7) -> LayerGradients:
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    ranges = tuple((end - n, end) for n, end in zip(LENGTHS, ends, strict=True))
    x = torch.randn(ends[-1], I, dtype=torch.float64)
    g = scale * torch.randn(ends[-1], O, dtype=torch.float64)
    weight = torch.randn(O, I, dtype=torch.float64)
    return LayerGradients("a", InputRows(x.to(dtype), ranges), g.to(dtype), weight.to(dtype))


def gradient(layer: LayerGradients) -> Tensor:
    return torch.stack([g.mT @ x for x, g in layer.samples()])


def mean_abs(values: Tensor) -> Tensor:
    return values.abs().flatten(1).mean(1)


def entropy_rank(G: Tensor) -> Tensor:
    values = torch.linalg.svdvals(G)
    share = values / values.sum(1, keepdim=True)
    rank = torch.special.entr(share).sum(1).exp()
    return rank.nan_to_num(0)


DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adam1_mean_abs": lambda G, W: 1e-5 * mean_abs(0.01 * W + G / (G.abs() + 1e-8)),
    "adam1_mean_abs_rounded": lambda G, W: 1e-5 * mean_abs(0.01 * W + G / (G.abs() + 1e-8)),
    "unsaturation": lambda G, W: 1 - mean_abs(G / (G.abs() + 1e-8)),
    "sgd_mean_abs": lambda G, W: mean_abs(G),
    "adam_mean_abs": lambda G, W: 1e-5 * mean_abs(0.01 * W + G / (G.abs() + 1e-8)),
    "grad_l1": lambda G, W: G.abs().flatten(1).sum(1),
    "grad_max": lambda G, W: G.abs().flatten(1).amax(1),
    "grad_norm": lambda G, W: G.flatten(1).norm(dim=1),
    "wdotg": lambda G, W: (W * G).flatten(1).sum(1),
    "weight_norm_change": lambda G, W: (W - 1e-5 * G).flatten(1).norm(dim=1) - W.norm(),
    "step_norm": lambda G, W: 1e-5 * G.flatten(1).norm(dim=1),
    "nuclear_norm": lambda G, W: torch.linalg.svdvals(G).sum(1),
    "effective_rank": lambda G, W: entropy_rank(G),
}


def test_every_registered_feature_has_a_definition_here() -> None:
    ours = {
        name for name, kind in REGISTRY.items() if kind.__module__.startswith("lightning_suite.")
    }
    assert set(DEFINITIONS) | {"sketch"} == ours  # users register their own


@pytest.mark.filterwarnings("ignore:features. adam_mean_abs has no optimizer state")
@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "beside one that makes G"])
@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_a_feature_equals_its_definition(
    name: str, together: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_CPU_BLOCK", block)
    # DONOD's difference of norms loses 10 digits by its definition, so it gets a large gradient
    some = layer(scale=1e2 if name == "weight_norm_change" else 1e-7)
    others = ["grad_l1"] if together and name != "grad_l1" else []

    found = compute_features(some, make_features([name, *others]))[name]

    expected = DEFINITIONS[name](gradient(some), some.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-18)


def test_the_first_adam_step_is_exact_where_entries_are_near_epsilon() -> None:
    some = layer(scale=1e-9)
    found = compute_features(some, make_features(["adam1_mean_abs", "unsaturation"]))
    weight = torch.nn.Parameter(some.weight.clone())
    for n, G in enumerate(gradient(some)):
        weight.data.copy_(some.weight)
        weight.grad = G.clone()
        torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.01).step()
        literal = (some.weight - weight.detach()).abs().mean()
        assert found["adam1_mean_abs"][n].item() == pytest.approx(literal.item(), rel=1e-9)
    assert found["unsaturation"].min() > 0.1


def test_the_rounded_first_step_is_the_optimizers_own_in_float32() -> None:
    """Bit for bit per entry; only the order in which entries are added is free."""
    some = layer(scale=1e-8, dtype=torch.float32)
    inputs = InputRows(some.x.double(), some.inputs.ranges)
    exact = LayerGradients("a", inputs, some.g.double(), some.weight.double())
    found = compute_features(some, make_features(["adam1_mean_abs", "adam1_mean_abs_rounded"]))
    truth = compute_features(exact, make_features(["adam1_mean_abs"]))["adam1_mean_abs"]
    weight = torch.nn.Parameter(some.weight.clone())
    for n, G in enumerate(gradient(some)):
        weight.data.copy_(some.weight)
        weight.grad = G.clone()
        torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.01).step()
        literal = (some.weight - weight.detach()).abs().double().mean().item()
        assert found["adam1_mean_abs_rounded"][n].item() == pytest.approx(literal, rel=1e-6)
        # the rounding that this feature is there for is not small
        assert abs(literal / truth[n].item() - 1) > 1e-5
        assert found["adam1_mean_abs"][n].item() == pytest.approx(truth[n].item(), rel=1e-6)


def test_a_saved_optimizer_state_gives_the_next_step() -> None:
    some = layer()
    weight = torch.nn.Parameter(some.weight.clone())
    optimizer = torch.optim.AdamW([weight], lr=3e-4, weight_decay=0.1, betas=(0.8, 0.95))
    for _ in range(3):
        weight.grad = 1e-7 * torch.randn_like(weight)
        optimizer.step()
    state = {k: v.clone() for k, v in optimizer.state[weight].items()}
    warm = some.__class__("a", some.inputs, some.g, weight.detach().clone())
    feature = AdamMeanAbs(
        lr=3e-4,
        beta1=0.8,
        beta2=0.95,
        weight_decay=0.1,
        states={"a": AdamState(state["exp_avg"], state["exp_avg_sq"], int(state["step"]))},
    )

    found = compute_features(warm, [feature])["adam_mean_abs"]

    for n, G in enumerate(gradient(some)):
        weight.data.copy_(warm.weight)
        optimizer.state[weight] = {k: v.clone() for k, v in state.items()}
        weight.grad = G.clone()
        optimizer.step()
        literal = (warm.weight - weight.detach()).abs().mean()
        assert found[n].item() == pytest.approx(literal.item(), rel=1e-9)
    assert feature.spec()["states"] != AdamMeanAbs().spec()["states"]


def test_sketches_keep_inner_products_on_average() -> None:
    some = layer(scale=1.0)
    G = gradient(some).flatten(1)
    products = [
        s @ s.mT
        for seed in range(400)
        for s in [compute_features(some, [Sketch(size=8, seed=seed)])["sketch"]]
    ]
    mean = torch.stack(products).mean(0)
    scale = G.norm(dim=1)[:, None] * G.norm(dim=1)
    assert ((mean - G @ G.mT) / scale.clamp_min(1e-9)).abs().max() < 0.1


def test_a_sketch_depends_on_seed_and_layer_and_on_nothing_else() -> None:
    some = layer()
    alone = compute_features(some, make_features(["sketch"]))["sketch"]
    beside = compute_features(some, make_features(["grad_norm", "sketch", "grad_max"]))["sketch"]
    renamed = LayerGradients("b", some.inputs, some.g, some.weight)
    assert torch.equal(alone, beside)
    assert not torch.equal(alone, compute_features(renamed, make_features(["sketch"]))["sketch"])
    assert alone.shape == (4, 64)


def test_float32_sums_are_right_to_seven_digits_over_a_million_entries() -> None:
    n_in, n_out = 1024, 1024
    x, g = torch.randn(40, n_in), 1e-6 * torch.randn(40, n_out)
    weight = 0.05 * torch.randn(n_out, n_in)
    names = ["adam1_mean_abs", "unsaturation", "grad_norm", "grad_l1"]
    low = LayerGradients("a", InputRows(x, ((0, 40),)), g, weight)
    high = LayerGradients("a", InputRows(x.double(), ((0, 40),)), g.double(), weight.double())
    for name in names:
        feature = make_features([name])
        low_value, high_value = compute_features(low, feature), compute_features(high, feature)
        # unsaturation reads the entries near 1e-8, which carry the rounding of the product
        rtol = 1e-3 if name == "unsaturation" else 3e-7
        torch.testing.assert_close(low_value[name], high_value[name], rtol=rtol, atol=0)


def test_norms_take_the_cheaper_way_and_both_agree() -> None:
    few, many = (
        LayerGradients(
            "a", InputRows(torch.randn(t, 64), ((0, t),)), torch.randn(t, 96), torch.randn(96, 64)
        )
        for t in (8, 150)
    )
    assert few.gram_is_cheaper
    assert not many.gram_is_cheaper
    for some in (few, many):
        by_rows = some.squared_norm.sqrt().double()
        whole = gradient(some).flatten(1).norm(dim=1).double()
        torch.testing.assert_close(by_rows, whole, rtol=1e-5, atol=0)


def test_a_warm_step_without_a_state_says_that_it_is_a_first_one() -> None:
    with pytest.warns(UserWarning, match="adam_mean_abs has no optimizer state"):
        make_features(["adam_mean_abs"])


def test_features_are_made_from_names_and_settings() -> None:
    made = make_features(["grad_norm", {"name": "sketch", "size": 4}], {"lr": 1.0})
    assert [f.spec() for f in made] == [
        {"name": "grad_norm"},
        {"name": "sketch", "size": 4, "seed": 0},
    ]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["grad_nrom"], "Did you mean 'grad_norm'"),
        ([{"name": "sketch", "sise": 4}], "sketch has no setting 'sise'. Did you mean 'size'"),
        (["grad_norm", "grad_norm"], "grad_norm is there twice"),
        ([], "none is given"),
    ],
)
def test_wrong_features_are_named(chosen: list[object], message: str) -> None:
    with pytest.raises(SuiteError, match=message.replace("?", r"\?")):
        make_features(chosen)


def test_all_wrong_features_are_named_at_once() -> None:
    with pytest.raises(PlacedError) as refused:
        make_features(["grad_nrom", "grad_max", {"name": ["grad_l1"]}])
    assert [place for place, _ in refused.value.places] == [(0,), (2,)]


@pytest.mark.parametrize("given", ["grad_nrm", "grad_norm"])
def test_a_name_alone_is_no_list_of_letters(given: str) -> None:
    with pytest.raises(
        SuiteError, match=r"features: expected a list, got .* Write \['grad_norm'\]"
    ):
        make_features(given)


def test_a_mapping_alone_is_no_list() -> None:
    with pytest.raises(SuiteError, match=r"Write \[\{'name': 'sketch'\}\]"):
        make_features({"name": "sketch"})
