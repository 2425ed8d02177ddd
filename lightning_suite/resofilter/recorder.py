"""Watch a model's forward and backward passes and turn them into per-sample features.

A watched layer's output passes through an identity whose backward sees the output's gradient
and the layer's input, computes the features at once and lets the gradient go on. Nothing is kept
for later, activation checkpointing keeps its savings, and no parameter gradient is needed: where
all parameters are frozen, the backward pass ends at the lowest watched layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_suite.compilation import is_compiled
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.batch import BatchInFlight, Observer, Pair, no_gradients
from lightning_suite.resofilter.columns import on_cpu
from lightning_suite.resofilter.features import Feature, compute_features
from lightning_suite.resofilter.targets import Target

_SHOWN = 8  # layers named in a warning


class FeatureRecorder:
    """Computes features of every sample of a batch while the batch's loss is differentiated.

    The loss must be a sum over samples, each sample's own loss times a known factor (see
    :meth:`start`), and no layer may mix samples (batch normalisation must be in evaluation mode).

    Supports accumulation, AMP, activation checkpointing (not reentrant, if the watched layer is
    the first one with a gradient), layers that are called several times, DDP. Not vmap.

    Args:
        targets: What to watch.
        features: What to compute.

    Attributes:
        unambiguous: Names of targets whose rows were those of samples by their shape alone, in
            some batch so far.

    Example:
        >>> import torch
        >>> from lightning_suite.resofilter.features import make_features
        >>> from lightning_suite.resofilter.targets import find_targets
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> recorder = FeatureRecorder(find_targets(model).found, make_features(["grad_norm"]))
        >>> x = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 5.0]])
        >>> with recorder:
        ...     recorder.start(n_samples=2)
        ...     model(x)[:, 0].sum().backward()
        ...     recorder.finish()
        {'.grad_norm': tensor([3., 5.], dtype=torch.float64)}
    """

    def __init__(self, targets: Sequence[Target], features: Sequence[Feature]) -> None:
        self.targets, self.features = tuple(targets), tuple(features)
        self._of_module: dict[nn.Module, list[Target]] = defaultdict(list)
        for target in self.targets:
            self._of_module[target.module].append(target)
        self._handles: list[RemovableHandle] = []
        self._batch: BatchInFlight | None = None
        self.unambiguous: set[str] = set()
        self._looked_for_idle = False

    @property
    def columns(self) -> list[str]:
        """Names of what :meth:`finish` returns: ``<target>.<feature>``."""
        return [f"{t.name}.{f.name}" for t in self.targets for f in self.features]

    @property
    def float64_columns(self) -> list[str]:
        """Names of the columns whose samples differ in the last digits only."""
        return [
            f"{t.name}.{f.name}" for t in self.targets for f in self.features if f.nearly_constant
        ]

    def __enter__(self) -> FeatureRecorder:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureRecorder:
        """Return one that watches nothing, as nobody asks the hooks of a copied model."""
        return FeatureRecorder((), self.features)

    def attach(self) -> None:
        """Put the hooks on the model, in front of those that may change a layer's output."""
        if not self._handles:
            self._handles = [
                module.register_forward_hook(self._tap, with_kwargs=True, prepend=True)
                for module in self._of_module
            ]

    def detach(self) -> None:
        """Take the hooks off and forget an unfinished batch."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._batch = [], None

    def start(
        self,
        n_samples: int,
        segments: Tensor | None = None,
        multipliers: Tensor | None = None,
        segments_of: Mapping[nn.Module, Tensor] | None = None,
        batch_first: Container[str] = (),
        observer: Observer | None = None,
    ) -> None:
        """Watch the next forward and backward pass.

        Args:
            n_samples: Samples in the batch.
            segments: For layers that see [B, T, …] (or [B·T, …]): which sample each position
                belongs to, -1 for none (padding): [B, T]. None: the first axis is the sample.
            multipliers: Factor from the differentiated loss to each sample's own: [N]. For a
                batch mean over M label tokens and a sample with m of them it is M/m, times the
                number of accumulated batches, divided by the loss scale of fp16.
            segments_of: Segments of layers that see other rows than the rest, such as an output
                layer that is called on label positions only.
            batch_first: Names of targets whose first axis is known to be the samples. It must
                be known where a batch has as many samples as a layer has positions; elsewhere
                the shape shows it, and :meth:`finish` adds the layer to ``unambiguous``.
            observer: Told of every layer what came in by its calls (input and output gradient),
                and the samples' gradients that were made of it.
        """
        self._batch = BatchInFlight(
            n_samples, segments, multipliers, segments_of or {}, batch_first, observer
        )

    def finish(self, *, name_idle: bool = True) -> dict[str, Tensor]:
        """Return the features of the batch: ``<target>.<feature>`` -> [N] or [N, k].

        They are float64, and on the CPU.

        A layer that took no part in the loss has the features of a gradient that is 0, like a
        sample that does not reach a layer.

        Args:
            name_idle: Whether, once, a warning names such layers.
        """
        batch = self._running()
        for module, pairs in batch.waiting.items():  # calls whose output did not reach the loss
            self._compute(module, pairs)
        values, self._batch = batch.values, None
        self.unambiguous |= batch.unambiguous
        idle = [t for t in self.targets if f"{t.name}.{self.features[0].name}" not in values]
        for target in idle:
            found = compute_features(no_gradients(target, batch.n_samples), self.features)
            values |= {f"{target.name}.{name}": zero for name, zero in found.items()}
        if idle and name_idle and not self._looked_for_idle:
            names = ", ".join(target.name for target in idle[:_SHOWN])
            rank_zero_warn(
                f"{len(idle)} of {len(self.targets)} watched layers took no part in the loss of "
                f"the first batch: {names}{', …' if len(idle) > _SHOWN else ''}. Their gradients "
                "count as 0 there; leave out layers that are never used."
            )
        self._looked_for_idle |= name_idle
        return on_cpu({column: values[column] for column in self.columns})

    def cancel(self) -> None:
        """Forget the batch; the hooks do nothing until the next :meth:`start`."""
        self._batch = None

    def _running(self) -> BatchInFlight:
        if self._batch is None:
            raise RuntimeError("FeatureRecorder: start() comes before the forward pass")
        return self._batch

    def _tap(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        batch = self._batch
        if batch is None or not isinstance(output, Tensor):
            return None
        x = args[0] if args else kwargs["input"]
        # inside a backward pass it is a recomputation (checkpointing) of a call already counted
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            batch.calls[module] += 1
            batch.note_input(module, x, len(self._of_module[module]))
        anchor = torch.empty(0, device=output.device, requires_grad=True)
        tapped: Tensor = _Tap.apply(output, x.detach(), anchor, self, module)  # type: ignore[no-untyped-call]
        return tapped

    def _receive(self, module: nn.Module, x: Tensor, g: Tensor) -> None:
        batch = self._batch
        if batch is None:
            return
        batch.waiting[module].append((x, g))
        if len(batch.waiting[module]) >= batch.calls[module]:
            self._compute(module, batch.waiting.pop(module))

    def _compute(self, module: nn.Module, pairs: list[Pair]) -> None:
        batch = self._running()
        with torch.no_grad(), torch.autocast(pairs[0][0].device.type, enabled=False):
            for target in self._of_module[module]:
                gradients = batch.gradients(target, pairs)
                if batch.observer is not None:
                    batch.observer(target, pairs, gradients)
                for name, values in compute_features(gradients, self.features).items():
                    column = f"{target.name}.{name}"
                    if column in batch.values:  # reentrant checkpointing hides calls to come
                        raise SuiteError(
                            f"{target.name}: its gradients come in twice, and cannot be put "
                            "together. Either it is called more than once inside reentrant "
                            "activation checkpointing (use use_reentrant=False), or the step "
                            "differentiates through it before its loss is (torch.autograd.grad, as "
                            "for a gradient penalty or an adversarial input): leave it out of the "
                            "watched modules."
                        )
                    batch.values[column] = values


class _Tap(torch.autograd.Function):
    """Identity on a layer's output; its backward hands (input, output gradient) to the recorder.

    The anchor is an empty tensor that requires a gradient: with it the graph reaches this node
    even if all parameters are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        _anchor: Tensor,
        recorder: FeatureRecorder,
        module: nn.Module,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.recorder, ctx.module = recorder, module
        # The same memory, but no view: the next layer may work in place (ReLU(inplace=True)).
        same: Tensor = y.new_empty(0).set_(y)  # type: ignore[call-overload]
        return same

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.recorder._receive(ctx.module, x, g)
        return g if ctx.needs_input_grad[0] else None, None, None, None, None


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and freeze it; everything is restored on leaving.

    Fused Transformer layers, which torch takes for frozen models and which call no layer of
    theirs, are off meanwhile.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    training = [(module, module.training) for module in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


def refuse_mixing_layers(model: nn.Module) -> None:
    """Refuse a model with a layer in which samples see each other.

    Raises:
        SuiteError: A batch normalisation takes its statistics from the batch.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.training or module.running_mean is None:
            what = "in training mode" if module.training else "without running statistics"
            remedy = "keep it in evaluation mode (.eval())" if module.training else "track them"
            raise SuiteError(
                f"{name}: batch normalisation {what} mixes the samples of a batch, and no "
                f"gradient belongs to one of them. Use GroupNorm or LayerNorm, or {remedy}."
            )


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model of which a part is compiled.

    Raises:
        SuiteError: It is.
    """
    if is_compiled(model):
        raise SuiteError(
            "the model is compiled, and what reads each sample's gradient is Python code that "
            "torch.compile would trace once and leave in. Train without torch.compile."
        )
