"""Knowledge diffusion: describe exercises and KCs by what sets them apart, once, before training.

Source: arXiv 2505.21239, phase 1. Its prompts are not published; these are ours. A prompt shows
example exercises of the training part alone, so that no description knows an exercise of the test.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from lightning_suite.errors import SuiteError
from lightning_suite.json_text import load_json
from lightning_suite.lmcd.diffusion_prompts import (
    TEMPLATE_VERSION,
    Distractor,
    Example,
    Request,
    render_prompt,
    render_sentences,
)


class Catalogue(Protocol):
    """Exercises and KCs, such as the data of ``ColdStartDataModule``."""

    @property
    def exercises(self) -> Sequence[Any]:
        """With ``id``, ``text`` and ``kcs`` (ids)."""

    @property
    def kcs(self) -> Sequence[Any]:
        """With ``id``, ``name``, ``parent`` and ``domain``."""


class Generator(Protocol):
    """Writes descriptions; ``identity`` says everything that its words depend on."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and decoding, as plain values: part of the cache's key."""

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """Return one description a request."""


class TemplateGenerator:
    """Sentences by rule: no language model, the same on every machine."""

    identity: Mapping[str, Any] = {"model": "template"}

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """Return one description a request."""
        return [render_sentences(request) for request in requests]


class FunctionGenerator:
    """Any function from prompts to texts, such as a client of a service.

    Args:
        function: Returns a list of one text a prompt, in their order.
        identity: Names the model and how it decodes; another identity is asked anew.
    """

    def __init__(
        self, function: Callable[[list[str]], list[str]], identity: Mapping[str, Any]
    ) -> None:
        self.function, self.identity = function, dict(identity)

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """Return one description a request."""
        return _checked(self.function([render_prompt(r) for r in requests]), requests)


