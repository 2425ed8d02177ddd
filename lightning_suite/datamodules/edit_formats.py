"""The forms in which data sets of edits come, each read as an ``Edit``.

What a data set offers as other wordings of an edit goes into ``rephrases`` (evaluation); only the
plain form has ``paraphrases``, which are given to the method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_suite.datamodules.fields import FieldError, Fields, kind_of, missing
from lightning_suite.scen.edits import Edit, LocalityPrompt

_NQ = "nq question: "  # how the prompts of ZsRE from Natural Questions begin


@dataclass(frozen=True)
class EditFormat:
    """One form of edits.

    Attributes:
        name: As the user writes it.
        keys: Columns that every row has, by which the form is known.
        read: Makes an edit of a row, or None where the data marks the row as none.
        optional: Columns that are read where they are there; shown beside misspelt ones.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Fields], Edit | None]
    optional: tuple[str, ...] = ()


def prompt_hash(prompt: str) -> str:
    """Return 16 hexadecimal digits that depend on the prompt alone: the id of an edit without."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _plain(row: Fields) -> Edit:
    return Edit(
        id=row.find("id") or prompt_hash(row.text("prompt")),
        prompt=row.text("prompt"),
        target=row.text("target"),
        subject=row.find("subject") or None,
        aliases=row.texts("aliases"),
        paraphrases=row.texts("paraphrases"),
        rephrases=row.texts("rephrases"),
        locality=tuple(
            _locality(item, f"locality[{number}]", "prompt", "answer")
            for number, item in enumerate(row.items("locality"))
        ),
    )


def _plain_with_aliases(row: Fields) -> Edit:
    edit = _plain(row)
    return Edit(**{**vars(edit), "rephrases": (*edit.rephrases, *row.texts("alias_rephrases"))})


def _zsre(row: Fields) -> Edit | None:
    """ZsRE as MEND prepared it. Rows without a new answer are in the published file: no edits."""
    if row.find("alt") == "":
        return None
    prompt = row.text("src")
    kept = row.find("loc")
    locality = (
        (LocalityPrompt(kept.removeprefix(_NQ), "random", row.find("loc_ans")),) if kept else ()
    )
    return Edit(
        id=prompt_hash(prompt),
        prompt=prompt,
        target=row.text("alt"),
        subject=row.find("subject") or None,
        rephrases=row.texts("rephrase"),
        locality=locality,
    )


def _counterfact(row: Fields) -> Edit:
    """CounterFact (Meng et al., 2022). Its prompts are beginnings of sentences."""
    rewrite = row.part("requested_rewrite")
    subject, target = rewrite.text("subject"), rewrite.part("target_new").text("str")
    if "{}" not in rewrite.text("prompt"):
        raise FieldError("requested_rewrite.prompt has no {}, where the subject goes")
    prompt = rewrite.text("prompt").replace("{}", subject)
    # A neighbour shares the old answer; an attribute prompt is about a fact with the new one.
    kinds = (
        ("neighborhood_prompts", "neighborhood", rewrite.part("target_true").find("str")),
        ("attribute_prompts", "same_object", target),
    )
    return Edit(
        id=row.find("case_id") or prompt_hash(prompt),
        prompt=prompt,
        target=target,
        subject=subject,
        rephrases=row.texts("paraphrase_prompts"),
        locality=tuple(
            _locality(item, f"{column}[{number}]", "prompt", None, kind=kind, answer=answer)
            for column, kind, answer in kinds
            for number, item in enumerate(row.items(column))
        ),
    )


def _knowedit(row: Fields) -> Edit:
    """KnowEdit (arXiv 2401.01286): its ZsRE, WikiData and WikiBio files.

    Portability by reasoning asks for consequences, which no edit here promises: not read.
    """
    prompt = row.text("prompt", "text")
    kinds = {"Relation_Specificity": "same_subject", "Forgetfulness": "forgetfulness"}
    aliases = row.part("portability").items("Subject_Aliasing")
    asked_with_alias = tuple(
        text
        for number, item in enumerate(aliases)
        for text in _object(item, f"portability.Subject_Aliasing[{number}]").texts("prompt")
    )
    return Edit(
        id=row.find("id") or prompt_hash(prompt),
        prompt=prompt,
        target=_first(row, "target_new", "labels"),
        subject=row.find("subject", "concept") or None,
        rephrases=(*row.texts("rephrase_prompt", "rephrase"), *asked_with_alias),
        locality=tuple(
            _locality(item, f"locality.{column}[{number}]", "prompt", "ground_truth", kind=kind)
            for column, kind in kinds.items()
            for number, item in enumerate(row.part("locality").items(column))
        ),
    )


def _wikibigedit(row: Fields) -> Edit:
    """WikiBigEdit (arXiv 2503.05683). Its multi-hop questions ask for consequences: not read."""
    prompt, kept = row.text("update"), row.find("loc")
    locality = (LocalityPrompt(kept, "unchanged", row.find("loc_ans")),) if kept else ()
    return Edit(
        id=row.find("id") or prompt_hash(prompt),
        prompt=prompt,
        target=row.text("ans"),
        subject=row.find("subject") or None,
        rephrases=row.texts("rephrase", "personas"),
        locality=locality,
    )


def _qaedit(row: Fields) -> Edit:
    """QAEdit (arXiv 2502.11177)."""
    prompt = row.text("prompt")
    return Edit(
        id=row.find("id") or prompt_hash(prompt),
        prompt=prompt,
        target=row.text("target"),
        subject=row.find("subject") or None,
        rephrases=row.texts("rephrase"),
        locality=tuple(
            _locality(item, f"locality[{number}]", "loc", "loc_ans")
            for number, item in enumerate(row.items("locality"))
        ),
    )


def _scen(row: Fields) -> Edit:
    """The files of the method's authors. They evaluate the first three rephrases."""
    prompt = row.text("Q")
    return Edit(
        id=row.find("id") or prompt_hash(prompt),
        prompt=prompt,
        target=row.text("A"),
        rephrases=row.texts("rephrases")[:3],
    )


