"""What every gate is: keys of edits, and a decision per prompt which edit, if any, it asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_suite.scen.edits import Edit

MISS = -1


class Routing(NamedTuple):
    """A gate's decision on N prompts.

    Attributes:
        expert: Slot of the edit that serves the prompt, ``MISS`` (-1) where the base model
            does. [N], int64.
        nearest: Slot of the best candidate whether it fired or not, -1 where there is none.
            [N], int64.
        score: Similarity of that candidate, -inf where there is none. [N].
        margin: Score less the candidate's threshold: fired where it is not negative. [N].
    """

    expert: Tensor
    nearest: Tensor
    score: Tensor
    margin: Tensor


@dataclass(frozen=True)
class PromptQuery:
    """Prompts to be routed, in the two views that gates read.

    Attributes:
        texts: The prompts as strings, template included; None while a layer gate is asked inside
            a forward pass.
        states: Input of the edited layer at the last prompt token, [N, d_in]; None for a gate
            that decides before the forward pass.
    """

    texts: Sequence[str] | None = None
    states: Tensor | None = None


class Gate(nn.Module, ABC):
    """Keys of edits and the rule that compares a prompt with them.

    Slots are those of the bank: slot i of the gate belongs to expert i. All that a gate knows is
    in buffers and plain values (:meth:`get_extra_state` of ``nn.Module``), so that a bank can save
    it with ``safetensors`` and JSON.

    Attributes:
        kind: Name in configurations and bank files.
        stage: ``"layer"``: decided inside the forward pass from the input of the edited layer;
            ``"prompt"``: decided before it, from the prompt's text.
    """

    kind: ClassVar[str]
    stage: ClassVar[Literal["layer", "prompt"]]

    @abstractmethod
    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        """Learn the keys of ``edits``, which get ``slots``; recalibrate what depends on them."""

    @abstractmethod
    def remove(self, slots: Sequence[int]) -> None:
        """Forget the keys in ``slots``; recalibrate what depended on them."""

    @abstractmethod
    def renumber(self, slots: Sequence[int]) -> None:
        """Give the edits in ``slots`` the slots 0, 1, …; no others are left. Nothing is read."""

    @abstractmethod
    def route(self, query: PromptQuery) -> Routing:
        """Decide which edit serves each prompt."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change the keys in the block; if it raises, the gate is as before.

        Tables are copied, so that they may be written to whatever made them (in inference mode,
        PyTorch makes tensors that cannot be outside of it), and those from before come back.
        """
        before = dict(self._buffers)
        has_more = type(self).get_extra_state is not nn.Module.get_extra_state
        more = self.get_extra_state() if has_more else None
        for name, table in before.items():
            self._buffers[name] = None if table is None else table.clone()
        try:
            yield
        except BaseException:
            self._buffers.update(before)
            if has_more:
                self.set_extra_state(more)
            raise

    def check(self) -> None:
        """Refuse tables that do not fit each other: files of banks are passed on.

        Raises:
            SuiteError: They do not.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move tables, and never round them: a model's own precision is none to compare keys in."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None:
                continue
            if torch.promote_types(new.dtype, old.dtype) != new.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take tables, which grow with the edits, at the size they were saved with."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
