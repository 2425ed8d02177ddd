"""Once in a run: is what the layers' rows give really the gradient that autograd finds?

A layer's rows are its weight's whole gradient only where the weight is used by calls of the layer
and nowhere else, and they are one sample's only where samples do not see each other. Neither can
be read from a model, so the first batch is compared. Gradients are compared through random
projections P G Qᵀ: the norm of their difference estimates the norm of the gradients' difference,
and no gradient is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.batch import Pair
from lightning_suite.resofilter.gradient_features import Sketch
from lightning_suite.resofilter.rows import LayerGradients
from lightning_suite.resofilter.targets import Target

_SHOWN = 8  # layers listed in an error
_SKETCH = Sketch(size=16)
# Allowed difference, as a share of the gradient's norm: of float64 (a network may compute some of
# it in float32: transformers' norms, rotations and soft-capping), of float32, and of float32 whose
# products may be rounded to TF32. Faults are of the size of the gradient itself.
_FLOAT64, _FLOAT32, _ROUNDED = 1e-4, 1e-2, 5e-2
# In 16 bits rows and gradients of outputs are those that autograd has, to the last bit, and their
# products are summed in float32; what autograd rounds is the sum: of each call of the layer, and of
# the calls together, by half an eps, and entries below the smallest normal number by as much as
# that one. So many eps are granted.
_EPSILONS = 16
# What cancels, or vanishes, has no digits left: of Σ_t ‖x_t‖‖g_t‖, and of the largest gradient of
# all layers, these shares of the allowed difference are granted, too.
_OF_BOUND, _OF_LARGEST = 1e-3, 1e-4


class GradientCheck:
    """Collects gradients made of rows, and autograd's own, and compares them.

    Args:
        targets: What is watched.
        sample: Whose gradient is compared; None compares the sum over all rows of the batch, as
            they are, without multipliers.
    """

    def __init__(self, targets: Sequence[Target], sample: int | None = None) -> None:
        self.targets, self.sample = tuple(targets), sample
        # one sample's gradient is of another forward pass, whose errors no eps of a type bounds
        self._enough = 16 if sample is None else 32
        self._rows: dict[str, Tensor] = {}  # target -> projection of its gradient [k, k]
        self._truth: dict[str, Tensor] = {}
        self._bounds: dict[str, float] = {}
        self._rough: dict[str, float] = {}  # of targets in which something has 16 bits: its eps
        self._of_calls: dict[str, float] = {}  # sum of the calls' ‖G‖, where it has
        self._excluded: set[str] = set()
        self._of_parameter: dict[Tensor, list[Target]] = defaultdict(list)
        for target in self.targets:
            self._of_parameter[getattr(target.module, target.parameter)].append(target)
        self._handles: list[RemovableHandle] = []

    def observe(self, target: Target, pairs: Sequence[Pair], gradients: LayerGradients) -> None:
        """Take the rows of a layer: the recorder's ``observer``."""
        if not getattr(target.module, target.parameter).requires_grad and self.sample is None:
            self._excluded.add(target.name)  # an optimizer's toggling: autograd has none
            return
        dtypes = {values.dtype for pair in pairs for values in (*pair, target.weight)}
        if not all(_has_digits(dtype, self._enough) for dtype in dtypes):
            self._excluded.add(target.name)
            return
        if short := [dtype for dtype in dtypes if not _has_digits(dtype, 32)]:
            self._rough[target.name] = max(torch.finfo(dtype).eps for dtype in short)
        if self.sample is None:
            rows = [(target.inputs(x), target.output_gradients(g)) for x, g in pairs]
        else:
            rows = [gradients.samples()[self.sample]]
        for inputs, outputs in rows:
            x, g = inputs.flatten(0, -2), outputs.flatten(0, -2)
            wide = torch.promote_types(g.dtype, torch.float32)
            x, g = x.to(wide), g.to(wide)
            left, right = _projections(target, (g.shape[1], x.shape[1]), g)
            sketch = (g @ left.mT).mT @ (x @ right.mT)
            if short:
                smallest = max(torch.finfo(dtype).smallest_normal for dtype in short)
                of_call = float(sketch.norm()) + smallest * (g.shape[1] * x.shape[1]) ** 0.5
                self._of_calls[target.name] = self._of_calls.get(target.name, 0.0) + of_call
            self._rows[target.name] = self._rows.get(target.name, 0) + sketch
            bound = float((x.norm(dim=1) * g.norm(dim=1)).sum())
            self._bounds[target.name] = self._bounds.get(target.name, 0.0) + bound

    def attach(self) -> None:
        """Read the gradients of parameters as autograd makes them, before anything adds to them.

        What does not belong to this process alone, or has hooks of the user's that may change it,
        is not compared.
        """
        for parameter, targets in self._of_parameter.items():
            hooks = (parameter._backward_hooks or {}).values()
            if (
                isinstance(parameter, DTensor)
                or not (parameter.requires_grad and parameter.is_leaf)
                or not all(isinstance(hook, _Reader) for hook in hooks)
                or not _has_digits(parameter.dtype, self._enough)
            ):
                self._excluded |= {target.name for target in targets}
                continue
            handle: RemovableHandle = parameter.register_hook(_Reader(targets, self._truth))
            self._handles.append(handle)

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Let frozen parameters have gradients, one at a time, and read them."""
        parameters = list(self._of_parameter)
        before = [(p.requires_grad, p.grad) for p in parameters]
        clear = []
        try:
            for parameter in parameters:
                parameter.grad = None
                parameter.requires_grad_(True)
                clear.append(parameter.register_post_accumulate_grad_hook(_clear))
            self.attach()
            yield
        finally:
            self.detach()
            for handle in clear:
                handle.remove()
            for parameter, (required, gradient) in zip(parameters, before, strict=True):
                parameter.requires_grad_(required)
                parameter.grad = gradient

    def passed(self) -> bool:
        """Compare.

        Returns:
            Whether there was something to compare: not where values are not finite, nor where the
            loss reached no watched layer.

        Raises:
            SuiteError: Layers differ.
        """
        if self.sample is None:  # of some of the parameters there is no gradient in this backward
            compared = [t for t in self.targets if t.name in self._truth]
        else:
            compared = [t for t in self.targets if t.name in self._truth or t.name in self._rows]
        compared = [t for t in compared if t.name not in self._excluded]
        found = [
            values[t.name]
            for t in compared
            for values in (self._rows, self._truth)
            if t.name in values
        ]
        if not all(bool(values.isfinite().all()) for values in found):
            return False
        largest = max((float(values.norm()) for values in found), default=0.0)
        wrong = [line for t in compared if (line := self._difference(t.name, largest))]
        if wrong:
            raise SuiteError(_refusal(wrong))
        return bool(compared or self._excluded)

    def _difference(self, name: str, largest: float) -> str | None:
        """Return both norms where they do not agree; nothing at all is a gradient of 0."""
        like = self._rows[name] if name in self._rows else self._truth[name]
        nothing = torch.zeros_like(like)
        rows, truth = self._rows.get(name, nothing), self._truth.get(name, nothing)
        norm, off = float(truth.norm()), float((rows - truth).norm())
        allowed = max(_allowed(rows, truth), _EPSILONS * self._rough.get(name, 0.0))
        norm_of_calls = max(norm, self._of_calls.get(name, 0.0))
        scale = norm_of_calls + _OF_BOUND * self._bounds.get(name, 0.0) + _OF_LARGEST * largest
        # a weight that has a gradient without any call of its layer is wrong at any size
        if off <= allowed * scale and (name in self._rows or norm == 0):
            return None
        return (
            f"{name}: norm {float(rows.norm()):.4g} from its rows, {norm:.4g} by autograd, of the "
            f"difference {off:.4g}"
        )


class _Reader:
    """A hook that reads a parameter's gradient and leaves it as it is."""

    def __init__(self, targets: Sequence[Target], found: dict[str, Tensor]) -> None:
        self._targets, self._found = targets, found

    def __call__(self, gradient: Tensor) -> None:
        # `backward` may be called inside of autocast
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            for target in self._targets:
                G = target.as_matrix(gradient)
                left, right = _projections(target, G.shape, G)
                sketch = left @ G.to(left.dtype) @ right.mT
                self._found[target.name] = self._found.get(target.name, 0) + sketch


