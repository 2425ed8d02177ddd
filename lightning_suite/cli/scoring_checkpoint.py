"""``score --ckpt_path``: the weights of a checkpoint, and its optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule

from lightning_suite.cli.checkpoints import read_checkpoint
from lightning_suite.cli.configured import optimizers_in
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.optimizer_states import adam_states
from lightning_suite.resofilter.step_features import AdamMeanAbs
from lightning_suite.resofilter.targets import Target

_SHOWN = 3  # lines of torch's list of keys that do not fit


def load_weights(module: LightningModule, path: str) -> dict[str, Any]:
    """Load the weights of a checkpoint of ``fit`` into ``module`` and return the checkpoint.

    Raises:
        SuiteError: It is not a file of plain tensors, or its weights are another model's.
    """
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise SuiteError(
            f"--ckpt_path {path}: score needs the file of a checkpoint that `fit` wrote, with the "
            "module's weights in `state_dict`."
        )
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as err:
        lines = str(err).splitlines()[1 : 1 + _SHOWN]
        raise SuiteError(
            f"--ckpt_path {path} is not a checkpoint of this {type(module).__name__}. Give the "
            "`model` section of the run that wrote it (its config.yaml).\n" + "\n".join(lines)
        ) from err
    return checkpoint


def with_optimizer_state(
    features: Sequence[str | Mapping[str, Any]],
    module: LightningModule,
    checkpoint: Mapping[str, Any] | None,
    targets: Sequence[Target],
) -> Sequence[str | Mapping[str, Any]]:
    """Return the features, ``adam_mean_abs`` with the checkpoint's optimizer state and settings.

    Settings that are given stay; the learning rate, a factor of the score, is always the feature's.

    Args:
        features: As given to ``score``.
        module: With the checkpoint's weights, before anything is frozen.
        checkpoint: Of ``fit``; None leaves the features as they are.
        targets: What is watched.

    Raises:
        SuiteError: The checkpoint has no such state, or the module's optimizer is another.
    """
    if checkpoint is None or AdamMeanAbs.name not in map(_name, features):
        return features
    saved = checkpoint.get("optimizer_states") or []
    if not saved:
        raise SuiteError(
            "--ckpt_path: the checkpoint has no optimizer state (`save_weights_only`), which "
            "adam_mean_abs needs. Leave the feature out, or give a full checkpoint."
        )
    try:
        optimizers = list(optimizers_in(module.configure_optimizers()))
    except (RuntimeError, AttributeError) as err:
        raise SuiteError(
            f"adam_mean_abs: {type(module).__name__}.configure_optimizers needs a trainer ({err}), "
            "and score has none. Give the optimizer without its scheduler."
        ) from err
    states, settings = adam_states(optimizers, saved, targets)
    return [
        {**settings, **({} if isinstance(feature, str) else feature)}
        | {"name": AdamMeanAbs.name, "states": states}
        if _name(feature) == AdamMeanAbs.name
        else feature
        for feature in features
    ]


def _name(feature: str | Mapping[str, Any]) -> Any:
    return feature if isinstance(feature, str) else feature.get("name")
