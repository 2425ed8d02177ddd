"""Students' answers to exercises with texts, cut so that the test's exercises are new."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_suite.datamodules.cold_start_batches import (
    AnswerSamples,
    Batch,
    ExerciseBatches,
    pad_tokens,
)
from lightning_suite.datamodules.cold_start_cautions import thin_cautions
from lightning_suite.datamodules.cold_start_manifest import check_oracle, manifest
from lightning_suite.datamodules.cold_start_reading import check_sources, read_parts
from lightning_suite.datamodules.cold_start_sources import ResponseData
from lightning_suite.datamodules.cold_start_splits import Split
from lightning_suite.datamodules.cold_start_texts import (
    compose_kc_texts,
    compose_texts,
    encode_texts,
    read_descriptions,
    read_kc_descriptions,
    tokens_digest,
)
from lightning_suite.datamodules.loading import ResumableLoader, no_loaders, sampler_loader
from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.language.loading import load_tokenizer
from lightning_suite.language.prompts import ByteTokenizer

_log = logging.getLogger(__name__)

SYSTEM = "Judge how hard the following exercise is for one particular student."
_SAME = ("kind", "held_out")  # of the manifests of the same students
TEXTS = ("raw", "kc_names", "diffused", "both")


class ColdStartDataModule(LightningDataModule):
    """Answers of students to exercises, for cognitive diagnosis with cold starts.

    A batch has M exercises and N answers to them: ``input_ids`` int64 [M, P] (padded on the
    right) and ``lengths`` [M], the texts; ``kcs`` float32 [M, K]; ``exercises`` int64 [M]; and
    ``rows`` (into the M exercises), ``students``, ``correct``, [N] each. Where exercises have
    unequal numbers of answers, a training batch has also ``weight``, its answers over those of the
    mean batch: the loss times it has the gradient of the mean over all answers, on any number of
    ranks and with accumulation, where a batch of a few rare answers would count as a full one.

    Nothing that is cold in the test is in training or validation: ``setup`` checks it and raises.
    Which answers are where is in ``manifest``, which every checkpoint keeps: a checkpoint is not
    tested or resumed on another split.

    After ``setup``: ``data``, ``split``, ``manifest``, ``texts`` (what stands before the student
    token), ``kc_texts`` and ``kc_prefixes`` (what a head that knows KCs by their texts reads: their
    names or, with descriptions, those; and its tokens).

    Args:
        source: A folder of the plain format or of another project, see
            :mod:`lightning_suite.datamodules.cold_start_formats`; or
            ``package:pydataset/VerbAgg`` or ``package:pydataset/epi``.
        format: Of the folder; ``auto`` tells it by its files.
        split: What is new in the test: ``random`` answers, an ``exercise``, a ``kc``, a
            ``domain``, or a ``student``.
        folds: The test is one of so many parts.
        fold: Which one, from 0.
        val_fraction: Share of the rest that is cut off for validation, in the same way: of the
            exercises, KCs, domains or students, and one at least.
        val_split: ``same``; or, with ``split`` ``kc`` or ``domain``, ``exercise``: validate on new
            exercises of KCs that are trained on. A whole domain of three is much to give away.
        split_seed: Other parts for other seeds.
        test_source: Test on these answers instead: an ``interactions.csv``, or a folder of the
            same format with exercises of its own. All students must be known.
        oracle_fraction: Share of the test's answers that is set apart (from any model) as
            ``oracle``, for an upper bound.
        train_on_oracle: Train on them, too. Such a model is tested only by a data module that says
            so itself, and ``lmcd_scores`` and the report name it: its test is not cold.
        support: With ``split: student``: answers of each new student to attach them from.
        new_students: An ``interactions.csv`` of students who came after training, to attach them
            from (``AttachNewStudentsCallback``); they are the last of ``student_ids``.
        repeats: What to do with a second answer of a student to an exercise.
        text: What stands before the student: ``raw`` text; the text with ``kc_names``; the
            ``diffused`` description; or ``both``, text and description. KCs likewise, for a head
            that knows them by their texts.
        descriptions: What ``lightning-suite diffuse`` wrote, for ``diffused`` and ``both``.
        system: The sentence before the text.
        tokenizer: A folder or Hub name, ``package:NAME``, a ``.gguf`` file, or ``bytes``. None
            takes that of the module's ``pretrained`` model.
        max_length: Most tokens before the student; a longer text is an error, not cut.
        students_per_exercise: Most answers of one exercise in a batch (and rank).
        exercises_per_batch: Exercises a batch (and rank).
        num_workers: Worker processes. The tokens lie in memory: 0 is usually the fastest.
        seed: Order of the training batches.

    Raises:
        SuiteError: An option is out of range (here); data is wrong or leaks (in ``setup``).
    """

    data: ResponseData
    split: Split
    manifest: dict[str, Any]
    new_student_ids: list[str]  # the last of student_ids
    texts: list[str]
    kc_texts: list[str]
    kc_prefixes: dict[str, Tensor]

    def __init__(
        self,
        source: str = "package:pydataset/VerbAgg",
        format: Literal[
            "auto", "plain", "lmcd", "educdm", "edustudio", "inscd", "xes3g5m"
        ] = "auto",
        split: Literal["random", "exercise", "kc", "domain", "student"] = "exercise",
        folds: int = 5,
        fold: int = 0,
        val_fraction: float = 0.1,
        val_split: Literal["same", "exercise"] = "same",
        split_seed: int = 0,
        test_source: str | None = None,
        oracle_fraction: float = 0.0,
        train_on_oracle: bool = False,
        support: int = 0,
        new_students: str | None = None,
        repeats: Literal["refuse", "first", "last"] = "refuse",
        text: Literal["raw", "kc_names", "diffused", "both"] = "raw",
        descriptions: str | None = None,
        system: str = SYSTEM,
        tokenizer: str | None = None,
        max_length: int = 1024,
        students_per_exercise: int = 64,
        exercises_per_batch: int = 2,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("max_length", max_length, 2),
            ("students_per_exercise", students_per_exercise, 1),
            ("exercises_per_batch", exercises_per_batch, 1),
            ("support", support, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise SuiteError(
                    f"ColdStartDataModule: {name} is {value}; it must be {least} or more."
                )
        for name, share in (("val_fraction", val_fraction), ("oracle_fraction", oracle_fraction)):
            if not 0 <= share < 1:
                raise SuiteError(f"ColdStartDataModule: {name} is {share}; it must be in [0, 1).")
        check_choice("text", text, TEXTS)
        if (text in ("diffused", "both")) != (descriptions is not None):
            raise SuiteError(
                f"ColdStartDataModule: text is {text} and descriptions is {descriptions}. "
                "Descriptions are for text: diffused or both; lightning-suite diffuse writes them."
            )
        self.save_hyperparameters()
        self.kc_prefixes = {}
        self._tokens: list[Tensor] = []
        self._pad = 0

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Refuse files that are not there; the command line asks before it loads a model."""
        check_sources(options)

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and tokenize everything."""
        if self._tokens:
            return
        self.data, self.split, self.new_student_ids = read_parts(self.hparams)
        self.manifest = manifest(
            self.data,
            self.split,
            folds=self.hparams["folds"],
            fold=self.hparams["fold"],
            split_seed=self.hparams["split_seed"],
            train_on_oracle=self.hparams["train_on_oracle"] and "oracle" in self.split.parts,
        )
        tokenizer = self._load_tokenizer()
        pad = tokenizer.pad_token_id
        self._pad = (tokenizer.eos_token_id if pad is None else pad) or 0
        h = self.hparams
        described, described_kcs = {}, {}
        if h["descriptions"]:
            written = h["descriptions"], self.data, self.split
            described, described_kcs = read_descriptions(*written), read_kc_descriptions(*written)
        self.texts = compose_texts(self.data, h["text"], h["system"], described)
        ids = [exercise.id for exercise in self.data.exercises]
        self._tokens = encode_texts(tokenizer, ids, self.texts, h["max_length"])
        trained = self.data.exercise[self.split.parts["train"]].unique().tolist()
        self.manifest["tokens"] = tokens_digest({ids[e]: self._tokens[e] for e in trained})
        self.kc_texts = compose_kc_texts(self.data, h["text"], described_kcs)
        if self.kc_texts:
            encoded = encode_texts(tokenizer, self.kc_ids, self.kc_texts, h["max_length"])
            self.kc_prefixes = pad_tokens(encoded, self._pad)
        if stage == "fit":
            _caution(thin_cautions(self.data, self.split))
        counts = ", ".join(f"{name} {len(part):,}" for name, part in self.split.parts.items())
        rank_zero_info(
            f"ColdStartDataModule: {len(self.data.students):,} students, "
            f"{len(self.data.exercises):,} exercises, {len(self.data.kcs):,} KCs; answers: {counts}"
        )

    @property
    def student_ids(self) -> list[str]:
        """The id of each row of the students' table."""
        return self.data.students

    @property
    def kc_ids(self) -> list[str]:
        """The id of each column of ``kcs``."""
        return [kc.id for kc in self.data.kcs]

    def part(self, name: str) -> AnswerSamples:
        """Return the answers of ``train``, ``val``, ``test``, ``oracle`` or ``support``."""
        rows = self.split.parts.get(name, torch.zeros(0, dtype=torch.int64))
        if name == "train" and self.hparams["train_on_oracle"] and "oracle" in self.split.parts:
            rows = torch.cat([rows, self.split.parts["oracle"]])
        data = self.data
        return AnswerSamples(
            self._tokens,
            self._pad,
            data.q_matrix,
            data.student[rows],
            data.exercise[rows],
            data.correct[rows],
        )

    def train_dataloader(self) -> ResumableLoader[Batch]:
        """Return the training batches, shuffled; with ``weight`` where sizes are unequal."""
        loader = self._loader(samples := self.part("train"), self.hparams["seed"])
        sampler: Any = loader.sampler
        samples.batch_size = None if sampler.alike else sampler.mean_size
        return loader

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Any]]:
        """Return the validation batches, or none."""
        return self._loader(self.part("val")) if "val" in self.split.parts else no_loaders()

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches."""
        return self._loader(self.part("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return every student with every exercise, answered (``correct``) or not (NaN)."""
        data = self.data
        students, exercises = len(data.students), len(data.exercises)
        correct = torch.full((exercises, students), torch.nan)
        correct[data.exercise, data.student] = data.correct
        every = AnswerSamples(
            self._tokens,
            self._pad,
            data.q_matrix,
            torch.arange(students).repeat(exercises),
            torch.arange(exercises).repeat_interleave(students),
            correct.flatten(),
        )
        return self._loader(every)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the manifest of the split."""
        return {"manifest": self.manifest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained on another split, or on answers of the oracle.

        One whose training exercises were read with other texts is warned of.
        """
        check_oracle(state_dict["manifest"], self.manifest)
        theirs, ours = state_dict["manifest"]["sha256"], self.manifest["sha256"]
        # how many answers students are attached from is no matter of training
        alike = {name: state_dict["manifest"][name] == self.manifest[name] for name in _SAME}
        students = self.manifest["kind"] == "student" and all(alike.values())
        parts = ("train",) if students else ("train", "val", "test")
        if self.manifest["train_on_oracle"]:
            parts = (*parts, "oracle")
        different = [n for n in parts if theirs.get(n) != ours.get(n)]
        if different:
            raise SuiteError(
                f"the model was made with another split: {' and '.join(different)} have other "
                f"answers (there: fold {state_dict['manifest']['fold']} of "
                f"{state_dict['manifest']['folds']}, {state_dict['manifest']['kind']}). "
                "Answers that it was trained on could be in this test."
            )
        if state_dict["manifest"].get("tokens") not in (None, self.manifest["tokens"]):
            rank_zero_warn(
                "ColdStartDataModule: the model was trained with other texts of the same "
                "exercises: it reads what it has not learnt to read unless text, descriptions, "
                "system, tokenizer and exercises.csv are those of the training."
            )

    def _load_tokenizer(self) -> Any:
        name = self.hparams["tokenizer"]
        if name == "bytes":
            return ByteTokenizer()
        if name is None:
            module = getattr(self.trainer, "lightning_module", None)
            name = getattr(module, "hparams", {}).get("pretrained")
        if name is None:
            raise SuiteError(
                "ColdStartDataModule: tokenizer is not given, and there is no module with a "
                "pretrained model to take it from. Set tokenizer: a folder, a Hub name, "
                "package:NAME or 'bytes'."
            )
        return load_tokenizer(name)

    def _loader(self, samples: AnswerSamples, seed: int | None = None) -> ResumableLoader[Batch]:
        sampler = ExerciseBatches(
            samples.exercise,
            self.hparams["students_per_exercise"],
            self.hparams["exercises_per_batch"],
            ranks=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            seed=seed,
        )
        return sampler_loader(samples, sampler, num_workers=self.hparams["num_workers"])


@rank_zero_only
def _caution(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        _log.warning("ColdStartDataModule: %s", sentence)
