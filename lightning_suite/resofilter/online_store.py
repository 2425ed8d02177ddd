"""Where the scores of a training are kept: a store in which a resumed run repeats no batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.resofilter.manifest import manifest_difference, read_manifest
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import (
    SHARDS,
    ScoreStore,
    read_shard,
    shard_files,
    write_table,
)


class OnlineStore(ScoreStore):
    """A store whose rows say in which batch of the training they were made."""

    def go_on(self, batches: int, before: Path | None = None) -> None:
        """Prepare the folder for a training; on one rank, before the others write.

        Args:
            batches: On so many the training was before; their rows are kept, and later ones go.
            before: The folder of the run that is continued, where it may be another one.

        Raises:
            SuiteError: As :meth:`keep_batches`; or the training begins and the folder holds rows.
        """
        if batches:
            moved = before is not None and before.resolve() != self.folder.resolve()
            self.keep_batches(batches, before if moved else None)
        elif shard_files(self.folder):
            raise SuiteError(self._another_run())

    def keep_batches(self, before: int, source: str | Path | None = None) -> None:
        """Keep the rows of the batches that a resumed run does not train on again.

        Args:
            before: Rows of this batch and later ones go.
            source: Another folder of online scores, to take the rows from; its own files stay as
                they are. This folder may hold what an earlier attempt to go on there has left: of
                that, too, later batches go. None takes this folder's rows.

        Raises:
            SuiteError: The other folder's scores were made in another way, or this one holds the
                rows of a third run.
        """
        if source is not None:
            if changes := manifest_difference(read_manifest(source), read_manifest(self.folder)):
                raise SuiteError(
                    f"{source}: the run that is continued made its scores in another way:\n  "
                    + "\n  ".join(changes)
                )
            self._refuse_a_third_run(before, Path(source))
        for path in shard_files(self.folder):
            kept, whole = _earlier(path, before)
            if not len(kept):
                path.unlink()
            elif not whole:
                write_table(kept, path)
        for path in shard_files(source) if source is not None else ():
            kept, _ = _earlier(path, before)
            target = self.folder / SHARDS / path.name
            if len(kept) and not target.exists():
                write_table(kept, target)
        self._number()

    def _refuse_a_third_run(self, before: int, source: Path) -> None:
        """Check that what is here of earlier batches was copied from ``source``."""
        for path in shard_files(self.folder):
            here, _ = _earlier(path, before)
            there = source / SHARDS / path.name
            if len(here) and not (there.exists() and _same(here, _earlier(there, before)[0])):
                raise SuiteError(self._another_run())

    def _another_run(self) -> str:
        return (
            f"{self.folder}: holds the rows of another run. Give another folder, or go on with "
            "that run from its checkpoint."
        )


def _earlier(path: Path, before: int) -> tuple[Any, bool]:
    """Return a shard's rows of batches below ``before``, and whether these are all."""
    table = read_shard(path)
    if "batch" not in table.column_names:
        raise SuiteError(f"{path}: says of no row in which batch it was.")
    kept = table.filter(import_extra("pyarrow.compute", "llm").less(table["batch"], before))
    return kept, len(kept) == len(table)


def _same(one: Any, other: Any) -> bool:
    """Return whether two tables hold the same; what is not a number is the same as itself."""
    a, b = table_columns(one), table_columns(other)
    return a.keys() == b.keys() and all(
        np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in a
    )
