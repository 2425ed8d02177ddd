"""Grade-school word problems with worked answers, made up from a seed: data without a network."""

from __future__ import annotations

import random
from collections.abc import Callable

_NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Fatima", "Goran", "Hana", "Ivan", "Jia", "Kofi")
_THINGS = ("apples", "books", "candles", "eggs", "marbles", "pens", "shells", "stamps", "tickets")
_PLACES = ("bakery", "farm", "library", "market", "museum", "school", "shop", "workshop")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Row = dict[str, str]


def word_problems(count: int, seed: int = 0) -> list[Row]:
    """Return different problems as rows with ``id``, ``question`` and ``answer``.

    The answers are worked step by step, with the calculations marked, and end with ``#### n``, as
    those of GSM8K do. The first problems of a longer list are those of a shorter one.

    Args:
        count: How many.
        seed: Other problems for other seeds.

    Example:
        >>> problem = word_problems(1)[0]
        >>> problem["answer"].splitlines()[-1].startswith("#### ")
        True
    """
    draw = random.Random(f"word problems {seed}")
    rows: dict[str, Row] = {}
    while len(rows) < count:
        question, steps, result = draw.choice(_KINDS)(draw)
        answer = "\n".join([*steps, f"#### {result}"])
        row = {"id": f"wp{seed}-{len(rows)}", "question": question, "answer": answer}
        rows.setdefault(question, row)
    return list(rows.values())


Problem = tuple[str, list[str], int]


def _sum_and_share(draw: random.Random) -> Problem:
    name, other = draw.sample(_NAMES, 2)
    thing = draw.choice(_THINGS)
    each, people = draw.randint(3, 40), draw.randint(2, 9)
    first = draw.randint(1, each * people - 1)
    second = each * people - first
    return (
        f"{name} has {first} {thing} and {other} has {second}. They put them together and share "
        f"them equally among {people} friends. How many {thing} does each friend get?",
        [
            f"Together they have {_calc(f'{first}+{second}', first + second)} {thing}.",
            f"Each friend gets {_calc(f'{first + second}/{people}', each)} {thing}.",
        ],
        each,
    )


def _shopping(draw: random.Random) -> Problem:
    name, place = draw.choice(_NAMES), draw.choice(_PLACES)
    thing, other = draw.sample(_THINGS, 2)
    n, m = draw.randint(2, 15), draw.randint(2, 15)
    price, other_price = draw.randint(2, 12), draw.randint(2, 12)
    cost, other_cost = n * price, m * other_price
    paid = cost + other_cost + draw.randint(1, 60)
    return (
        f"At the {place}, {name} buys {n} {thing} for ${price} each and {m} {other} for "
        f"${other_price} each, and pays with ${paid}. How many dollars of change does {name} get?",
        [
            f"The {thing} cost {_calc(f'{n}*{price}', cost, '$')}.",
            f"The {other} cost {_calc(f'{m}*{other_price}', other_cost, '$')}.",
            f"Together they cost {_calc(f'{cost}+{other_cost}', cost + other_cost, '$')}.",
            f"The change is {_calc(f'{paid}-{cost + other_cost}', paid - cost - other_cost, '$')}.",
        ],
        paid - cost - other_cost,
    )


def _growing_days(draw: random.Random) -> Problem:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    start = draw.randrange(5)
    days = _DAYS[start : start + 3]
    first, factor, more = draw.randint(3, 40), draw.randint(2, 5), draw.randint(2, 30)
    second = first * factor
    third = second + more
    return (
        f"On {days[0]} {name} sells {first} {thing}, on {days[1]} {factor} times as many, and on "
        f"{days[2]} {more} more than on {days[1]}. How many {thing} does {name} sell in these "
        "three days?",
        [
            f"On {days[1]}: {_calc(f'{first}*{factor}', second)} {thing}.",
            f"On {days[2]}: {_calc(f'{second}+{more}', third)} {thing}.",
            f"In all: {_calc(f'{first}+{second}+{third}', first + second + third)} {thing}.",
        ],
        first + second + third,
    )


def _percent_left(draw: random.Random) -> Problem:
    place, thing = draw.choice(_PLACES), draw.choice(_THINGS)
    total, percent = 20 * draw.randint(2, 40), 5 * draw.randint(1, 18)
    sold = total * percent // 100
    bought = draw.randint(5, 90)
    return (
        f"A {place} has {total} {thing}. It sells {percent}% of them in the morning and gets "
        f"{bought} new ones at noon. How many {thing} does the {place} have in the afternoon?",
        [
            f"In the morning it sells {_calc(f'{total}*{percent}/100', sold)} {thing}.",
            f"Then {_calc(f'{total}-{sold}', total - sold)} {thing} are left.",
            f"At noon there are {_calc(f'{total - sold}+{bought}', total - sold + bought)}.",
        ],
        total - sold + bought,
    )


def _wages(draw: random.Random) -> Problem:
    name, place = draw.choice(_NAMES), draw.choice(_PLACES)
    hours, days, wage = draw.randint(2, 9), draw.randint(2, 6), draw.randint(9, 30)
    weeks = draw.randint(2, 8)
    week, pay = hours * days, hours * days * wage
    return (
        f"{name} works at the {place} {hours} hours a day on {days} days a week and earns ${wage} "
        f"an hour. How many dollars does {name} earn in {weeks} weeks?",
        [
            f"{name} works {_calc(f'{hours}*{days}', week)} hours a week.",
            f"A week's wage is {_calc(f'{week}*{wage}', pay, '$')}.",
            f"In {weeks} weeks it is {_calc(f'{pay}*{weeks}', pay * weeks, '$')}.",
        ],
        pay * weeks,
    )


def _boxes(draw: random.Random) -> Problem:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    boxes, size, lost = draw.randint(3, 20), draw.randint(4, 24), draw.randint(1, 11)
    total = boxes * size
    return (
        f"{name} packs {thing} into {boxes} boxes of {size}. On the way {lost} of the {thing} "
        f"break. How many whole {thing} arrive?",
        [
            f"The boxes hold {_calc(f'{boxes}*{size}', total)} {thing}.",
            f"Of them {_calc(f'{total}-{lost}', total - lost)} arrive whole.",
        ],
        total - lost,
    )


_KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    _sum_and_share,
    _shopping,
    _growing_days,
    _percent_left,
    _wages,
    _boxes,
)


def _calc(expression: str, value: int, unit: str = "") -> str:
    return f"{expression} = {unit}<<{expression}={value}>>{value}"
