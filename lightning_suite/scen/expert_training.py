"""Train the experts of many edits together, each as if it were alone.

An expert's loss depends on that expert only, so the sum over edits has every edit's own gradient,
and one Adam over stacked tensors is one Adam an edit. What the frozen model makes of the prompts
is computed once (:mod:`lightning_suite.scen.answer_states`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.language.frozen import frozen
from lightning_suite.scen.answer_states import AnswerRow, StateCache
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.expert_group import ExpertGroup
from lightning_suite.scen.experts import ExpertSettings, TrainedExperts
from lightning_suite.scen.linear_maps import linear_shape
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.split_choice import open_cache
from lightning_suite.scen.surroundings import lasting

# An optimizer step holds a parameter, its gradient and two moments.
_COPIES_WHILE_TRAINED = 4
# Prompts whose keys and values stay in memory because several edits learn from them.
_MOST_SHARED = 256


class Example(NamedTuple):
    """One prompt that an expert learns to answer.

    Attributes:
        prompt: A question, as in :class:`Edit`.
        target: Its answer.
        weight: Share in the edit's mean loss.
    """

    prompt: str
    target: str
    weight: float = 1.0


@dataclass(frozen=True)
class ExpertTask:
    """One edit as its expert sees it.

    Attributes:
        id: Of the edit.
        examples: What it learns; the first one is the edit's own prompt.
    """

    id: str
    examples: tuple[Example, ...]

    @classmethod
    def of(
        cls,
        edit: Edit,
        *,
        paraphrases: bool = True,
        contexts: Sequence[str] = (),
        context_weight: float = 1.0,
    ) -> ExpertTask:
        """Return the task of an edit.

        Args:
            edit: The edit.
            paraphrases: Whether the expert learns from the edit's paraphrases too.
            contexts: Other questions that the expert learns to answer with the same target. It
                acts only where the gate has found the edit, so what it does to them is never
                seen; they teach it to give its answer whatever the wording.
            context_weight: Of each of them.
        """
        asked = (edit.prompt, *(edit.paraphrases if paraphrases else ()))
        own = tuple(Example(prompt, edit.target) for prompt in asked)
        more = tuple(Example(prompt, edit.target, context_weight) for prompt in contexts)
        return cls(edit.id, own + more)


def train_experts(
    model: nn.Module,
    prompts: PromptFormat,
    layer: str,
    tasks: Sequence[ExpertTask],
    settings: ExpertSettings | None = None,
    *,
    token_budget: int | None = None,
    memory_budget: int = 2**30,
    on_group: Callable[[TrainedExperts], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> TrainedExperts:
    """Train one expert an edit.

    Nothing of the model is changed, no weight of it gets a gradient. It is run in the precision of
    its weights, without autocast, and inference mode makes no difference. A bank that is attached
    to it must be disabled meanwhile. The result does not depend on the order of the tasks, nor on
    how they are grouped, but for rounding.

    Args:
        model: Hugging Face causal LM or peft model, of any dtype, on any device.
        prompts: How questions and answers are written.
        layer: Dotted name of the edited linear map in ``model``.
        tasks: E edits.
        settings: Defaults if None.
        token_budget: Edits are grouped so that a step runs about this many tokens; None: 512 on
            a CPU, which more would not make faster, 8192 elsewhere.
        memory_budget: And so that what the optimizer holds fits into this many bytes.
        on_group: Called with each group of edits when it is finished, in the order of ``tasks``;
            to save it. A run that resumes passes only the tasks that it has not saved.
        on_step: Called after each step with the number of edits that are finished, and of steps
            done in this group.

    Returns:
        Experts on the CPU, float32, or float64 if the model is.

    Raises:
        SuiteError: No task, a task without examples, an id twice, an empty target, a prompt longer
            than the context, or a layer that cannot be edited.
    """
    settings = settings or ExpertSettings()
    rows = [_rows(task, prompts, model) for task in tasks]
    _check(tasks)
    flat = [row for of_task in rows for row in of_task]
    with frozen(model), lasting(gradients=True):
        cache = open_cache(
            model,
            layer,
            flat,
            settings.positions,
            shared=_shared_prefixes(rows, settings),
        )
        if token_budget is None:
            token_budget = 512 if cache.split.device.type == "cpu" else 8192
        done: list[TrainedExperts] = []
        for group in _groups(rows, cache, settings, token_budget, memory_budget):
            part = ExpertGroup(
                cache,
                [tasks[i].id for i in group],
                [rows[i] for i in group],
                [[example.weight for example in tasks[i].examples] for i in group],
                settings,
            ).train(_counted(on_step, group[0]))
            done.append(part)
            if on_group is not None:
                on_group(part)
    return _joined(done)


def _rows(task: ExpertTask, prompts: PromptFormat, model: nn.Module) -> list[AnswerRow]:
    if not task.examples:
        raise SuiteError(f"edit {task.id!r} has no example to learn from.")
    rows: list[AnswerRow] = []
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for example in task.examples:
        try:
            tokens, n_prompt = prompts.encode_answer(example.prompt, example.target)
        except SuiteError as err:
            raise SuiteError(f"edit {task.id!r}: {err}") from err
        if limit is not None and len(tokens) - 1 > limit:
            raise SuiteError(
                f"edit {task.id!r}: prompt and target are {len(tokens) - 1} tokens, the model "
                f"reads {limit}. Shorten {example.prompt[:60]!r}…"
            )
        rows.append(AnswerRow(tuple(tokens), n_prompt))
    return rows


def _check(tasks: Sequence[ExpertTask]) -> None:
    if not tasks:
        raise SuiteError("there is no edit to train.")
    twice = [name for name, count in Counter(task.id for task in tasks).items() if count > 1]
    if twice:
        raise SuiteError(f"edits: the id {twice[0]!r} is there twice; ids must differ.")


def _shared_prefixes(
    rows: Sequence[Sequence[AnswerRow]], settings: ExpertSettings
) -> frozenset[tuple[int, ...]]:
    if settings.positions != "last":
        return frozenset()
    counts = Counter(p for own in rows for p in {row.tokens[: row.n_prompt - 1] for row in own})
    return frozenset(prefix for prefix, count in counts.most_common(_MOST_SHARED) if count > 1)


def _groups(
    rows: Sequence[Sequence[AnswerRow]],
    cache: StateCache,
    settings: ExpertSettings,
    token_budget: int,
    memory_budget: int,
) -> Iterator[list[int]]:
    """Yield consecutive edits that fit into the budgets; one alone always does."""
    d_in, d_out = linear_shape(cache.split.linear)
    numbers = d_in * d_out if settings.kind == "full" else settings.rank * (d_in + d_out)
    most = max(1, memory_budget // (numbers * 4 * _COPIES_WHILE_TRAINED))
    group: list[int] = []
    used = 0
    for index, own in enumerate(rows):
        sizes = sorted((len(r.tokens) - len(cache.prefix(r)) for r in own), reverse=True)
        tokens = sum(sizes[: settings.examples_per_step])
        if group and (used + tokens > token_budget or len(group) == most):
            yield group
            group, used = [], 0
        group.append(index)
        used += tokens
    if group:
        yield group


def _counted(
    on_step: Callable[[int, int], None] | None, earlier: int
) -> Callable[[int, int], None] | None:
    """Add the edits of earlier groups to what is reported."""
    return None if on_step is None else lambda stopped, step: on_step(earlier + stopped, step)


def _joined(parts: Sequence[TrainedExperts]) -> TrainedExperts:
    if len(parts) == 1:
        return parts[0]
    names: Any = parts[0].experts.tensors()
    kind: Any = type(parts[0].experts)
    experts = kind(**{n: torch.cat([p.experts.tensors()[n] for p in parts]) for n in names})
    return replace(
        parts[0],
        ids=tuple(name for part in parts for name in part.ids),
        experts=experts,
        losses=torch.cat([part.losses for part in parts]),
        steps=torch.cat([part.steps for part in parts]),
        final_loss=torch.cat([part.final_loss for part in parts]),
        learned=torch.cat([part.learned for part in parts]),
    )
