r"""Train many runs of one architecture together, each exactly as if it were alone.

The parameters of R runs are stacked on a leading axis and the network is called once under
:func:`torch.vmap`; every linear layer becomes one batched matrix product. The sum of the runs'
losses has the runs' own gradients, since no run appears in another's loss.

Two things make it fast on a CPU. Small matrices are bound by the cost of a call, which R runs
share. And each stacked parameter is updated inside the backward pass (see
:mod:`~lightning_suite.depth_mup.stacked_optimizer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_suite.depth_mup.param_groups import Factors
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings, StackedParameter
from lightning_suite.errors import SuiteError

Loss = Callable[[Tensor, Tensor], Tensor]

# Measured on CPUs with 1-2 MiB of L2 cache a core (benchmarks/batched_sweep.py): the cost of a
# call is spread thinly enough from 16 runs on, and one layer's weight, gradient, state and
# activations of all runs should stay near the L2 cache.
_CPU_BYTES_PER_LAYER = 1024 * 1024
_MAX_RUNS_ON_CPU = 32
_MAX_RUNS_ON_ACCELERATOR = 256

# Orders and initial weights of one seed come from different streams.
_ORDER_STREAM = 1 << 32


@dataclass(frozen=True)
class Run:
    """One training run of a batch.

    Attributes:
        seed: Seed of the initial weights and of the order of the data.
        lr: Base learning rate, which the factors multiply.
    """

    seed: int
    lr: float


@dataclass(frozen=True)
class BatchedResult:
    """What a batch of runs has come to.

    Attributes:
        losses: Training loss of every step, float64 ``[R, steps]``; ``inf`` from the step on at
            which a run's loss was not finite.
        diverged_at: That step for every run, or None.
        params: Final parameters by name, stacked ``[R, ...]``; NaN for diverged runs.
        val_loss: Mean loss over the validation rows, float64 ``[R]``; ``inf`` for diverged runs.
        val_accuracy: Fraction of validation rows classified rightly ``[R]``; 0 for diverged runs.
    """

    losses: Tensor
    diverged_at: list[int | None]
    params: dict[str, Tensor]
    val_loss: Tensor | None = None
    val_accuracy: Tensor | None = None


def batch_order(rows: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Return which rows each step sees: a fresh permutation an epoch, incomplete batches left out.

    Args:
        rows: Number of training rows.
        batch_size: Rows a step.
        steps: Number of steps.
        seed: The run's seed.

    Returns:
        Row numbers, int64 ``[steps, batch_size]``.

    Raises:
        SuiteError: The batch is empty or larger than the training set.
    """
    if not 1 <= batch_size <= rows:
        raise SuiteError(
            f"batch_size={batch_size} with {rows} training rows; it must lie between 1 and {rows}."
        )
    generator = torch.Generator().manual_seed(seed + _ORDER_STREAM)
    per_epoch = rows // batch_size
    epochs = [
        torch.randperm(rows, generator=generator)[: per_epoch * batch_size]
        for _ in range(math.ceil(steps / per_epoch))
    ]
    return torch.cat(epochs).view(-1, batch_size)[:steps]