PLAIN = EditFormat(
    "plain",
    ("prompt", "target"),
    _plain,
    ("id", "subject", "aliases", "paraphrases", "rephrases", "locality", "alias_rephrases"),
)
PLAIN_WITH_ALIASES = EditFormat("plain", PLAIN.keys, _plain_with_aliases, PLAIN.optional)

# By name; ``auto`` takes the first whose columns are there.
EDIT_FORMATS = {
    form.name: form
    for form in (
        EditFormat("counterfact", ("requested_rewrite",), _counterfact),
        EditFormat("wikibigedit", ("update", "ans"), _wikibigedit),
        EditFormat("zsre", ("src", "alt"), _zsre),
        EditFormat("scen", ("Q", "A"), _scen),
        EditFormat("knowedit", ("target_new",), _knowedit),
        EditFormat("knowedit_wikibio", ("text", "labels", "concept"), _knowedit),
        EditFormat("qaedit", ("prompt", "target", "rephrase"), _qaedit),
        PLAIN,
    )
}


def _locality(
    item: Any,
    where: str,
    prompt_key: str,
    answer_key: str | None,
    *,
    kind: str = "random",
    answer: str | None = None,
) -> LocalityPrompt:
    """Read an object, or the prompt alone; without ``answer_key`` the answer is known."""
    if isinstance(item, str):
        item = {prompt_key: item}
    fields = _object(item, where)
    if answer_key is not None:
        answer = _first_or_none(item.get(answer_key))
    return LocalityPrompt(_first(fields, prompt_key), fields.find("kind") or kind, answer)


def _object(item: Any, where: str) -> Fields:
    if not isinstance(item, Mapping):
        raise FieldError(f"{where} is {kind_of(item)}, expected an object")
    return Fields(item, f"{where}.")


def _first(row: Fields, *names: str) -> str:
    """Return the first of several answers that count as right, or the only one."""
    found = row.texts(*names)
    return found[0] if found else row.text(*names)


def _first_or_none(value: Any) -> str | None:
    while isinstance(value, list):
        value = value[0] if value else None
    return None if missing(value) else str(value).strip()
