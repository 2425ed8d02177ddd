"""Is this the model that a bank was made for?

An expert is a correction to one linear map as it was when the expert was trained, so a bank on
another model answers nonsense. Compared are, cheaply, the sizes of the model, the edited map and a
sample of the token embedding. Weights below and above the map are not read: a model that differs
in those alone is not found out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.rank_zero import rank_zero_warn
from lightning_suite.scen.bank_state import BaseIdentity
from lightning_suite.scen.layer_choice import causal_lm, find_layer, layer_shape, unadapted
from lightning_suite.scen.surroundings import own_precision

_CONFIG_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
_EMBEDDED_TOKENS = 64
_PROBES, _READ = 4, 32
# Weights are compared as they are, and as they come out of these: which are the same is a matter of
# equality then, and not of a tolerance that a light fine-tuning would pass.
_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Sketches that lie no further apart may be of one model twice rounded, or a little trained.
_NEAR = 0.01


@torch.no_grad()
@own_precision()
def identify(
    model: nn.Module, layer: str | int | None = None, *, precisions: bool = True
) -> BaseIdentity:
    """Return what tells ``model`` from others.

    Args:
        model: A Hugging Face causal LM, or what holds one; adapters in it do not count.
        layer: As for :func:`find_layer`.
        precisions: Also hash the weights as they are in other precisions.
    """
    lm = causal_lm(model)
    path, module = find_layer(lm, layer)
    d_in, d_out = layer_shape(path, module)
    base, rows = unadapted(module), _embedded(lm)
    stored = {name: t for name, t in sorted(base.state_dict().items()) if isinstance(t, Tensor)}
    stored["embedding"] = rows
    waves = torch.arange(1, _PROBES + 1, dtype=torch.float64)
    probes = torch.arange(d_in, dtype=torch.float64).outer(waves).sin().T
    weight = next(iter(base.state_dict().values()))
    floating = weight.dtype if weight.is_floating_point() else rows.dtype
    # `forward`, not a call: hooks, ours among them, see nothing of it.
    answers = base.forward(probes[:, None].to(weight.device, floating))[:, 0, :_READ]
    sketch = torch.cat([answers.double().flatten().cpu(), rows[:, :2].double().flatten().cpu()])
    return BaseIdentity(
        name=str(getattr(lm.config, "_name_or_path", "") or type(lm).__name__),
        layer=path,
        d_in=d_in,
        d_out=d_out,
        config={key: getattr(lm.config, key, None) for key in _CONFIG_KEYS},
        sha256=_hash(stored),
        sketch=tuple(float(f"{value:.6g}") for value in sketch.tolist()),
        rounded={n: _hash(stored, dtype) for n, dtype in _PRECISIONS.items() if precisions},
    )


def check_base(bank: BaseIdentity, model: nn.Module, *, allow_other_weights: bool = False) -> None:
    """Refuse a model that a bank was not made for.

    The same weights in another precision pass: they are equal once rounded to the coarser one.
    Other weights are refused, however near, unless the user asks for them; then a warning says how
    far they are.

    Args:
        bank: Identity of the model that the bank was made on.
        model: The model that it shall be used on.
        allow_other_weights: Accept other weights in a model of the same sizes, such as a quantised
            copy. What the experts then do is for you to measure.

    Raises:
        SuiteError: It is another model.
    """
    found = identify(model, bank.layer, precisions=False)
    for what, ours, theirs in (
        ("sizes", bank.config, found.config),
        (f"shape of {bank.layer}", (bank.d_in, bank.d_out), (found.d_in, found.d_out)),
    ):
        if ours != theirs:
            raise SuiteError(
                f"the bank was made for another model, {bank.name}: its {what} are {ours}, here "
                f"they are {theirs} ({found.name})."
            )
    if found.sha256 == bank.sha256:
        return
    if set(identify(model, bank.layer).rounded.items()) & set(bank.rounded.items()):
        return
    apart = _distance(bank.sketch, found.sketch)
    if not allow_other_weights:
        may_be = (
            "that model after a fine-tuning, or in another precision"
            if apart <= _NEAR
            else "a quantised copy of that model"
        )
        raise SuiteError(
            f"the bank was made for {bank.name}, and the weights here ({found.name}) differ: what "
            f"{bank.layer} makes of fixed inputs is {apart:.1%} apart. If it is {may_be}, set "
            "allow_other_weights (of `bank`: --allow-other-weights) and measure the answers."
        )
    rank_zero_warn(
        f"the bank was made for {bank.name}, and the weights here ({found.name}) differ: what "
        f"{bank.layer} makes of fixed inputs is {apart:.1%} apart. allow_other_weights is set; "
        "measure the answers.",
        category=UserWarning,
    )


def _distance(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    a, b = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    parts = [slice(_PROBES * _READ), slice(_PROBES * _READ, None)]
    if a.shape != b.shape:
        return float("inf")
    return max(float((a[p] - b[p]).norm() / a[p].norm().clamp_min(1e-30)) for p in parts)


def _embedded(lm: Any) -> Tensor:
    """Return the embedding of tokens spread over the vocabulary, [64, H]."""
    weight: Tensor = lm.get_input_embeddings().weight
    # Not in torch's default type, which a Trainer in half precision changes; and float32, as the
    # tokens of banks that are there were chosen in it.
    tokens = torch.linspace(0, len(weight) - 1, _EMBEDDED_TOKENS, dtype=torch.float32).long()
    return weight[tokens.to(weight.device)]


def _hash(stored: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """Return a hash of names, types, shapes and numbers, floating ones in ``dtype`` if given."""
    digest: Any = hashlib.sha256()
    for name, tensor in stored.items():
        values = tensor.detach()
        if dtype is not None and values.is_floating_point():
            values = values.to(dtype)
        values = values.cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return str(digest.hexdigest())
