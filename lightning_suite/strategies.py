"""What a trainer's strategy does with the parameters: keep them whole, shard or flatten them."""

from __future__ import annotations

from lightning_suite.errors import SuiteError

# By name, so that both Lightning packages and absent ones are recognised.
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}


def refuse_sharded_parameters(
    strategy: object, reason: str, advice: str = "Use DDP or one device."
) -> None:
    """Refuse a strategy under which a process holds only a part of each parameter.

    Args:
        strategy: ``trainer.strategy``.
        reason: Who needs whole parameters, for what: ``"MyCallback reads whole layers"``.
        advice: What to do instead.

    Raises:
        SuiteError: It is such a strategy.
    """
    for cls in type(strategy).__mro__:
        if cls.__name__ in _SHARDING:
            raise SuiteError(
                f"{reason}, and {cls.__name__} leaves each process a shard of them. {advice}"
            )


def refuse_flattened_parameters(strategy: object) -> None:
    """Refuse a strategy that makes one tensor of parameters with different learning rates.

    Args:
        strategy: ``trainer.strategy``.

    Raises:
        SuiteError: It is such a strategy.
    """
    name = type(strategy).__name__
    flattened_fsdp = (
        name.startswith("FSDP") and getattr(strategy, "kwargs", {}).get("use_orig_params") is False
    )
    if "DeepSpeed" in name or flattened_fsdp:
        raise SuiteError(
            f"{name} flattens the parameters of all roles into one tensor, so that they cannot "
            "have learning rates of their own. Use DDP, or FSDPStrategy(use_orig_params=True)."
        )