def runs_per_batch(net: nn.Module, device: str | torch.device = "cpu") -> int:
    """Return how many runs of ``net`` are best trained together.

    A fixed rule of the shapes alone, so that a resumed sweep forms the very batches it had formed.
    """
    if torch.device(device).type != "cpu":
        return _MAX_RUNS_ON_ACCELERATOR
    typical = median(p.numel() * p.element_size() for p in net.parameters())
    return max(1, min(_MAX_RUNS_ON_CPU, int(_CPU_BYTES_PER_LAYER // max(typical, 1))))


def _stack(
    make_net: Callable[[int], nn.Module], runs: Sequence[Run], device: str, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Tensor]]:
    seeds = list(dict.fromkeys(run.seed for run in runs))
    nets = {seed: make_net(seed) for seed in seeds}
    net = nets[seeds[0]]
    if next(net.buffers(), None) is not None:
        raise SuiteError(
            f"{type(net).__name__} has buffers (running statistics?), which the batched engine "
            "does not train. Use the trainer engine."
        )
    values = {seed: dict(each.named_parameters()) for seed, each in nets.items()}
    stacked = {
        name: torch.stack([values[run.seed][name].detach() for run in runs]).to(device, dtype)
        for name in values[seeds[0]]
    }
    return net.to(device, dtype), stacked


def train_batched(
    make_net: Callable[[int], nn.Module],
    runs: Sequence[Run],
    settings: OptimizerSettings,
    train: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int,
    factors: Mapping[str, Factors] | None = None,
    val: tuple[Tensor, Tensor] | None = None,
    loss: Loss = F.cross_entropy,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int], None] | None = None,
) -> BatchedResult:
    """Train all ``runs`` together; each sees the initial weights and the data order of its seed.

    A run whose loss is not finite leaves the batch; the others never notice.

    Args:
        make_net: Maps a seed to the network with that seed's initial weights; all of one shape,
            without buffers or dropout.
        runs: Seeds and base learning rates.
        settings: The optimizer.
        train: Inputs ``[N, ...]`` and targets ``[N, ...]`` that fit in memory.
        steps: Optimizer steps.
        batch_size: Rows a step.
        factors: For each parameter's name, what multiplies its learning rate, weight decay and
            epsilon; default: 1.
        val: Inputs and class labels ``[N]`` for the final evaluation.
        loss: Maps one run's outputs and targets to a scalar.
        device: Where to train.
        dtype: Floating-point type of parameters and inputs.
        on_step: Called with the number of finished steps.

    Raises:
        SuiteError: No runs, an impossible batch size, a network that cannot be batched, or
            factors for parameters that it does not have.
    """
    if not runs:
        raise SuiteError("no runs to train: the list of seeds or learning rates is empty.")
    net, values = _stack(make_net, runs, device, dtype)
    unknown = sorted(set(factors or {}) - set(values))
    if unknown:
        raise SuiteError(f"factors for parameters that the network lacks: {', '.join(unknown)}.")
    base_lr = torch.tensor([run.lr for run in runs], dtype=torch.float64)
    params = {}
    for name, value in values.items():
        own = (factors or {}).get(name, Factors())
        shape = (-1,) + (1,) * (value.dim() - 1)
        params[name] = StackedParameter(
            value, own, settings, (base_lr * own.lr).to(device, dtype).view(shape)
        )
    inputs, targets = train[0].to(device, dtype), train[1].to(device)
    orders = {
        seed: batch_order(len(inputs), batch_size, steps, seed) for seed in {r.seed for r in runs}
    }
    order = torch.stack([orders[run.seed] for run in runs], dim=1).to(device)  # [steps, R, batch]

    def loss_of_run(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(net, weights, (x,)), y)

    losses_of_runs = torch.vmap(loss_of_run)
    losses = torch.full((len(runs), steps), math.inf, dtype=torch.float64, device=device)
    alive = torch.arange(len(runs), device=device)
    # Looking at the losses waits for the device; a diverged run may stay for some steps.
    look_every = 1 if torch.device(device).type == "cpu" else 20
    for step in range(steps):
        rows = order[step, alive]
        now = losses_of_runs({n: p.value for n, p in params.items()}, inputs[rows], targets[rows])
        now.sum().backward()  # updates every parameter on the way
        losses[alive, step] = now.detach().double()
        if (step + 1) % look_every == 0 or step == steps - 1:
            finite = torch.isfinite(losses[alive, : step + 1]).all(dim=1)
            if not finite.all():
                alive = alive[finite]
                for param in params.values():
                    param.keep(finite)
            if not len(alive):
                break
        if on_step is not None:
            on_step(step + 1)

    final = {}
    for name, param in params.items():
        value = param.value.detach()
        final[name] = value.new_full((len(runs), *value.shape[1:]), math.nan)
        final[name][alive] = value
    losses, diverged_at = _after_divergence(losses.cpu())
    if val is None:
        return BatchedResult(losses, diverged_at, final)
    val_loss, accuracy = evaluate_batched(
        net, final, (val[0].to(device, dtype), val[1].to(device)), loss
    )
    return BatchedResult(losses, diverged_at, final, val_loss, accuracy)


def _after_divergence(losses: Tensor) -> tuple[Tensor, list[int | None]]:
    """Set each row to inf from its first loss on that is not finite; say where that was."""
    bad = (~torch.isfinite(losses)).cummax(dim=1).values
    first = [int(row.int().argmax()) if bool(row.any()) else None for row in bad]
    return losses.masked_fill(bad, math.inf), first


@torch.no_grad()
def evaluate_batched(
    net: nn.Module,
    params: Mapping[str, Tensor],
    data: tuple[Tensor, Tensor],
    loss: Loss = F.cross_entropy,
    rows_at_once: int = 256,
) -> tuple[Tensor, Tensor]:
    """Return mean loss and accuracy of every run, float64 ``[R]`` each, on the CPU.

    Args:
        net: The architecture; its own parameters are not used.
        params: Stacked parameters ``[R, ...]``.
        data: Inputs ``[N, ...]`` and class labels ``[N]``.
        loss: Maps outputs and targets to the mean loss.
        rows_at_once: Rows in one forward pass.

    Returns:
        ``inf`` and 0 for runs whose loss is not finite.
    """

    def measure(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(net, weights, (x,))
        return loss(outputs, y), (outputs.argmax(dim=-1) == y).double().mean()

    measured = torch.vmap(measure, in_dims=(0, None, None))
    runs = len(next(iter(params.values())))
    totals = torch.zeros(2, runs, dtype=torch.float64)
    cuts = list(range(rows_at_once, len(data[0]), rows_at_once))
    for x, y in zip(*(tensor.tensor_split(cuts) for tensor in data), strict=True):
        means = torch.stack([m.double() for m in measured(dict(params), x, y)])
        totals += len(x) * means.cpu()
    mean_loss, accuracy = totals / len(data[0])
    finite = torch.isfinite(mean_loss)
    return mean_loss.masked_fill(~finite, math.inf), accuracy.masked_fill(~finite, 0.0)
