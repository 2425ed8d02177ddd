"""The formulas of LMCD's heads and of DOA, one pair at a time, in plain Python."""

from __future__ import annotations

from math import exp, log1p, tanh
from typing import Any

Vector = list[float]
Matrix = list[Vector]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix: Matrix, vector: Vector) -> Vector:
    return [dot(row, vector) for row in matrix]


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def softplus(x: float) -> float:
    return log1p(exp(x))


def clamp(x: float) -> float:
    return max(-10.0, min(10.0, x))


def irt(w: dict[str, Any], parameters: int, e: Vector, q: Vector, d: Vector) -> float:
    theta = clamp(times(w["theta.weight"], e)[0])
    b = clamp(times(w["difficulty.weight"], d)[0])
    a, c, upper = 1.0, 0.0, 1.0
    if parameters > 1:
        a = softplus(clamp(times(w["discrimination.weight"], q)[0]))
    if parameters > 2:
        c = sigmoid(times(w["guessing.weight"], q)[0])
    if parameters > 3:
        upper = c + (1 - c) * sigmoid(3 + times(w["slipping.weight"], q)[0])
    return c + (upper - c) * sigmoid(1.702 * a * (theta - b))


def mirt(w: dict[str, Any], e: Vector, q: Vector, d: Vector) -> float:
    theta = times(w["theta.weight"], e)
    alpha = [softplus(x) for x in times(w["discrimination.weight"], q)]
    beta = times(w["difficulty.weight"], d)[0]
    c = sigmoid(times(w["guessing.weight"], q)[0])
    return c + (1 - c) * sigmoid(dot(alpha, theta) - beta)


def network(w: dict[str, Any], x: Vector) -> float:
    for number, layer in enumerate((0, 3, 6)):
        weight, bias = w[f"network.{layer}.weight"], w[f"network.{layer}.bias"]
        x = [
            sum(abs(m) * v for m, v in zip(row, x, strict=True)) + shift
            for row, shift in zip(weight, bias, strict=True)
        ]
        if number < 2:
            x = [tanh(v) for v in x]
    return sigmoid(x[0])


def ncdm(w: dict[str, Any], e: Vector, q: Vector, d: Vector, kc: Vector) -> float:
    theta = [sigmoid(x) for x in times(w["theta.weight"], e)]
    difficulty = [sigmoid(x) for x in times(w["difficulty.weight"], d)]
    disc = sigmoid(times(w["discrimination.weight"], q)[0])
    gaps = zip(theta, difficulty, [*kc, 1.0], strict=True)
    return network(w, [disc * (t - b) * k for t, b, k in gaps])


def kancd(w: dict[str, Any], e: Vector, q: Vector, d: Vector, kc: Vector) -> float:
    disc = sigmoid(times(w["discrimination.weight"], q)[0])
    gaps = []
    for text, needed in zip(w["kc_vectors"], kc, strict=True):
        if not needed:
            continue
        v = [a + b for a, b in zip(times(w["kc.weight"], text), w["kc.bias"], strict=True)]
        of_student = times(w["theta.weight"], e)
        of_exercise = times(w["difficulty.weight"], d)
        theta = sigmoid(
            sum(a * b * c for a, b, c in zip(w["theta_weight"], of_student, v, strict=True))
            / len(v)
        )
        difficulty = sigmoid(
            sum(a * b * c for a, b, c in zip(w["difficulty_weight"], of_exercise, v, strict=True))
            / len(v)
        )
        gaps.append(theta - difficulty)
    return network(w, [disc * sum(gaps) / len(gaps), 1.0])


def dina(w: dict[str, Any], e: Vector, q: Vector, d: Vector, kc: Vector) -> float:
    share = sigmoid(3 + times(w["slipping.weight"], q)[0])
    theta, demand = times(w["theta.weight"], e), times(w["difficulty.weight"], d)
    for t, b, needed in zip(theta, demand, kc, strict=True):
        if needed:
            share *= sigmoid(t - b)
    guess = sigmoid(times(w["guessing.weight"], q)[0])
    return guess + (1 - guess) * share


def doa(theta: Matrix, answers: list[tuple[int, int, float]], q: list[list[int]]) -> list[float]:
    """Degree of agreement of each KC, over all pairs of students.

    For KC k and exercise j with it: among pairs of students (a, b) who both answered j and whose
    answers differ, and whose masteries differ, how often the one with the higher mastery is right.

    Args:
        theta: Mastery of each student and KC.
        answers: (student, exercise, correct); a pair at most once.
        q: Whether exercise j needs KC k.
    """
    values = []
    for k in range(len(theta[0])):
        right, pairs = 0.0, 0
        for a, ja, ya in answers:
            for b, jb, yb in answers:
                if ja != jb or not q[ja][k] or theta[a][k] <= theta[b][k] or ya == yb:
                    continue
                pairs += 1
                right += ya > yb
        values.append(right / pairs if pairs else float("nan"))
    return values
