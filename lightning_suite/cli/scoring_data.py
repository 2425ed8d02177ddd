"""The samples that `lightning-suite score` scores, as a training step would get them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_suite.datamodules.instruction import InstructionDataModule
from lightning_suite.datamodules.instruction_samples import InstructionSamples
from lightning_suite.errors import SuiteError
from lightning_suite.language.prompts import template_hash
from lightning_suite.resofilter.manifest import Manifest, data_fingerprint
from lightning_suite.resofilter.online import content_ids

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


def _tokens(samples: InstructionSamples) -> Iterator[tuple[str, list[int], list[int]]]:
    for n, sample_id in enumerate(samples.ids):
        start, length = int(samples.starts[n]), int(samples.lengths[n])
        tokens = samples.tokens[start : start + length].tolist()
        yield sample_id, tokens, [int(samples.prompts[n])]
