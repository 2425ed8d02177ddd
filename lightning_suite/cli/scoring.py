"""What `lightning-suite score` scores, and how: any LightningModule on any LightningDataModule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_suite.cli.parsing import time_left
from lightning_suite.cli.progress import ProgressLine
from lightning_suite.datamodules.instruction import InstructionDataModule
from lightning_suite.datamodules.instruction_samples import InstructionSamples
from lightning_suite.errors import SuiteError
from lightning_suite.language.module import CausalLMModule
from lightning_suite.language.prompts import template_hash
from lightning_suite.resofilter.batch import AmbiguousRowsError
from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.language_probe import CausalLMProbe
from lightning_suite.resofilter.manifest import Manifest, data_fingerprint
from lightning_suite.resofilter.online import content_ids
from lightning_suite.resofilter.probe import Rows, SampleProbe
from lightning_suite.resofilter.store import ScoreStore
from lightning_suite.resofilter.targets import Target

_SECONDS_PER_SHARD = 60  # a kill costs at most so much work
_CHUNK = 1024
# A Trainer's hooks between loader and training step, and whether they are told the device.
_TRANSFER = {
    "on_before_batch_transfer": False,
    "transfer_batch_to_device": True,
    "on_after_batch_transfer": False,
}


@dataclass(frozen=True)
class ScoringData:
    """Samples that can be fetched by their index.

    Attributes:
        ids: From the data, unique.
        lengths: Tokens of each; 1 for what has none.
        fetch: Indices -> batch, where the module is and as its training step would get it.
        fingerprint: Number and hash of the samples.
        template: Hash of the prompt template, for text.
        max_length: Most tokens of a sample, for text.
    """

    ids: Sequence[str]
    lengths: Sequence[int]
    fetch: Callable[[Sequence[int]], Any]
    fingerprint: Callable[[], Manifest]
    template: str | None = None
    max_length: int | None = None


def prepare_data(data: LightningDataModule, module: LightningModule) -> None:
    """Let a data module download what it needs: in one process of a machine, as a Trainer does.

    Args:
        data: Not yet set up.
        module: Whose tokenizer an `InstructionDataModule` without one takes.
    """
    _share_tokenizer(data, module)
    data.prepare_data()


def open_data(data: LightningDataModule, module: LightningModule) -> ScoringData:
    """Return the training samples of a data module.

    `InstructionDataModule` also gives those without a label token. Of any other the training
    loader's data set is read by index, without its sampler; a sample's id is in ``ids`` of the
    data set if it has them, otherwise its index.

    Args:
        data: Prepared, in whatever process, and not yet set up.
        module: Whose tokenizer an `InstructionDataModule` without one takes, and to whose device
            batches go.

    Raises:
        SuiteError: The training data cannot be read by index, sample by sample.
    """
    if isinstance(data, InstructionDataModule):
        _share_tokenizer(data, module)
        data.setup("fit")
        samples = data.samples("train")
        return ScoringData(
            samples.ids,
            samples.lengths.tolist(),
            lambda indices: transferred(samples[indices], module, data),
            lambda: data_fingerprint(_tokens(samples)),
            template_hash(data.template),
            data.max_length,
        )
    data.setup("fit")
    loader = data.train_dataloader()
    dataset: Any = getattr(loader, "dataset", None)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise SuiteError(
            f"score: the training data of {type(data).__name__} cannot be read by index; scores "
            "need a data set with __len__ and __getitem__ in train_dataloader()."
        )
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        raise SuiteError(
            f"score: the training loader of {type(data).__name__} has batch_size=None: its data "
            "set gives whole batches, and what a sample is cannot be told. Give a data set of "
            "single samples, and the loader a batch_size."
        )

    def fetch(indices: Sequence[int]) -> Any:
        whole = getattr(dataset, "__getitems__", None)
        rows = whole(list(indices)) if whole else [dataset[i] for i in indices]
        return transferred(loader.collate_fn(rows), module, data)

    n = len(dataset)
    ids = [str(i) for i in getattr(dataset, "ids", range(n))]

    def contents() -> Iterator[tuple[str, list[int], list[int]]]:
        for start in range(0, n, _CHUNK):
            chosen = range(start, min(n, start + _CHUNK))
            for i, content in zip(chosen, content_ids(fetch(chosen)), strict=True):
                yield ids[i], list(bytes.fromhex(content)), []

    return ScoringData(ids, [1] * n, fetch, lambda: data_fingerprint(contents()))


def _share_tokenizer(data: LightningDataModule, module: LightningModule) -> None:
    if isinstance(data, InstructionDataModule) and data.tokenizer is None:
        data.tokenizer = module.hparams.get("pretrained")


def transferred(batch: Any, module: LightningModule, data: LightningDataModule) -> Any:
    """Return a batch on the module's device, by the hooks that a Trainer calls for that.

    Each is the data module's where that has its own, otherwise the module's.

    Raises:
        SuiteError: A hook fails for want of a trainer.
    """
    for name, device in _TRANSFER.items():
        owner: Any = data if is_overridden(name, data) else module
        hook = getattr(owner, name)
        try:
            batch = hook(batch, module.device, 0) if device else hook(batch, 0)
        except AttributeError as err:
            raise SuiteError(
                f"{type(owner).__name__}.{name}: {err}. score calls this hook as fit does, with "
                "the model in evaluation mode and without a trainer: it must not ask one."
            ) from err
    return batch


class ModuleProbe(SampleProbe):
    """Scores batches of any LightningModule.

    A module with a method ``sample_losses(batch) -> [N]`` is run on whole batches. Any other is
    given each sample as a batch of one, whose ``training_step`` loss is that sample's own.

    Args:
        module: The user's.
        targets: What to watch.
        features: What to compute.
        allow_low_precision: As in :class:`~lightning_suite.resofilter.probe.SampleProbe`.
    """

    def score_batch(self, batch: Any, ids: Sequence[str]) -> Rows:
        """Return the table's rows of one batch."""
        losses = getattr(self.model, "sample_losses", None)
        if losses is None:
            return self.score(ids, lambda: self._training_step(batch))
        return self.score(ids, lambda: losses(batch))

    def _training_step(self, batch: Any) -> Tensor:
        step: Any = self.model.training_step
        numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)  # as a Trainer asks
        out = step(batch, 0) if numbered else step(batch)
        loss = out["loss"] if isinstance(out, Mapping) else out
        if not isinstance(loss, Tensor):
            raise SuiteError(
                f"{type(self.model).__name__}.training_step returned {type(loss).__name__}; score "
                "needs the loss. Or give the module a method sample_losses(batch) -> [N]."
            )
        return loss.reshape(1)


