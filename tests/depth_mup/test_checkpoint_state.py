"""A run goes on with the correction that it began with, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets_with_roles import mlp
from torch.optim import SGD

from lightning_suite.depth_mup.checkpoint_state import (
    check_same_correction,
    correction_state,
    mark_states,
    unmark_states,
)
from lightning_suite.depth_mup.correction import plan_correction
from lightning_suite.errors import SuiteError


def state(rule: Any = "nfd", base_depth: int = 2, **options: Any) -> dict[str, Any]:
    net, _ = mlp(rule="sp", base_depth=base_depth)
    return correction_state(plan_correction(net, rule, base_depth), **options)


def test_the_state_is_plain_and_names_everything_that_a_factor_depends_on() -> None:
    assert state(rules=["nfd"], modes=["groups"], decay_vectors=False) == {
        "version": 1,
        "rule": "nfd",
        "p": 0.5,
        "base_depth": 2,
        "base_width": None,
        "depth": 4,
        "width": None,
        "residual_multiplier": 2**-0.5,
        "readout_multiplier": 1.0,
        "decay_vectors": False,
        "apply": ["groups"],
    }


def test_auto_is_saved_as_the_rule_that_all_optimizers_have() -> None:
    assert state("auto", rules=["depth_mup", "depth_mup"])["rule"] == "depth_mup"
    for mixed in ([], ["depth_mup", "nfd"]):
        saved = state("auto", rules=mixed)
        assert (saved["rule"], saved["p"]) == ("auto", None)


def test_a_difference_is_named_with_both_values() -> None:
    saved = state(rules=["nfd"], modes=["groups"])
    check_same_correction(saved, dict(saved), has_optimizers=True)
    now = state(base_depth=1, rules=["nfd"], modes=["step"])
    with pytest.raises(SuiteError) as info:
        check_same_correction(saved, now, has_optimizers=True)
    assert "base_depth: 2 in the checkpoint, 1 now" in str(info.value)
    assert "apply: ['groups'] in the checkpoint, ['step'] now" in str(info.value)
    assert "decay_vectors" not in str(info.value)


def test_what_depends_on_the_optimizer_is_compared_once_there_is_one() -> None:
    saved = state(rules=["nfd"], modes=["groups"])
    check_same_correction(saved, state("auto"), has_optimizers=False)
    with pytest.raises(SuiteError, match="apply"):
        check_same_correction(saved, state("auto"), has_optimizers=True)
    with pytest.raises(SuiteError, match="rule: 'nfd' in the checkpoint, 'mup' now"):
        check_same_correction(saved, state("mup"), has_optimizers=False)


def test_a_state_from_before_there_were_optimizers_is_compared_for_what_it_knew() -> None:
    now = state("auto", rules=["depth_mup"], modes=["groups"])
    check_same_correction(state("auto"), now, has_optimizers=True)
    with pytest.raises(SuiteError, match="rule: 'nfd' in the checkpoint, 'depth_mup' now"):
        check_same_correction(state("nfd"), now, has_optimizers=True)
    with pytest.raises(SuiteError, match="base_depth: 1 in the checkpoint, 2 now"):
        check_same_correction(state("auto", base_depth=1), now, has_optimizers=True)


def test_a_marked_state_is_refused_by_an_optimizer_that_does_not_expect_it() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    first, second = SGD([parameter], lr=0.1), SGD([parameter], lr=0.1)
    states = [first.state_dict(), second.state_dict()]
    mark_states(states, ["step", "groups"])
    second.load_state_dict(states[1])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        first.load_state_dict(states[0])
    unmark_states(states)
    first.load_state_dict(states[0])
    assert states[0] == first.state_dict()


def test_optimizers_without_a_known_mode_stay_unmarked() -> None:
    states = [{"param_groups": [{"params": [0]}]}]
    mark_states(states, [])
    assert states == [{"param_groups": [{"params": [0]}]}]
