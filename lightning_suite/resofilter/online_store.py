"""Where the scores of a training are kept: a store in which a resumed run repeats no batch."""

from __future__ import annotations

from pathlib import Path

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.resofilter.manifest import manifest_difference, read_manifest
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
            SuiteError: The training begins and the folder holds rows; or the other folder's
                scores were made in another way.
        """
        if batches:
            moved = before is not None and before.resolve() != self.folder.resolve()
            self.keep_batches(batches, before if moved else None)
        elif shard_files(self.folder):
            raise SuiteError(
                f"{self.folder}: holds the rows of another run. Give another folder, or go on "
                "with that run from its checkpoint."
            )

    def keep_batches(self, before: int, source: str | Path | None = None) -> None:
        """Keep the rows of the batches that a resumed run does not train on again.

        Args:
            before: Rows of this batch and later ones go.
            source: Another folder of online scores, to take the rows from; its own files stay as
                they are. None takes this folder's, and rewrites the shards that lose rows.

        Raises:
            SuiteError: The other folder's scores were made in another way.
        """
        compute = import_extra("pyarrow.compute", "llm")
        if source is not None and (
            changes := manifest_difference(read_manifest(source), read_manifest(self.folder))
        ):
            raise SuiteError(
                f"{source}: the run that is continued made its scores in another way:\n  "
                + "\n  ".join(changes)
            )
        for path in shard_files(source or self.folder):
            table = read_shard(path)
            if "batch" not in table.column_names:
                raise SuiteError(f"{path}: says of no row in which batch it was.")
            kept = table.filter(compute.less(table["batch"], before))
            target = self.folder / SHARDS / path.name
            if len(kept) == len(table) and target.exists():
                continue
            if len(kept):
                write_table(kept, target)
            else:
                target.unlink(missing_ok=True)
        self._number()