def scored_network(module: LightningModule) -> nn.Module:
    """Return the part whose layers are named in the scores: a language model's own."""
    network: nn.Module = module.model if isinstance(module, CausalLMModule) else module
    return network


@contextmanager
def open_probe(
    module: LightningModule,
    targets: Sequence[Target],
    features: Sequence[Feature],
    data: ScoringData,
    *,
    without_prompt: bool = False,
    allow_low_precision: bool = False,
) -> Iterator[Callable[[Sequence[int]], Rows]]:
    """Freeze the model and return the function from indices of samples to rows of the table.

    Args:
        module: On its device already.
        targets: What to watch.
        features: What to compute.
        data: The samples.
        without_prompt: As in :class:`~lightning_suite.resofilter.language_probe.CausalLMProbe`.
        allow_low_precision: As in :class:`~lightning_suite.resofilter.probe.SampleProbe`.
    """
    if isinstance(module, CausalLMModule):
        options = {"without_prompt": without_prompt, "allow_low_precision": allow_low_precision}
        with CausalLMProbe(module.model, targets, features, **options) as probe:
            yield lambda indices: probe.score_batch(
                {"ids": [data.ids[i] for i in indices], **data.fetch(indices)}
            )
        return
    if without_prompt:
        raise SuiteError("without_prompt needs a CausalLMModule.")
    one_by_one = not hasattr(module, "sample_losses")
    with ModuleProbe(
        module, targets, features, allow_low_precision=allow_low_precision
    ) as module_probe:

        def score_part(part: Sequence[int]) -> list[Rows]:
            batch = data.fetch(part)
            try:
                return [module_probe.score_batch(batch, [data.ids[i] for i in part])]
            except AmbiguousRowsError:
                # With another number of samples it shows whether they are the first axis. Done
                # whatever was seen before: a run that goes on must come to the same bits.
                half = (len(part) + 1) // 2
                return score_part(part[:half]) + score_part(part[half:])

        def score(indices: Sequence[int]) -> Rows:
            parts = [[i] for i in indices] if one_by_one else [list(indices)]
            rows = [row for part in parts for row in score_part(part)]
            return {name: _joined([row[name] for row in rows]) for name in rows[0]}

        yield score


def score_batches(
    score: Callable[[Sequence[int]], Rows],
    batches: Iterable[Sequence[int]],
    store: ScoreStore,
    progress: Progress,
) -> None:
    """Score batches into the store; whatever stops it, what is scored is written.

    Args:
        score: Indices of a batch -> rows.
        batches: Indices.
        store: Of this rank.
        progress: Told after each batch.
    """
    written = time.monotonic()
    try:
        for batch in batches:
            store.add(score(batch))
            progress.add(len(batch))
            if time.monotonic() - written > _SECONDS_PER_SHARD:
                store.flush()
                written = time.monotonic()
    finally:
        store.flush()


class Progress:
    """One line on the terminal, or one line a minute in a file.

    Args:
        total: Samples to score.
        shown: Whether this process says anything.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self.total, self.done = total, 0
        self._line = ProgressLine(in_log=60, on_terminal=0.2, shown=shown)

    def add(self, samples: int) -> None:
        """Count samples and, now and then, say how far it is."""
        self.done += samples
        if self._line.is_due():
            rate = self.done / self._line.seconds
            left = time_left((self.total - self.done) / rate)
            self._line.show(f"{self.done:,} of {self.total:,} samples, {rate:.3g} a second, {left}")

    def close(self) -> None:
        """Clear the line."""
        self._line.close()


def _tokens(samples: InstructionSamples) -> Iterator[tuple[str, list[int], list[int]]]:
    for n, sample_id in enumerate(samples.ids):
        start, length = int(samples.starts[n]), int(samples.lengths[n])
        tokens = samples.tokens[start : start + length].tolist()
        yield sample_id, tokens, [int(samples.prompts[n])]


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [value for part in parts for value in part]
