"""Edits for a language model, in groups."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from lightning_suite.datamodules.edit_sources import (
    SHIPPED,
    Repeated,
    check_source,
    read_edits,
    read_prompts,
)
from lightning_suite.datamodules.hf_datasets import HUB_PREFIX, load_hub_dataset
from lightning_suite.datamodules.loading import ResumableLoader, batch_loader
from lightning_suite.errors import SuiteError
from lightning_suite.scen.edits import Edit


class EditGroup:
    """A batch of edits: has a length, can be indexed and gone through.

    It is no list, because Lightning goes into lists and rebuilds the dataclasses that it finds,
    which frozen ones do not let it.

    Args:
        edits: At least one.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        self.edits = tuple(edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __getitem__(self, index: int) -> Edit:
        return self.edits[index]

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EditGroup) and self.edits == other.edits

    __hash__ = None  # type: ignore[assignment]


class EditDataModule(LightningDataModule):
    """Facts to be changed in a language model, with what shall change along and what shall not.

    Batches to train, validate and test on are groups of edits (:class:`EditGroup` of
    :class:`~lightning_suite.scen.edits.Edit`), in the data's own order; all three are the same
    edits, which a method is scored on after it has made them. Batches to predict on are lists of
    prompts. Several ranks share the edits out, each edit to one rank.

    After ``setup``: ``edits``, all of them in order.

    Args:
        source: One of

            * ``"counterfacts"``: the 416 edits of public facts that come with the package;
            * a ``.jsonl``, ``.json`` or ``.parquet`` file, or a list of them;
            * a folder written by ``datasets``' ``save_to_disk``;
            * ``"hub:OWNER/NAME"`` or ``"hub:OWNER/NAME:CONFIG"``: a data set of the Hugging Face
              Hub, downloaded once.
        format: ``plain``: ``{prompt, target}`` and, where known, ``id``, ``subject``,
            ``aliases`` (other names of it), ``paraphrases`` (given to the method), ``rephrases``
            (kept for evaluation) and ``locality`` (``[{prompt, kind, answer}]``, or texts); or the
            form of a public data set:
            ``zsre`` (as MEND prepared it), ``counterfact``, ``knowedit`` (``knowedit_wikibio`` for
            its WikiBio), ``wikibigedit``, ``qaedit``, ``scen`` (the files of the method's
            authors). ``auto`` finds it by the columns.
        split: Of a data set that has several, such as ``"test"``.
        limit: Take only so many edits, the first ones.
        order_seed: Draw another order first; None keeps the data's.
        batch_size: Edits a group. Methods that train edits independently give the same result for
            any; a smaller one needs less memory.
        paraphrases: Take at most so many paraphrases of each edit, the first ones; 0 for none.
        alias_rephrases: Also evaluate rephrases that call the subject by another name, where the
            data has them apart (``counterfacts`` does).
        repeated: What to do with a prompt that is there more than once: ``refuse`` the data, or
            take the ``last``.
        prompts: What to predict on: a text file with one question a line, or a file of rows with
            ``prompt``. None takes the edits' own prompts.

    Raises:
        SuiteError: An option is out of range (here), or the data cannot be read (in ``setup``).

    Example:
        >>> from lightning_suite import EditDataModule
        >>> data = EditDataModule(limit=10, batch_size=4)
        >>> data.setup("fit")
        >>> [len(group) for group in data.train_dataloader()]
        [4, 4, 2]
    """

    edits: list[Edit]

    def __init__(
        self,
        source: str | list[str] = "counterfacts",
        format: str = "auto",
        split: str | None = None,
        limit: int | None = None,
        order_seed: int | None = None,
        batch_size: int = 32,
        paraphrases: int | None = None,
        alias_rephrases: bool = False,
        repeated: Repeated = "refuse",
        prompts: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("limit", limit, 1),
            ("batch_size", batch_size, 1),
            ("paraphrases", paraphrases, 0),
        ):
            if value is not None and value < least:
                raise SuiteError(f"EditDataModule: {name} is {value}; it must be {least} or more.")
        if source == []:
            raise SuiteError("EditDataModule: source is an empty list; name a file.")
        self.save_hyperparameters()
        self.source, self.format, self.split = source, format, split
        self.limit, self.order_seed = limit, order_seed
        self.batch_size = batch_size
        self.paraphrases, self.alias_rephrases = paraphrases, alias_rephrases
        self.repeated: Repeated = repeated
        self.prompts = prompts
        self.edits = []

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Refuse files that are not there or wrong; asked before a model is loaded."""
        given = {name: options[name] for name in ("format", "split", "repeated") if name in options}
        check_source(options.get("source") or SHIPPED, **given)
        if options.get("prompts") is not None:
            read_prompts(options["prompts"])

    def prepare_data(self) -> None:
        """Fill the Hub's cache, in one process only."""
        if isinstance(self.source, str) and self.source.startswith(HUB_PREFIX):
            load_hub_dataset(self.source)

    def setup(self, stage: str | None = None) -> None:
        """Read the edits."""
        if self.edits:
            return
        edits = read_edits(
            self.source,
            self.format,
            split=self.split,
            aliases=self.alias_rephrases,
            repeated=self.repeated,
        )
        if self.order_seed is not None:
            random.Random(self.order_seed).shuffle(edits)
        self.edits = [
            replace(edit, paraphrases=edit.paraphrases[: self.paraphrases])
            for edit in edits[: self.limit]
        ]
        name = self.source if isinstance(self.source, str) else ", ".join(self.source)
        rank_zero_info(f"{name}: {len(self.edits):,} of {len(edits):,} edits")

    def train_dataloader(self) -> ResumableLoader[EditGroup]:
        """Return the edits in groups, in order."""
        return self._groups()

    def val_dataloader(self) -> ResumableLoader[EditGroup]:
        """Return the same groups, to score."""
        return self._groups()

    def test_dataloader(self) -> ResumableLoader[EditGroup]:
        """Return the same groups, to score."""
        return self._groups()

    def predict_dataloader(self) -> DataLoader[list[str]]:
        """Return prompts, as lists of at most ``batch_size``."""
        if self.prompts is not None:
            return self._loader(_Prompts(read_prompts(self.prompts)))
        self.setup()
        return self._loader(_Prompts([edit.prompt for edit in self.edits]))

    def _groups(self) -> ResumableLoader[EditGroup]:
        self.setup()
        return self._loader(_Edits(self.edits))

    def _loader(self, items: _Edits | _Prompts) -> ResumableLoader[Any]:
        ranks = self.trainer.world_size if self.trainer else 1
        batches = group_indices(len(items), self.batch_size, ranks)
        return batch_loader(items, batches, seed=None, num_workers=0, trainer=self.trainer)


