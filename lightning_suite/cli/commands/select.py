"""``lightning-suite select``."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_suite.cli.selecting import (
    SCORE_COLUMN,
    Source,
    changed_rows,
    output_path,
    read_scores,
    read_source,
    write_rows,
)
from lightning_suite.errors import MissingExtraError, SuiteError, did_you_mean
from lightning_suite.files import write_json
from lightning_suite.resofilter.published import as_published, resofilter_selection
from lightning_suite.resofilter.selection import (
    Selection,
    exact_share,
    length_strata,
    score_column,
    select_from_table,
    usable_scores,
)
from lightning_suite.run_folder import RunFolder

CHANGED = "content_changed"

_REASONS = {
    "not_scored": ": not in the scores; added since, or without an id column and changed since; "
    "score the data again",
}


def run(
    scores: str,
    keep: float | str = 0.5,
    by: str = "adam1_mean_abs",
    order: Literal["lowest", "highest", "band", "random"] = "lowest",
    layers: str = "last:3",
    module: str = "all",
    strata: str | None = None,
    seed: int = 0,
    compat: Literal["resofilter"] | None = None,
    data: str | None = None,
    out: str | None = None,
    force: bool = False,
) -> int:
    """Keep a share of the scored samples, and write them as they were in the data.

    The rows are written in the form of their source (.jsonl, .json, .parquet, a folder of the
    datasets library) and in its order, each with its score and its sample_id: its id in the scores
    (of equal ids that were numbered: id#2). So the file is a source for InstructionDataModule.
    What was done is written beside it (….selection.json). Samples without a score (no label
    tokens, an empty answer, values that are not finite, not in the scores, another text than the
    one that was scored under that id) are never kept, and counted.

    Args:
        scores: Folder that `score` wrote.
        keep: Share to keep, above 0 and up to 1, or such as 50%; int(N · (1 - keep)) samples go.
        by: A feature that was scored, or random, loss, perplexity, ifd, length, label_length.
        order: Which to keep; band drops as many from both ends.
        layers: Whose mean is the score: all, last:3 (of fewer layers, all), first:2, or numbers
            such as 20,25.
        module: Which modules' scores, where several were watched.
        strata: Take the same share of each group: length:4 (quarters by length), or a column of
            the data.
        seed: For random.
        compat: resofilter: what the authors' script keeps. The lowest mean over the last three
            layers' up_proj, of the first sample of each prompt (which, where it has no score, is
            not replaced by the next). Refuses other constants. With --by adam1_mean_abs_rounded
            the script's float32 rounding is in the ranks, too.
        data: The data, if not where they were; default: where `score` read them.
        out: File to write, or a name without suffix for a folder of the datasets library; default:
            kept with the source's suffix, in the folder of the scores.
        force: Overwrite the file if it exists.

    Example:
        lightning-suite select runs/scores --keep 0.5
        lightning-suite select runs/scores --keep 0.5 --by random --out random_half.jsonl
        lightning-suite select runs/scores --keep 0.7 --order band --strata length:4
        lightning-suite select runs/scores --keep 0.25 --compat resofilter --out quarter.parquet
    """
    keep = float(exact_share(keep))
    folder = Path(scores)
    table, manifest = read_scores(folder)
    source = read_source(folder, data)
    target = output_path(folder, source, out)
    if target.exists() and not force:
        raise SuiteError(f"{target} exists. Choose another --out, or add --force to overwrite it.")
    places = {sample_id: row for row, sample_id in enumerate(table["sample_id"].tolist())}
    # rows of the data that are in the scores, in the data's order: of equal scores the first goes
    rows = [row for row, sample_id in enumerate(source.ids) if sample_id in places]
    if not rows:
        raise SuiteError(
            f"{source.name}: none of its {len(source.ids):,} ids is in {scores}. Give the data "
            "that were scored with --data."
        )
    joined = len(rows)
    changed = _refuse_changed(folder, source, rows)
    rows = [row for row in rows if row not in changed]
    chosen = [places[source.ids[row]] for row in rows]
    ordered = {name: values[chosen] for name, values in table.items()}
    repeated = 0
    if compat is not None:
        as_published(
            manifest,
            int(max(table.get("n_tokens", [0]))),
            by=by,
            order=order,
            layers=layers,
            module=module,
            strata=strata,
        )
        module = "up_proj" if module == "all" else module
        score = score_column(ordered, by, layers=layers, module=module)
        repeated = len(source.prompts) - len(set(source.prompts))
        result = _published(ordered, score, source.prompts, rows, keep)
    else:
        result = select_from_table(
            ordered,
            keep,
            by=by,
            order=order,
            layers=layers,
            module=module,
            strata=None if strata is None else _groups(strata, ordered, source, rows),
            seed=seed,
        )
    kept = [rows[i] for i in result.kept.tolist()]
    kept_scores = [float(result.score[i]) for i in result.kept.tolist()]
    write_rows(target, source, kept, kept_scores)
    without = {
        **result.excluded,
        CHANGED: len(changed),
        "not_scored": len(source.ids) - joined,
    }
    done = {
        "scores": str(folder),
        "data": source.name,
        "keep": keep,
        "by": by,
        "order": order,
        "layers": layers,
        "module": module,
        "strata": strata,
        "seed": seed,
        "compat": compat,
        "repeated_prompts": repeated,
        "rows": len(source.ids),
        "kept": len(kept),
        "without_score": without,
        "lowest_kept": min(kept_scores),
        "highest_kept": max(kept_scores),
        "manifest": manifest,
    }
    write_json(target.with_suffix(".selection.json"), done)
    print(f"{len(kept):,} of {len(source.ids):,} rows kept; each has {SCORE_COLUMN}")
    for status, count in without.items():
        if count:
            print(f"{count:,} have no score ({status}{_REASONS.get(status, '')}) and are not kept")
    if repeated:
        print(f"{repeated:,} repeat the prompt of an earlier row, and only the first is looked at")
    print(target)
    _draw(folder, by, result)
    return 0


def _refuse_changed(folder: Path, source: Source, rows: list[int]) -> set[int]:
    """Return the rows that say something else than what was scored, and say so.

    Raises:
        SuiteError: All of them do.
    """
    changed = changed_rows(folder, source, rows)
    if changed is None:
        print(
            f"warning: {folder} does not say what each sample said when it was scored (it was made "
            "by an earlier release), so rows are joined to scores by id alone. If the data have "
            "changed since, score them again.",
            file=sys.stderr,
        )
        return set()
    if not changed:
        return set()
    first = source.ids[changed[0]]
    text = (
        f"{source.name}: {len(changed):,} of {len(rows):,} rows say something else than what was "
        f"scored under their id; the first is {first!r}, row {changed[0] + 1}. "
    )
    if len(changed) == len(rows):
        raise SuiteError(
            f"{text}Give the data that were scored with --data, or score these into a new folder."
        )
    print(
        f"warning: {text}They have no score and are not kept; to score them, score the data again "
        "into a new folder.",
        file=sys.stderr,
    )
    return set(changed)


def _published(
    table: dict[str, Any], score: Any, prompts: list[str], rows: list[int], keep: float
) -> Selection:
    """Select among all prompts of the data; ``rows`` says which of them the table is about."""
    score, excluded = usable_scores(table, score)
    everywhere = np.full(len(prompts), np.nan)
    everywhere[rows] = score
    kept = resofilter_selection(everywhere, prompts, str(1 - Fraction(str(keep))))
    return Selection(np.searchsorted(rows, kept), score, excluded)


def _groups(strata: str, table: dict[str, Any], source: Source, rows: list[int]) -> list[Any]:
    name, _, number = strata.partition(":")
    if name == "length" and number.isdecimal() and int(number) > 0:
        if "n_tokens" not in table:
            raise SuiteError("strata=length: the scores have no column n_tokens.")
        return length_strata(table["n_tokens"], int(number))
    columns = list(dict.fromkeys(column for row in source.rows for column in row))
    if strata not in columns:
        raise SuiteError(
            f"strata={strata!r}: is neither length:4 nor a column of {source.name}."
            f"{did_you_mean(strata, columns)} Columns: {', '.join(columns)}."
        )
    return [json.dumps(source.rows[row].get(strata), sort_keys=True, default=str) for row in rows]


def _draw(folder: Path, by: str, result: Selection) -> None:
    """Show the cut in the report of the scores."""
    from lightning_suite.report.page import write_report  # noqa: PLC0415
    from lightning_suite.report.resofilter_figures import add_histogram  # noqa: PLC0415

    kept = np.zeros(len(result.score), dtype=bool)
    kept[result.kept] = True
    try:
        add_histogram(RunFolder(folder), by, result.score, kept)
        print(write_report(folder))
    except MissingExtraError as err:
        print(f"no figure: {err}", file=sys.stderr)
