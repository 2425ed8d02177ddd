"""From a question to the tokens that the model reads, and from an answer to those it shall write.

Training, gates, generation and evaluation must see the same tokens up to the last one of the
prompt, since that is where an edit is recognised and where its expert begins to act.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.language.prompts import PLAIN, PlainTemplate

# Stand for what is said in a rendered template; no text has them.
_SAID, _ASKED = "\0\1\0", "\0\2\0"


class PromptFormat:
    r"""Writes questions and answers as tokens of one model.

    Args:
        tokenizer: Hugging Face tokenizer.
        template: ``"Question: {prompt}\nAnswer: {response}"`` or the like; None takes the
            tokenizer's chat template with the header that announces the answer, or, where it has
            none, the one written here.
        end_token_ids: Tokens that end an answer; none given: the tokenizer's end token. See
            :meth:`for_model`.

    Attributes:
        end_token_ids: Tokens at which generation stops. The first one is written after every
            target, so that an edited answer stops where the model's own would.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        end_token_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        chat = template is None and bool(tokenizer.chat_template)
        self._plain = None if chat else PlainTemplate(template or PLAIN)
        eos = tokenizer.eos_token_id
        known = [*end_token_ids]
        own = [eos] if eos is not None and (not known or eos in known) else []
        self.end_token_ids: tuple[int, ...] = tuple(dict.fromkeys([*own, *known]))
        if not self.end_token_ids:
            raise SuiteError(
                "the tokenizer has no end token and none was given, so an answer would never end. "
                "Give end_token_ids."
            )
        self._bos = [] if chat else _bos(tokenizer)

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any, template: str | None = None) -> PromptFormat:
        """Take the end tokens from the model's generation settings.

        Args:
            model: Hugging Face causal LM, or a peft model around one.
            tokenizer: Its tokenizer.
            template: As for the class.
        """
        found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = [found] if isinstance(found, int) else found or ()
        return cls(tokenizer, template, ends)

    @property
    def pad_token_id(self) -> int:
        """Return what fills a batch up; any token will do, as the attention mask leaves it out."""
        pad = self.tokenizer.pad_token_id
        return self.end_token_ids[0] if pad is None else int(pad)

    def prompt_text(self, question: str) -> str:
        """Return all that the model reads before its answer, without a trailing space.

        Raises:
            SuiteError: The chat template refuses a conversation of one question.
        """
        return self._split(question)[0]

    def answer_text(self, question: str, answer: str) -> str:
        """Return what follows :meth:`prompt_text`: the template's space and the answer."""
        return self._split(question)[1] + answer.strip()

    def encode(self, question: str) -> list[int]:
        """Return the tokens of :meth:`prompt_text`."""
        return self.encode_text(self.prompt_text(question))

    def encode_text(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt that is written out, template included."""
        tokens = self._tokens(prompt)
        bos = [] if tokens[:1] == self._bos else self._bos
        return [*bos, *tokens]

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the prompt that :meth:`encode_text` has made ``tokens`` of."""
        bos = len(self._bos) if list(tokens[: len(self._bos)]) == self._bos else 0
        text = self.tokenizer.decode(
            list(tokens[bos:]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def question_in(self, prompt: str) -> str:
        """Return the question that a prompt ends with: what the template says itself is not asked.

        In a conversation it is the last turn, whatever the system message and the turns before.
        Spaces of the template may be missing or added, as decoding tokens does.

        Args:
            prompt: As :meth:`prompt_text` or a chat template writes it; another text is returned
                as it is.
        """
        before, after, between = self._frame
        opened = re.match(re.escape(before), prompt) or re.match(rf"\s*{_loose(before)}", prompt)
        closed = re.search(rf"{re.escape(after)}\Z", prompt)
        closed = closed or re.search(rf"\s*{_loose(after)}\s*\Z", prompt)
        if closed is None:
            return prompt
        asked = prompt[: closed.start()]
        starts = [turn.end() for text in between for turn in re.finditer(_loose(text), asked)]
        if opened:
            starts.append(opened.end())
        return asked[max(starts) :] if starts else prompt

    @property
    def opening(self) -> str:
        """Return what every prompt begins with before its question: the template's own words."""
        return self._frame[0]

    @cached_property
    def _frame(self) -> tuple[str, str, tuple[str, ...]]:
        """Return what stands before and after a question, and between it and an earlier turn."""
        before, _, after = self.prompt_text(_ASKED).partition(_ASKED)
        asked = {"role": "user", "content": _ASKED}
        said = {"role": "assistant", "content": _SAID}
        earlier = (
            [{"role": "user", "content": "?"}, said, asked],
            [{"role": "system", "content": _SAID}, asked],
        )
        between = []
        for conversation in earlier if self._plain is None else ():
            try:
                text = self._apply(conversation)
            except SuiteError:  # not every template takes system messages
                continue
            words = text.partition(_SAID)[2].partition(_ASKED)[0]
            if words.strip():
                between.append(words)
        return before, after, tuple(dict.fromkeys(between))

    def encode_answer(self, question: str, answer: str) -> tuple[list[int], int]:
        """Return the tokens of question, answer and end, and how many of them are prompt.

        The first ones are always those of :meth:`encode`: where the tokenizer would merge the
        prompt's last token with the answer's first, the answer is tokenized by itself.

        Raises:
            SuiteError: The answer is empty.
        """
        if not answer.strip():
            raise SuiteError(f"the answer to {question!r} is empty; an edit needs a target.")
        text, after = self._split(question)
        after += answer.strip()
        prompt, whole = self._tokens(text), self._tokens(text + after)
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            whole = [*prompt, *self._tokens(after)]
        ids = [*self._bos, *whole, self.end_token_ids[0]]
        return ids, len(self._bos) + len(prompt)

    def batch(
        self, sequences: Sequence[Sequence[int]], side: Literal["left", "right"] = "left"
    ) -> dict[str, Tensor]:
        """Pad sequences of tokens to one length.

        Args:
            sequences: N lists of tokens.
            side: Where the padding goes; ``"left"`` for generation.

        Returns:
            ``input_ids`` and ``attention_mask`` [N, longest], int64.
        """
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(sequences):
            at = slice(longest - len(tokens), None) if side == "left" else slice(len(tokens))
            ids[row, at] = torch.tensor(tokens)
            mask[row, at] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens up to the first that ends an answer, stripped."""
        end = next((i for i, token in enumerate(tokens) if token in self.end_token_ids), None)
        return str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip()

    def _split(self, question: str) -> tuple[str, str]:
        """Return the prompt without its trailing spaces, and those spaces."""
        if self._plain is not None:
            text, _ = self._plain.render([{"content": question}, {"content": ""}])
        else:
            text = self._chat(question)
        bare = text.rstrip(" ")
        return bare, text[len(bare) :]

    def _chat(self, question: str) -> str:
        return self._apply([{"role": "user", "content": question}])

    def _apply(self, conversation: list[dict[str, str]]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as err:  # what a template raises is up to the template
            turns = "a single question" if len(conversation) == 1 else "a conversation"
            raise SuiteError(f"the chat template refuses {turns}: {err}") from err

    def _tokens(self, text: str) -> list[int]:
        found = self.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
        return list(map(int, found))


def _loose(text: str) -> str:
    """Return a pattern of ``text`` in which white space may be anywhere, or missing."""
    return r"\s*".join(re.escape(char) for char in text if not char.isspace()) + (
        r"\s*" if text[-1:].isspace() else ""
    )


def _bos(tokenizer: Any) -> list[int]:
    """Return the start token if the tokenizer writes one; chat templates write their own."""
    bos = getattr(tokenizer, "bos_token_id", None)
    marked = tokenizer(["a"], add_special_tokens=True, verbose=False)["input_ids"][0]
    return [int(bos)] if bos is not None and marked[:1] == [bos] else []
