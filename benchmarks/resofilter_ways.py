"""Ways to the same numbers: per-sample features of a causal LM by the suite and by its peers.

Every way is a context manager ``way(model, task)`` that yields a function from a batch to the
features [N, targets] (None where it cannot). What it sets up is not part of the measured time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.language_probe import CausalLMProbe
from lightning_suite.resofilter.recorder import probing
from lightning_suite.resofilter.targets import Target, find_targets
from lightning_suite.resofilter.token_batch import TokenBatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.reference.resofilter_reference import literal_features

Batch = dict[str, Any]
Run = Callable[[Batch], Tensor | None]
LR, DECAY, EPS = 1e-5, 0.01, 1e-8


@dataclass(frozen=True)
class Task:
    """What is to be computed.

    Attributes:
        feature: Name of the feature.
        modules: As in ``find_targets``.
        layers: Likewise.
    """

    feature: str
    modules: str
    layers: str

    def targets(self, model: nn.Module) -> tuple[Target, ...]:
        """Return the watched weights in the order of the model."""
        return find_targets(model, self.modules, self.layers, include_frozen=True).found

    def reduce(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Return the feature of materialised per-sample gradients [N, O, I]: [N]."""
        gradient = gradient.reshape(len(gradient), *weight.shape)
        if self.feature == "grad_norm":
            return gradient.flatten(1).square().sum(1).sqrt()
        step = gradient / (gradient.abs() + EPS) + DECAY * weight
        return LR * step.abs().flatten(1).mean(1)


@contextmanager
def limit(model: nn.Module, task: Task) -> Iterator[Run]:
    """One batched forward pass and the backward pass to the lowest target; no features.

    With the suite's own output layer (logits at label positions only, closed-form gradient).
    """

    def differentiate(_module: nn.Module, _args: Any, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()

    handles = [t.module.register_forward_hook(differentiate) for t in task.targets(model)]
    with probing(model):
        probe = CausalLMProbe(model, [], ())

        def run(batch: Batch) -> None:
            tokens = TokenBatch.from_mapping(batch, torch.device("cpu"))
            with torch.enable_grad():
                probe._losses(tokens, backward=True)

        try:
            yield run
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def ours(model: nn.Module, task: Task) -> Iterator[Run]:
    """The probe of ``lightning-suite score``."""
    targets = task.targets(model)
    columns = [f"{target.name}.{task.feature}" for target in targets]
    with CausalLMProbe(model, targets, make_features([task.feature])) as probe:
        ids = torch.zeros(2, 2, dtype=torch.long)
        # what is checked once and not in every batch
        probe.score_batch({"ids": ["0", "1"], "input_ids": ids, "labels": ids})

        def run(batch: Batch) -> Tensor:
            rows = probe.score_batch(batch)
            return torch.stack([rows[column] for column in columns], dim=1)

        yield run


@contextmanager
def literal(model: nn.Module, task: Task) -> Iterator[Run]:
    """The published loop: one sample, a fresh AdamW over all weights, one step, restore."""
    names = [f"{target.name}.weight" for target in task.targets(model)]

    def loss_of(ids: Tensor, labels: Tensor) -> Callable[[nn.Module], Tensor]:
        return lambda model: F.cross_entropy(
            model(input_ids=ids[None], use_cache=False).logits[0, :-1], labels[1:]
        )

    def run(batch: Batch) -> Tensor:
        lengths = batch["attention_mask"].sum(1).tolist()
        each = zip(batch["input_ids"], batch["labels"], lengths, strict=True)
        return literal_features(model, [loss_of(i[:n], w[:n]) for i, w, n in each], names)

    with _trainable(model, None):
        yield run


@contextmanager
def functional(model: nn.Module, task: Task) -> Iterator[Run]:
    """``torch.func``: vmap of grad with respect to the watched weights."""
    targets = task.targets(model)
    weights = {f"{t.name}.weight": t.weight for t in targets}

    def loss(chosen: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        output = functional_call(model, chosen, (), {"input_ids": ids[None], "use_cache": False})
        return F.cross_entropy(output.logits[0, :-1], labels[1:])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))

    def run(batch: Batch) -> Tensor:
        gradients = per_sample(weights, batch["input_ids"], batch["labels"])
        return torch.stack([task.reduce(gradients[n], w) for n, w in weights.items()], dim=1)

    with _trainable(model, set()):
        yield run


