"""Planted noise: spoil a known share of the samples, to see which scores find them."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_suite.datamodules.instruction_sources import Example
from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.files import atomic_write

# `wrong_answer` chooses its samples first, because not every sample has a number.
KINDS = ("wrong_answer", "gibberish", "off_topic", "duplicate")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Spoilt:
    """What was done to one sample.

    Attributes:
        id: Of the sample.
        kind: One of ``KINDS``.
        prompt: Before.
        response: Before.
        source_id: The sample whose text it has got, if any.
    """

    id: str
    kind: str
    prompt: str
    response: str
    source_id: str | None = None


def plant_noise(
    examples: Sequence[Example], noise: Mapping[str, float], seed: int = 0
) -> tuple[list[Example], list[Spoilt]]:
    """Spoil some samples; their ids and places stay.

    ``wrong_answer``: the last number of the answer becomes another one, wherever it stands in the
    answer; samples without a number do not qualify. ``gibberish``: every letter and digit of the
    answer becomes a random one. ``off_topic``: the answer to another prompt. ``duplicate``: prompt
    and answer of another sample. No sample is spoilt twice, and texts are borrowed from samples
    that stay clean.

    Args:
        examples: Clean samples.
        noise: Share of the samples to spoil, by kind; together below 1.
        seed: Which, and how.

    Returns:
        The samples, and what was done, in their order.

    Raises:
        SuiteError: A kind is unknown, the shares are out of range, or too few samples qualify.
    """
    _check_noise(noise)
    draw = random.Random(f"noise {seed}")
    waiting = list(range(len(examples)))
    draw.shuffle(waiting)
    chosen: dict[int, str] = {}
    for kind in (k for k in KINDS if k in noise):
        count = round(noise[kind] * len(examples))
        usable = [
            i for i in waiting if kind != "wrong_answer" or _NUMBER.search(examples[i].response)
        ]
        if len(usable) < count:
            raise SuiteError(
                f"noise: {kind} {noise[kind]} is {count:,} samples, but only {len(usable):,} have "
                "a number in their answer."
            )
        chosen.update(dict.fromkeys(usable[:count], kind))
        waiting = [i for i in waiting if i not in chosen]
    clean = [examples[i] for i in waiting]
    spoilt = list(examples)
    records = []
    for index, kind in sorted(chosen.items()):
        example = examples[index]
        if kind == "wrong_answer":
            spoilt[index], source = example.answered(_other_number(example.response, draw)), None
        elif kind == "gibberish":
            spoilt[index], source = example.answered(_gibberish(example.response, draw)), None
        else:
            other = _another(example, clean, kind, draw)
            source = other.id
            spoilt[index] = (
                Example(example.id, other.messages)
                if kind == "duplicate"
                else example.answered(other.response)
            )
        records.append(Spoilt(example.id, kind, example.prompt, example.response, source))
    return spoilt, records


def write_noise(path: str | Path, records: Iterable[Spoilt]) -> None:
    """Write what was done, one JSON object a line: the truth that scores are compared with."""
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def _check_noise(noise: Mapping[str, float]) -> None:
    for kind, share in noise.items():
        if kind not in KINDS:
            raise SuiteError(
                f"noise: kind {kind!r} is unknown.{did_you_mean(kind, KINDS)} Kinds: "
                f"{', '.join(KINDS)}."
            )
        if not 0 <= share < 1:
            raise SuiteError(f"noise: {kind} is {share}; it must be in [0, 1).")
    if sum(noise.values()) >= 1:
        raise SuiteError(
            f"noise: the shares add up to {sum(noise.values()):g}; some samples must stay clean."
        )


def _other_number(text: str, draw: random.Random) -> str:
    """Replace the last number of ``text`` wherever it stands, by one of like size and form."""
    old = _NUMBER.findall(text)[-1]
    decimals = len(old.partition(".")[2])
    units = int(old.replace(",", "").replace(".", ""))  # in its last digit
    step = draw.randint(1, max(9, units // 2))
    other = units - step if units >= step and draw.random() < 0.5 else units + step
    whole, rest = divmod(other, 10**decimals)
    new = f"{whole:,}" if "," in old else str(whole)
    new = f"{new}.{rest:0{decimals}d}" if decimals else new
    return _NUMBER.sub(lambda match: new if match[0] == old else match[0], text)


def _gibberish(text: str, draw: random.Random) -> str:
    """Replace letters and digits at random; case, spaces and punctuation stay."""

    def other(character: str) -> str:
        if character.isdigit():
            return draw.choice(string.digits)
        if not character.isalpha():
            return character
        letter = draw.choice(string.ascii_lowercase)
        return letter.upper() if character.isupper() else letter

    return "".join(map(other, text))


def _another(example: Example, clean: Sequence[Example], kind: str, draw: random.Random) -> Example:
    for _ in range(100):
        other = draw.choice(clean) if clean else example
        if other.prompt != example.prompt and other.response != example.response:
            return other
    raise SuiteError(f"noise: {kind} needs clean samples with other prompts and answers.")