def is_checkable(model: nn.Module) -> bool:
    """Return whether a model's gradients have the digits to be compared: no 16 bits."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    autocast = any(torch.is_autocast_enabled(p.device.type) for p in parameters[:1])
    return not autocast and all(p.dtype.itemsize >= 4 for p in parameters)


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undo what one more forward pass does to buffers."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


def _has_digits(dtype: torch.dtype, enough: int) -> bool:
    """Whether it is one of at least so many bits that values are computed in."""
    return dtype.is_floating_point and 8 * dtype.itemsize >= enough


def _projections(target: Target, shape: Sequence[int], like: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return [
        _SKETCH.projection(target.name, side, width).to(like.device, dtype)
        for side, width in zip(("out", "in"), shape, strict=True)
    ]


def _allowed(rows: Tensor, truth: Tensor) -> float:
    if torch.promote_types(rows.dtype, truth.dtype) == torch.float64:
        return _FLOAT64
    rounded = truth.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest"
    return _ROUNDED if rounded else _FLOAT32


def _refusal(wrong: Sequence[str]) -> str:
    more = f"\n  … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return (
        "the rows of these layers do not give the gradient that autograd finds (norms seen through "
        "a random projection):\n  " + "\n  ".join(wrong[:_SHOWN]) + more + "\nUsual reasons: the "
        "weight is used in another place, too, without a call of its layer (tied by hand, or in a "
        "penalty in the loss); rows that are not the samples', as of experts; samples "
        "that see each other or their padding (statistics of a batch, a loss over it); a "
        "random forward pass. Leave these layers out with modules or layers."
    )


def _clear(parameter: Tensor) -> None:
    parameter.grad = None
