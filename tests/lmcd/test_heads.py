"""Every head computes its published formula, in logits, and keeps its promises."""

from __future__ import annotations

from functools import partial
from typing import Any

import lmcd_reference as reference
import pytest
import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.heads.base import Head, between, bounded
from lightning_suite.lmcd.heads.neural import KaNCD
from lightning_suite.lmcd.heads.registry import HEADS, make_head

H, K, N = 6, 3, 40
FORMULAS: dict[str, Any] = {
    "irt": lambda w, e, q, d, kc: reference.irt(w, 3, e, q, d),
    **{
        f"{n}pl": partial(lambda n, w, e, q, d, kc: reference.irt(w, n, e, q, d), n)
        for n in (1, 2, 3, 4)
    },
    "mirt": lambda w, e, q, d, kc: reference.mirt(w, e, q, d),
    "ncdm": reference.ncdm,
    "kancd": reference.kancd,
    "dina": reference.dina,
}


def head(name: str) -> Head:
    torch.manual_seed(0)
    made = make_head(name, H, K, kc_vectors=torch.randn(K, 5)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter))
        if isinstance(made, KaNCD):  # means over 16 numbers are small, and a second input is 1
            made.theta_weight.mul_(4)
            made.difficulty_weight.mul_(4)
            for layer in (made.network[0], made.network[3]):
                layer.weight.mul_(0.5)
                layer.bias.zero_()
            made.network[6].bias.sub_(made.logit(*states()).median())
    return made


def states() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    e, q, d = torch.randn(3, N, H, generator=generator)
    kc = (torch.rand(N, K, generator=generator) < 0.5).float()
    kc[:, 0] = 1  # no exercise without a KC
    return e, q, d, kc


@pytest.mark.parametrize("name", HEADS)
def test_a_head_computes_its_formula(name: str) -> None:
    made = head(name)
    inputs = states()
    weights = {key: value.tolist() for key, value in made.state_dict().items()}
    truth = [
        FORMULAS[name](weights, *row) for row in zip(*(x.tolist() for x in inputs), strict=True)
    ]
    got = made.logit(*inputs)
    assert got.dtype == torch.float32
    assert got.sigmoid().tolist() == pytest.approx(truth, abs=2e-6)
    assert min(truth) < 0.5 < max(truth)


@pytest.mark.parametrize("name", HEADS)
def test_ability_is_of_the_student_alone_and_the_rest_of_the_exercise(name: str) -> None:
    made = head(name)
    e, q, d, _ = states()
    ability = made.ability(e)
    assert ability.shape == (N, made.num_abilities)
    proficiency = made.proficiency(e)
    assert proficiency.shape == ability.shape
    if made.per_kc:
        assert ((proficiency >= 0) & (proficiency <= 1)).all()
    parameters = made.item_parameters(q, d)
    other = made.item_parameters(q, d.flip(0))
    for key, value in parameters.items():
        assert value.shape in ((N,), (N, made.num_abilities))
        if key != "difficulty":
            assert torch.equal(value, other[key])


@pytest.mark.parametrize("name", HEADS)
def test_more_ability_never_lowers_the_chance(name: str) -> None:
    made = head(name)
    e, q, d, kc = states()
    ability = made.ability(e)
    for dimension in range(made.num_abilities):
        more = ability.clone()
        more[:, dimension] += torch.linspace(0.1, 3, N)
        rise = made.interact(more, q, d, kc) - made.interact(ability, q, d, kc)
        assert (rise >= -1e-6).all()
        assert rise.max() > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_extreme_states_leave_logits_and_gradients_finite(name: str) -> None:
    made = head(name)
    inputs = [100 * x for x in states()[:3]]
    for x in inputs:
        x.requires_grad_()
    logit = made.logit(*inputs, states()[3])
    torch.nn.functional.binary_cross_entropy_with_logits(logit, (logit < 0).float()).backward()
    assert logit.isfinite().all()
    assert all(x.grad is None or x.grad.isfinite().all() for x in inputs)
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