@contextmanager
def dattri(model: nn.Module, task: Task) -> Iterator[Run]:
    """Dattri's ``AttributionTask.get_grad_loss_func``; watched weights as its ``layer_name``."""
    from dattri.task import AttributionTask  # noqa: PLC0415

    targets = task.targets(model)
    names = [f"{target.name}.weight" for target in targets]

    def loss(chosen: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = data
        output = functional_call(model, chosen, (), {"input_ids": ids[None], "use_cache": False})
        return F.cross_entropy(output.logits[0, :-1], labels[1:])

    with _trainable(model, set(names)):  # it sees only what requires a gradient
        task_of = AttributionTask(loss, model, model.state_dict())
        function = task_of.get_grad_loss_func((None, 0), layer_name=names, ckpt_idx=0)
        parameters, _ = task_of.get_param(layer_name=names, ckpt_idx=0, layer_split=False)

        def run(batch: Batch) -> Tensor:
            flat = function(parameters, (batch["input_ids"], batch["labels"]))
            parts = flat.split([t.weight.numel() for t in targets], dim=1)
            return torch.stack(
                [task.reduce(p, t.weight) for p, t in zip(parts, targets, strict=True)], dim=1
            )

        yield run


@contextmanager
def opacus(model: nn.Module, task: Task) -> Iterator[Run]:
    """Opacus' ``GradSampleModule``: per-sample gradients of the watched weights, then reduced.

    Its hooks work in training mode only; the models here have no dropout.
    """
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415

    targets = task.targets(model)
    with _trainable(model, {f"{t.name}.weight" for t in targets}):
        wrapped = GradSampleModule(model, strict=False, loss_reduction="sum").train()

        def run(batch: Batch) -> Tensor:
            label_losses(model, wrapped, batch).sum().backward()
            weights: list[Any] = [t.module.weight for t in targets]
            found = [task.reduce(w.grad_sample, w.detach()) for w in weights]
            for weight in weights:
                weight.grad = weight.grad_sample = None
            return torch.stack(found, dim=1)

        try:
            yield run
        finally:
            wrapped.remove_hooks()


@contextmanager
def opacus_ghost(model: nn.Module, task: Task) -> Iterator[Run]:
    """Opacus' ghost norms: from inner products of the rows, always."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415

    targets = task.targets(model)
    with _trainable(model, {f"{t.name}.weight" for t in targets}):
        wrapped = GradSampleModuleFastGradientClipping(
            model, strict=False, loss_reduction="sum", use_ghost_clipping=True, max_grad_norm=1.0
        ).train()

        def run(batch: Batch) -> Tensor:
            label_losses(model, wrapped, batch).sum().backward()
            weights: list[Any] = [t.module.weight for t in targets]
            found = torch.stack([w._norm_sample for w in weights], dim=1)
            for weight in weights:
                weight.grad = weight._norm_sample = None
            return found

        try:
            yield run
        finally:
            wrapped.remove_hooks()


@contextmanager
def bergson(model: nn.Module, task: Task) -> Iterator[Run]:
    """Bergson's hooks; each module's per-sample gradients are reduced and dropped at once."""
    from bergson.collector.collector import HookCollectorBase  # noqa: PLC0415

    targets = {t.name: t for t in task.targets(model)}
    found: dict[str, Tensor] = {}

    class Collector(HookCollectorBase):  # type: ignore[misc]
        def setup(self) -> None:
            pass

        teardown = process_batch = setup

        def backward_hook(self, module: Any, g: Tensor) -> None:
            gradient = self._compute_gradient(module, g)
            found[module._name] = task.reduce(gradient, targets[module._name].weight)

    with _trainable(model, {f"{name}.weight" for name in targets}):
        collector = Collector(model, target_modules=set(targets))

        def run(batch: Batch) -> Tensor:
            with collector:
                label_losses(model, model, batch).sum().backward()
            model.zero_grad()
            return torch.stack([found[name] for name in targets], dim=1)

        yield run


WAYS: dict[str, Callable[..., Any]] = {
    "limit": limit,
    "ours": ours,
    "literal loop": literal,
    "torch.func": functional,
    "opacus": opacus,
    "opacus ghost": opacus_ghost,
    "bergson": bergson,
    "dattri": dattri,
}


def label_losses(model: Any, wrapped: nn.Module, batch: Batch) -> Tensor:
    """Return each sample's loss [N] with logits at label positions only, as the suite makes them.

    Samples are padded on the right, so that no position sees padding.
    """
    where = torch.zeros_like(batch["labels"], dtype=torch.bool)
    where[:, :-1] = batch["labels"][:, 1:] >= 0

    def rows_only(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][where][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(rows_only)
    try:
        logits = wrapped(input_ids=batch["input_ids"], use_cache=False).logits[0]
    finally:
        handle.remove()
    nll = F.cross_entropy(logits, batch["labels"].roll(-1, 1)[where], reduction="none")
    owners = where.nonzero()[:, 0]
    sums = nll.new_zeros(len(where)).index_add(0, owners, nll)
    return sums / where.sum(1)


@contextmanager
def _trainable(model: nn.Module, names: set[str] | None) -> Iterator[None]:
    """Evaluation mode; only the named parameters (None: all) require a gradient."""
    with probing(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(names is None or name in names)
        try:
            yield
        finally:
            for parameter in model.parameters():
                parameter.grad = None