class LanguageModelGenerator:
    """A Hugging Face causal LM with greedy decoding.

    Args:
        model: In evaluation mode.
        tokenizer: Its chat template is used where it has one.
        name: What the model was loaded from.
        max_new_tokens: Longest description.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, max_new_tokens: int = 120) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens = max_new_tokens
        self.identity: Mapping[str, Any] = {
            "model": name,
            "dtype": str(model.dtype),
            "decoding": {"greedy": True, "max_new_tokens": max_new_tokens},
        }

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """Return one description a request, one after the other: padding changes last digits."""
        texts = []
        for request in requests:
            prompt = render_prompt(request)
            if self.tokenizer.chat_template:
                prompt = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            ids = ids["input_ids"].to(self.model.device)
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            texts.append(" ".join(text.split()))
        return texts


class DescriptionCache:
    """A JSON-lines file of all descriptions ever written; a killed run loses the last at most.

    Args:
        path: Made when the first description is kept.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                whole = self.path.read_bytes()
            except OSError as err:
                raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
            end = whole.rfind(b"\n") + 1
            if end < len(whole):  # killed while it wrote its last line
                with self.path.open("r+b") as file:
                    file.truncate(end)
            for number, line in enumerate(whole[:end].splitlines(), 1):
                try:
                    row = load_json(line)
                    if not isinstance(row["key"], str) or not isinstance(row["text"], str):
                        raise TypeError("key and text must be texts")
                    self._rows[row["key"]] = row
                except (ValueError, KeyError, TypeError) as err:
                    raise SuiteError(f"{path}, line {number}: is not a description: {err}") from err

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> str | None:
        """Return the text under ``key``, if there is one."""
        row = self._rows.get(key)
        return None if row is None else str(row["text"])

    def put(self, row: Mapping[str, Any]) -> None:
        """Append a row with ``key`` and ``text``; it is on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[str(row["key"])] = dict(row)


def make_requests(
    data: Catalogue, train: Sequence[str], *, distractors: int = 3, examples: int = 2
) -> list[Request]:
    """Collect what the description of every KC and exercise is made from.

    Distractors are siblings in the tree of KCs, then KCs of the same domain, then others, but none
    of the target's own name: words cannot tell those two apart. Examples of a KC are its own
    exercises; of an exercise, the training exercises that share most KCs with it.

    Args:
        data: All exercises and KCs.
        train: Ids of the exercises that may be shown.
        distractors: KCs to tell the target from.
        examples: Exercises of the target and of each distractor.
    """
    names = {kc.id: kc.name for kc in data.kcs}
    allowed = set(train)
    needing = {e.id: set(e.kcs) for e in data.exercises}
    shown = [
        Example(e.id, e.text, _unique(names[kc] for kc in e.kcs))
        for e in data.exercises
        if e.id in allowed
    ]
    requests = []
    for kc in data.kcs:
        others = [k for k in data.kcs if k.name != kc.name]
        others.sort(key=lambda k: (not kc.parent or k.parent != kc.parent, k.domain != kc.domain))
        requests.append(
            Request(
                "kc",
                kc.id,
                kc.name,
                (kc.name,),
                tuple(e for e in shown if kc.id in needing[e.id])[:examples],
                _distractors(
                    _unique(k.name for k in others)[:distractors], shown, {kc.name}, examples
                ),
            )
        )
    for exercise in data.exercises:
        own = {names[kc] for kc in exercise.kcs}
        near = [e for e in shown if e.id != exercise.id and e.text != exercise.text]
        near.sort(key=lambda e: len(own ^ set(e.kcs)))
        related = {kc.parent for kc in data.kcs if kc.id in exercise.kcs and kc.parent}
        others = [kc for kc in data.kcs if kc.name not in own]
        others.sort(key=lambda kc: kc.parent not in related)
        requests.append(
            Request(
                "exercise",
                exercise.id,
                exercise.text,
                _unique(names[kc] for kc in exercise.kcs),
                tuple(near[:examples]),
                _distractors(_unique(kc.name for kc in others)[:distractors], near, own, examples),
            )
        )
    return requests


def diffuse(
    requests: Sequence[Request],
    generator: Generator,
    cache: DescriptionCache,
    *,
    train: Sequence[str],
    batch: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each request; new ones are cached.

    A row has ``kind``, ``id``, ``of`` (what is described), ``text`` and ``examples``.

    Args:
        requests: From :func:`make_requests`.
        generator: Asked for what the cache does not have.
        cache: Goes on where an earlier run stopped.
        train: Ids of the exercises that may be shown.
        batch: Requests that the generator is given at a time.

    Raises:
        SuiteError: A request shows an exercise that is not in ``train``; or the generator returned
            another number of texts than it was asked for, or one that is empty or no text: then
            nothing of that batch is kept.
    """
    allowed = set(train)
    for request in requests:
        leaked = [e for e in request.shown if e not in allowed]
        if leaked:
            raise SuiteError(
                f"leak: the prompt for {request.kind} {request.id!r} shows exercise "
                f"{leaked[0]!r}, which is not in the training part."
            )
    keys = [request_key(request, generator) for request in requests]
    for start in range(0, len(requests), batch):
        part = list(zip(requests[start : start + batch], keys[start : start + batch], strict=True))
        missing = [(request, key) for request, key in part if cache.get(key) is None]
        asked = [request for request, _ in missing]
        # all of them before the first is kept: one that is lost would shift those behind it
        texts = _checked(generator(asked), asked) if asked else []
        for (request, key), text in zip(missing, texts, strict=True):
            cache.put(
                {
                    "key": key,
                    "kind": request.kind,
                    "id": request.id,
                    "text": text,
                    "template": TEMPLATE_VERSION,
                    **generator.identity,
                }
            )
        for request, key in part:
            yield {
                "kind": request.kind,
                "id": request.id,
                "of": request.text,
                "text": cache.get(key),
                "examples": request.shown,
            }


def _checked(texts: Any, requests: Sequence[Request]) -> list[str]:
    """Return the texts without blanks around them, if there is one for each request."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise SuiteError(
            f"the generator returned {type(texts).__name__}; expected a list of "
            f"{len(requests)} texts, one a prompt in their order. Nothing of it is kept."
        )
    if len(texts) != len(requests):
        raise SuiteError(
            f"the generator returned {len(texts)} texts for {len(requests)} prompts (first that of "
            f"{requests[0].kind} {requests[0].id!r}): which is whose cannot be told. It must "
            "return one a prompt, in their order. Nothing of it is kept."
        )
    for request, text in zip(requests, texts, strict=True):
        if not isinstance(text, str):
            raise SuiteError(
                f"the generator returned {type(text).__name__} for {request.kind} {request.id!r}; "
                "expected a text. Nothing of it is kept."
            )
        if not text.strip():
            raise SuiteError(f"the generator wrote nothing for {request.kind} {request.id!r}.")
    return [text.strip() for text in texts]


def request_key(request: Request, generator: Generator) -> str:
    """Return the cache key: a hash of model, decoding, template version and all inputs."""
    parts = [dict(generator.identity), TEMPLATE_VERSION, request]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _distractors(
    names: Sequence[str], shown: Sequence[Example], own: set[str], examples: int
) -> tuple[Distractor, ...]:
    """Pair each KC with exercises that need it and, if there are some, none of ``own``."""
    chosen = []
    for name in names:
        having = sorted((e for e in shown if name in e.kcs), key=lambda e: len(own & set(e.kcs)))
        chosen.append(Distractor(name, tuple(having[:examples])))
    return tuple(chosen)