def group_indices(count: int, size: int, ranks: int = 1) -> list[list[int]]:
    """Cut ``count`` items into consecutive groups of at most ``size``.

    For several ranks the number of groups is a multiple of ``ranks``, and their sizes differ by one
    at most, so that no group has to come twice; for that a group may be one larger than ``size``.
    (With fewer items than ranks some must.)

    Args:
        count: Items.
        size: Most items a group.
        ranks: Processes that share the groups.

    Example:
        >>> group_indices(5, 2)
        [[0, 1], [2, 3], [4]]
        >>> group_indices(5, 2, ranks=2)
        [[0, 1], [2], [3], [4]]
    """
    if ranks == 1 or count < ranks:
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    groups = -(-count // size)
    groups = min(-(-groups // ranks) * ranks, count - count % ranks)
    small, larger = divmod(count, groups)
    starts = [group * small + min(group, larger) for group in range(groups + 1)]
    return [list(range(*bounds)) for bounds in pairwise(starts)]


class _Edits(Dataset[EditGroup]):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self.edits = edits

    def __len__(self) -> int:
        return len(self.edits)

    def __getitem__(self, indices: Sequence[int]) -> EditGroup:
        return EditGroup([self.edits[i] for i in indices])


class _Prompts(Dataset[list[str]]):
    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: Sequence[int]) -> list[str]:
        return [self.prompts[i] for i in indices]
