r"""What can be asked of the gradient of one sample with respect to one weight matrix.

Notation: W the weight [O, I], G one sample's gradient of it, η a learning rate. A feature reads
``G`` in blocks (:meth:`Feature.of_block`), or only the rows that make it
(:meth:`Feature.of_rows`); the ones that can do both take the cheaper way.

==========================  ============================================================  =======
name                        value                                                         reads
==========================  ============================================================  =======
``adam1_mean_abs``          η · mean \|λW + G/(\|G\|+ε)\|: ResoFilter's score             entries
``adam1_mean_abs_rounded``  that step as the published script takes it, rounded          entries
``unsaturation``            mean ε/(\|G\|+ε): how far the same step is from sign(G)       entries
``sgd_mean_abs``            η · mean \|G + λW\|                                           entries
``adam_mean_abs``           mean change by an AdamW step from a saved optimizer state     entries
``grad_l1``                 Σ \|G\|                                                       entries
``grad_max``                max \|G\|                                                     entries
``grad_norm``               ‖G‖                                                           either
``wdotg``                   ⟨W, G⟩                                                        either
``weight_norm_change``      ‖W − ηG‖ − ‖W‖ (DONOD)                                        either
``step_norm``               ‖ηG‖ (DONOD)                                                  either
``nuclear_norm``            sum of the singular values of G                               rows
``effective_rank``          exponential of the entropy of the normalised singular values  rows
``sketch``                  P G Qᵀ with random P, Q: k × k numbers                        rows
==========================  ============================================================  =======
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import PlacedError, SuiteError, closest, did_you_mean
from lightning_suite.resofilter.feature import REGISTRY, Feature
from lightning_suite.resofilter.gradient_features import (
    EffectiveRank,
    GradL1,
    GradMax,
    GradNorm,
    NuclearNorm,
    Sketch,
    StepNorm,
    WDotG,
    WeightNormChange,
)
from lightning_suite.resofilter.rows import LayerGradients
from lightning_suite.resofilter.step_features import (
    Adam1MeanAbs,
    Adam1MeanAbsRounded,
    AdamMeanAbs,
    AdamState,
    SGDMeanAbs,
    Unsaturation,
)

__all__ = [
    "REGISTRY",
    "Adam1MeanAbs",
    "Adam1MeanAbsRounded",
    "AdamMeanAbs",
    "AdamState",
    "EffectiveRank",
    "Feature",
    "GradL1",
    "GradMax",
    "GradNorm",
    "NuclearNorm",
    "SGDMeanAbs",
    "Sketch",
    "StepNorm",
    "Unsaturation",
    "WDotG",
    "WeightNormChange",
    "compute_features",
    "make_features",
]


def make_features(
    chosen: Iterable[str | Mapping[str, Any] | Feature],
    common: Mapping[str, Any] | None = None,
    *,
    states_follow: bool = False,
) -> tuple[Feature, ...]:
    """Make features from names, or from mappings with a ``name`` and the feature's own settings.

    Args:
        chosen: For example ``["grad_norm", {"name": "sketch", "size": 16}]``.
        common: Settings for every feature that has them, such as ``{"lr": 1e-4}``.
        states_follow: Not to warn of ``adam_mean_abs`` without an optimizer state: the features
            are made again once it is known.

    Raises:
        SuiteError: It is no list, a name or setting is unknown, or a feature is there twice.
    """
    if isinstance(chosen, str | Mapping):
        near = closest(chosen, REGISTRY) or chosen
        raise SuiteError(f"features: expected a list, got {chosen!r}. Write [{near!r}].")
    made, wrong = [], []
    for number, one in enumerate(chosen):
        try:
            made.append(_make(one, common or {}))
        except SuiteError as err:
            wrong.append(((number,), str(err)))
    if wrong:
        raise PlacedError("features", wrong)
    names = [feature.name for feature in made]
    if not made:
        raise SuiteError(f"features: none is given. Known: {', '.join(REGISTRY)}.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise SuiteError(f"features: {', '.join(sorted(twice))} is there twice.")
    cold = any(isinstance(feature, AdamMeanAbs) and not feature.states for feature in made)
    if cold and not states_follow:
        warnings.warn(
            "features: adam_mean_abs has no optimizer state, so it is that of a first step, as "
            "adam1_mean_abs is. `lightning-suite score --ckpt_path` reads it from a checkpoint; "
            "from Python: AdamMeanAbs(states={name: AdamState(...)}).",
            stacklevel=2,
        )
    return tuple(made)


def compute_features(layer: LayerGradients, features: Sequence[Feature]) -> dict[str, Tensor]:
    """Compute features of one layer's gradients.

    Args:
        layer: The gradients.
        features: What to compute.

    Returns:
        name -> [N] or [N, k], float64.
    """
    makes_gradient = any(not feature.reads_rows for feature in features)
    pays_anyway = not layer.gram_is_cheaper
    by_entries = [f for f in features if f.reads_entries and (makes_gradient or pays_anyway)]
    values = _read_entries(layer, by_entries) if by_entries else {}
    for feature in features:
        if feature.name not in values:
            values[feature.name] = feature.of_rows(layer).double()
    return {feature.name: values[feature.name] for feature in features}


def _read_entries(layer: LayerGradients, features: Sequence[Feature]) -> dict[str, Tensor]:
    totals = {
        feature.name: layer.x.new_zeros(layer.n_samples, dtype=torch.float64)
        for feature in features
    }
    for samples, block in layer.blocks():
        for feature in features:
            total = totals[feature.name][samples]
            part = feature.of_block(block, layer)
            if feature.takes_maximum:
                torch.maximum(total, part.double(), out=total)
            else:
                total.add_(part)
    return {feature.name: feature.finish(totals[feature.name], layer) for feature in features}


def _make(chosen: str | Mapping[str, Any] | Feature, common: Mapping[str, Any]) -> Feature:
    if isinstance(chosen, Feature):
        return chosen
    settings = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in REGISTRY:
        raise SuiteError(
            f"{name!r} is unknown.{did_you_mean(str(name), REGISTRY)} Known: {', '.join(REGISTRY)}."
        )
    cls = REGISTRY[name]
    known = {f.name for f in fields(cls)}
    if unknown := set(settings) - known:
        key = min(unknown, key=str)
        raise SuiteError(
            f"{name} has no setting {key!r}.{did_you_mean(key, known)} "
            f"It has: {', '.join(sorted(known)) or 'none'}."
        )
    return cls(**{k: v for k, v in common.items() if k in known} | settings)
