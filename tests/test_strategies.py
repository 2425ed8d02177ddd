"""Strategies that take parameters apart are recognised by name, those that keep them are let by."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from lightning_suite.errors import SuiteError
from lightning_suite.strategies import refuse_flattened_parameters, refuse_sharded_parameters


def stand_in(name: str, **options: Any) -> Any:
    """A strategy of a package that need not be installed."""
    strategy = type(name, (), {})()
    strategy.kwargs = options
    return strategy


def test_one_device_and_ddp_keep_parameters_whole() -> None:
    for strategy in (SingleDeviceStrategy(), DDPStrategy()):
        refuse_sharded_parameters(strategy, "X reads whole layers")
        refuse_flattened_parameters(strategy)


@pytest.mark.parametrize("name", ["DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy"])
def test_sharding_is_refused_with_the_reason_and_the_way_out(name: str) -> None:
    with pytest.raises(SuiteError, match=f"X reads whole layers, and {name} leaves .* Use DDP"):
        refuse_sharded_parameters(stand_in(name), "X reads whole layers")


def test_a_strategy_that_is_derived_from_a_sharding_one_is_refused() -> None:
    class Mine(FSDPStrategy):
        pass

    with pytest.raises(SuiteError, match="FSDPStrategy leaves each process a shard"):
        refuse_sharded_parameters(Mine.__new__(Mine), "X reads whole layers")


def test_only_what_flattens_parameters_keeps_roles_from_having_their_rates() -> None:
    for strategy in (
        stand_in("DeepSpeedStrategy"),
        stand_in("FSDPStrategy", use_orig_params=False),
    ):
        with pytest.raises(SuiteError, match=f"{type(strategy).__name__} flattens the parameters"):
            refuse_flattened_parameters(strategy)
    refuse_flattened_parameters(stand_in("FSDPStrategy", use_orig_params=True))
    refuse_flattened_parameters(stand_in("FSDPStrategy"))  # Lightning's default keeps them
