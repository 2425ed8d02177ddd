"""Running text, cut into blocks of tokens, for training a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_suite.datamodules.hf_datasets import (
    HUB_PREFIX,
    load_folder_dataset,
    load_hub_dataset,
)
from lightning_suite.datamodules.loading import (
    ResumableLoader,
    eval_loader,
    no_loaders,
    train_loader,
)
from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.given_paths import given_path
from lightning_suite.language.loading import load_tokenizer

Batch = dict[str, Tensor]


class TokenBlocks(Dataset[Batch]):
    """Blocks of tokens that do not overlap.

    Args:
        blocks: Token ids of any integer type, [N, T].
    """

    def __init__(self, blocks: Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Batch:
        return self._batch(self.blocks[index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self._batch(self.blocks[torch.as_tensor(indices)])

    def all(self) -> Batch:
        """Return everything as one batch."""
        return self._batch(self.blocks)

    @staticmethod
    def _batch(tokens: Tensor) -> Batch:
        # The model shifts the labels itself: position t is trained to predict label t + 1.
        ids = tokens.long()
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


class TextDataModule(LightningDataModule):
    """Text cut into blocks of ``block_size`` tokens that do not overlap.

    Batches are dictionaries that any Hugging Face causal language model takes as keywords:
    ``input_ids``, ``labels`` and ``attention_mask``, int64 [N, T] each. The model shifts the
    labels. The text's end is kept for validation and testing: train, validation and test are
    three consecutive stretches of whole blocks, so no token of one is ever in another. A source
    with splits of its own keeps them.

    The order of the training batches depends on ``seed`` and the epoch alone and continues
    exactly after a resume in the middle of an epoch.

    After ``setup``: ``vocab_size``, what the model's vocabulary must at least be.

    Args:
        source: One of

            * ``"pydoc"``: the reference texts inside every CPython (``pydoc_data.topics``), about
              450,000 characters of English and code; they differ a little between versions;
            * a UTF-8 text file, or a list of them, one document each;
            * a folder written by ``datasets``' ``save_to_disk`` (extra ``llm``);
            * ``"hub:OWNER/NAME"`` or ``"hub:OWNER/NAME:CONFIG"``: a data set of the Hugging Face
              Hub, downloaded once (extra ``llm``).
        tokenizer: ``"bytes"`` (the UTF-8 bytes, vocabulary 256), or a Hugging Face tokenizer: a
            local folder, a name of the Hub, a ``.gguf`` file or ``package:NAME`` (extra ``llm``).
            Documents are separated by its end token; bytes by an empty line.
        block_size: Tokens a block.
        batch_size: Blocks a batch (and rank).
        val_fraction: Share of the blocks to validate on; 0 for no validation.
        test_fraction: Share of the blocks to test on; 0 for no test.
        text_column: Column that holds the text, for a data set.
        num_workers: Worker processes. The tokens lie in memory: 0 is usually the fastest.
        seed: Order of the training batches.

    Raises:
        SuiteError: An option is out of range (here), or the text cannot be read or is too short
            (in ``setup``).

    Example:
        >>> from lightning_suite import TextDataModule
        >>> data = TextDataModule(block_size=64, batch_size=8)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))["input_ids"].shape
        torch.Size([8, 64])
    """

    vocab_size: int

    def __init__(
        self,
        source: str | list[str] = "pydoc",
        tokenizer: str = "bytes",
        block_size: int = 128,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        text_column: str = "text",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("block_size", block_size, 2),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise SuiteError(f"TextDataModule: {name} is {value}; it must be {least} or more.")
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= share < 1:
                raise SuiteError(f"TextDataModule: {name} is {share}; it must be in [0, 1).")
        if source == []:
            raise SuiteError("TextDataModule: source is an empty list; name at least one file.")
        self.save_hyperparameters()
        self.source = source
        self.tokenizer = tokenizer
        self.block_size, self.batch_size = block_size, batch_size
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.text_column = text_column
        self.num_workers = num_workers
        self.seed = seed
        self._datasets: dict[str, TokenBlocks] = {}

    def prepare_data(self) -> None:
        """Fill the Hub's cache, in one process only."""
        if isinstance(self.source, str) and self.source.startswith(HUB_PREFIX):
            load_hub_dataset(self.source)
        if self.tokenizer != "bytes":
            load_tokenizer(self.tokenizer)

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize the text, all splits at once."""
        if self._datasets:
            return
        splits = read_documents(self.source, self.text_column)
        if self.tokenizer == "bytes":
            self.vocab_size = 256
            tokens = {name: encode_bytes(texts) for name, texts in splits.items()}
        else:
            tokenizer = load_tokenizer(self.tokenizer)
            self.vocab_size = len(tokenizer)
            tokens = {name: encode(texts, tokenizer) for name, texts in splits.items()}
        blocks = {name: self._blocks(name, stretch) for name, stretch in tokens.items()}
        train, total = blocks["train"], len(blocks["train"])
        for name in ("test", "val"):  # from the end: test last, validation before it
            if name not in blocks and self.fractions[name] > 0:
                count = round(self.fractions[name] * total)
                if not 0 < count < len(train):
                    raise SuiteError(
                        f"{self._name}: {name}_fraction {self.fractions[name]} of {total:,} blocks "
                        f"of {self.block_size} tokens is {count}, and {len(train):,} are left. "
                        f"Change {name}_fraction or block_size, or take a longer text."
                    )
                train, blocks[name] = train[:-count], train[-count:]
        blocks["train"] = train
        self._datasets = {name: TokenBlocks(b) for name, b in blocks.items()}

    def train_dataloader(self) -> ResumableLoader[Batch]:
        """Return the shuffled training batches."""
        return train_loader(
            self._some("train"),
            self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation batches in order, or an empty list without validation."""
        self.setup()
        if "val" not in self._datasets:
            return no_loaders()
        return eval_loader(self._some("val"), self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches in order."""
        return eval_loader(self._some("test"), self.batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches in order."""
        return self.test_dataloader()

    def tensors(self, split: str = "train") -> Batch:
        """Return a whole split (``"train"``, ``"val"`` or ``"test"``) as one batch."""
        return self._some(split).all()

    @property
    def _name(self) -> str:
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    def _some(self, split: str) -> TokenBlocks:
        self.setup()
        if split in self._datasets:
            return self._datasets[split]
        if split not in ("train", "val", "test"):
            known = ("train", "val", "test")
            raise SuiteError(
                f"split {split!r} does not exist.{did_you_mean(split, known)} "
                "Use 'train', 'val' or 'test'."
            )
        raise SuiteError(
            f"{self._name}: has no split '{split}', and {split}_fraction is 0. "
            f"Set {split}_fraction, for example 0.1."
        )

    def _blocks(self, split: str, tokens: Tensor) -> Tensor:
        count = len(tokens) // self.block_size
        if count == 0:
            raise SuiteError(
                f"{self._name}: split '{split}' has {len(tokens):,} tokens, fewer than one block "
                f"of {self.block_size}. Take a longer text or a smaller block_size."
            )
        return tokens[: count * self.block_size].view(count, self.block_size)


def read_documents(source: str | Sequence[str], text_column: str = "text") -> dict[str, list[str]]:
    """Return the documents of every split of ``source``; ``"train"`` is always there.

    Args:
        source: See :class:`TextDataModule`.
        text_column: Column of the text, for a data set.

    Raises:
        SuiteError: There is no such source, no such column, or a file is not UTF-8.
    """
    if source == "pydoc":
        return {"train": _pydoc_topics()}
    if not isinstance(source, str):
        return {"train": [_read_text(given_path(path)) for path in source]}
    if source.startswith(HUB_PREFIX):
        splits = load_hub_dataset(source)
    elif given_path(source).is_dir():
        splits = load_folder_dataset(given_path(source), "text")
    else:
        return {"train": [_read_text(given_path(source))]}
    if "train" not in splits:
        raise SuiteError(f"{source}: has no split 'train'. It has: {', '.join(splits)}.")
    if text_column not in splits["train"].column_names:
        columns = splits["train"].column_names
        raise SuiteError(
            f"{source}: text_column {text_column!r} does not exist."
            f"{did_you_mean(text_column, columns)} Columns: {', '.join(columns)}."
        )
    ours = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
    return {
        ours[name]: [text for text in rows[text_column] if text]
        for name, rows in splits.items()
        if name in ours
    }


def encode_bytes(texts: Sequence[str]) -> Tensor:
    """Return the texts' UTF-8 bytes, an empty line between two, as uint8 [number of bytes]."""
    return torch.frombuffer(bytearray("\n\n".join(texts).encode()), dtype=torch.uint8)


def encode(texts: Sequence[str], tokenizer: Any) -> Tensor:
    """Return the texts' tokens, the end token after each, as int32 [number of tokens]."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # verbose=False: a text may be longer than what the tokenizer's model takes; it is cut below
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([t for tokens in encoded for t in (*tokens, *end)], dtype=torch.int32)


def _pydoc_topics() -> list[str]:
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  # a large module that few need
    except ModuleNotFoundError as err:  # some distributions package it apart
        raise SuiteError(
            "source 'pydoc': this Python has no pydoc_data. Name a text file as source."
        ) from err
    return [topics[name] for name in sorted(topics)]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as err:
        raise SuiteError(
            f"{path}: cannot be read ({err.strerror}). source is 'pydoc', a text file, a list of "
            "them, a folder written by save_to_disk, or 'hub:OWNER/NAME'."
        ) from err
    except UnicodeDecodeError as err:
        raise SuiteError(
            f"{path}: is not UTF-8: byte 0x{err.object[err.start]:02x} at offset {err.start:,}. "
            "Convert it, for example with: iconv -f latin1 -t utf-8."
        ) from err