def test_logits_with_guessing_are_exact_where_probabilities_are_not() -> None:
    guess = torch.tensor([-30.0, -30.0, 0.0, 3.0], dtype=torch.float64)
    z = torch.tensor([-20.0, 20.0, -40.0, 2.0], dtype=torch.float64)
    c = guess.sigmoid()
    p = c + (1 - c) * z.sigmoid()
    truth = p.log() - ((1 - c) * (-z).sigmoid()).log()
    torch.testing.assert_close(between(guess, z), truth)
    torch.testing.assert_close(bounded(guess, z.sigmoid().log())[[0, 2, 3]], truth[[0, 2, 3]])
    assert between(guess.float(), 50 * z.float()).isfinite().all()


def test_the_prior_is_that_of_a_standard_normal() -> None:
    made = head("mirt")
    e = states()[0]
    truth = -torch.distributions.Normal(0, 1).log_prob(made.ability(e)).sum(1).mean()
    constant = made.num_abilities * 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(made.prior(e), truth - constant)


def test_kancd_treats_kcs_by_their_texts_and_not_by_their_place() -> None:
    made = head("kancd")
    e, q, d, kc = states()
    before = made.logit(e, q, d, kc)
    order = torch.tensor([2, 0, 1])
    made.kc_vectors = made.kc_vectors[order]
    torch.testing.assert_close(made.logit(e, q, d, kc[:, order]), before)


def test_kancd_gives_an_unseen_kc_the_ability_that_all_share() -> None:
    made = head("kancd")
    e = states()[0]
    made.kc_vectors = torch.zeros_like(
        made.kc_vectors
    )  # names that say nothing beyond the mean of all names
    ability = made.ability(e)
    torch.testing.assert_close(ability, ability[:, :1].expand_as(ability))
    assert ability[:, 0].std() > 1e-3  # and it still tells students apart


def test_kancd_asks_for_all_kcs_where_an_exercise_names_none() -> None:
    made = head("kancd")
    e, q, d, kc = states()
    none = made.logit(e, q, d, torch.zeros_like(kc))
    assert none.std() > 1e-3  # not one chance for every student and text
    torch.testing.assert_close(none, made.logit(e, q, d, torch.ones_like(kc)))


def test_dina_needs_every_kc() -> None:
    made = head("dina")
    _, q, d, _ = states()
    mastered = torch.full((N, K), 30.0)
    kc = torch.ones(N, K)
    everything = made.interact(mastered, q, d, kc).sigmoid()
    lacking = mastered.clone()
    lacking[:, 1] = -30.0
    guessing = made.item_parameters(q, d)["guessing"]
    slipping = made.item_parameters(q, d)["slipping"]
    torch.testing.assert_close(made.interact(lacking, q, d, kc).sigmoid(), guessing)
    torch.testing.assert_close(everything, 1 - slipping, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["3pl", "4pl", "mirt", "dina"])
def test_guessing_and_slipping_are_the_chances_without_and_with_every_ability(name: str) -> None:
    made = head(name)
    _, q, d, kc = states()
    said = made.item_parameters(q, d)
    without, with_all = (
        made.interact(torch.full((N, made.num_abilities), level), q, d, kc).sigmoid()
        for level in (-1e6, 1e6)
    )
    torch.testing.assert_close(without, said["guessing"])
    slipping = said.get("slipping", torch.zeros(N))
    torch.testing.assert_close(1 - with_all, slipping, atol=2e-6, rtol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SuiteError, match="head='3lp' is not known. Did you mean '3pl'"):
        make_head("3lp", H, K)
    with pytest.raises(SuiteError, match="head mirt has no option 'dims'. Did you mean 'dim'"):
        make_head("mirt", H, K, options={"dims": 3})
    with pytest.raises(SuiteError, match="parameters is 5; choose 1, 2, 3 or 4"):
        make_head("irt", H, K, options={"parameters": 5})
    with pytest.raises(SuiteError, match="3 KCs need as many text vectors; none are given"):
        make_head("kancd", H, K)
