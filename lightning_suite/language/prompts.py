"""From a conversation to tokens and labels: which text the model sees, which part it learns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from lightning_suite.errors import SuiteError

IGNORED = -100
# For a tokenizer without a chat template, as base models have.
PLAIN = "Question: {prompt}\nAnswer: {response}"
Message = dict[str, str]


class Template(Protocol):
    """Writes a conversation as text."""

    name: str

    def render(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return what the model reads before it answers, and the whole text.

        Args:
            messages: ``{"role": …, "content": …}``, the last one of the assistant.
        """
        ...


class PlainTemplate:
    """A prompt template without roles, such as ``PLAIN``.

    All that stands before the answer is the prompt. Earlier messages of a conversation are
    written one below the other.

    Args:
        template: Has ``{prompt}`` and, after it, ``{response}``, once each.

    Raises:
        SuiteError: One of the two is missing, repeated or in the wrong place.
    """

    def __init__(self, template: str) -> None:
        before, found, rest = template.partition("{prompt}")
        between, found_too, after = rest.partition("{response}")
        once = template.count("{prompt}") == template.count("{response}") == 1
        if not (found and found_too and once):
            raise SuiteError(
                f"prompt_template {template!r}: must contain {{prompt}} once and, after it, "
                f"{{response}} once, for example {PLAIN!r}."
            )
        self.name = template
        self._before, self._between, self._after = before, between, after

    def render(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Fill in the template."""
        prompt = "\n\n".join(message["content"] for message in messages[:-1])
        start = self._before + prompt + self._between
        return start, start + messages[-1]["content"] + self._after


class ChatTemplate:
    """The chat template that a tokenizer carries.

    The prompt ends before the header that announces the answer's role, so the model learns to
    write that header, as in the published scoring script of arXiv 2412.14809.

    Args:
        tokenizer: With a ``chat_template``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.name = str(tokenizer.chat_template)
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Apply the template to the conversation with and without the answer.

        Raises:
            SuiteError: The template refuses the roles, or rewrites the prompt once it is answered.
        """
        prompt, whole = self._apply(messages[:-1]), self._apply(messages)
        if not whole.startswith(prompt):
            raise SuiteError(
                "the tokenizer's chat template writes the prompt differently when the answer "
                "follows, so what is to be learnt cannot be told apart. Give a prompt_template, "
                f"for example {PLAIN!r}."
            )
        return prompt, whole

    def _apply(self, messages: Sequence[Message]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False))
        except Exception as err:  # what a template raises is up to the template
            roles = ", ".join(message["role"] for message in messages)
            raise SuiteError(f"the chat template refuses the roles {roles}: {err}") from err


class ByteTokenizer:
    """The UTF-8 bytes as tokens, with the few members of a Hugging Face tokenizer used here."""

    chat_template = None
    eos_token_id = pad_token_id = None
    padding_side = "right"

    def __call__(self, texts: Sequence[str], **_options: Any) -> dict[str, list[list[int]]]:
        """Return ``{"input_ids": …}``, one list a text."""
        return {"input_ids": [list(text.encode()) for text in texts]}

    def __len__(self) -> int:
        return 256


def choose_template(tokenizer: Any, prompt_template: str | None) -> Template:
    """Return ``prompt_template``; without it the tokenizer's chat template, or else ``PLAIN``."""
    if prompt_template is not None:
        return PlainTemplate(prompt_template)
    return ChatTemplate(tokenizer) if tokenizer.chat_template else PlainTemplate(PLAIN)


def template_hash(template: Template) -> str:
    """Return a short hash of a template's text, to tell two runs apart."""
    return hashlib.sha256(template.name.encode()).hexdigest()[:16]


def encode_answers(
    rendered: Sequence[tuple[str, str]], tokenizer: Any, *, add_end: bool
) -> list[tuple[list[int], int]]:
    """Tokenize texts and find where what is to be learnt begins.

    A token that reaches from the prompt into the answer counts to the answer.

    Args:
        rendered: Prompt and whole text of each sample; the prompt begins the whole text.
        tokenizer: Hugging Face tokenizer or :class:`ByteTokenizer`.
        add_end: Whether the end token follows (a chat template writes its own).

    Returns:
        The tokens of each sample and how many of them, at the start, are prompt.
    """
    options = {"add_special_tokens": False, "verbose": False}
    prompts = tokenizer([prompt for prompt, _ in rendered], **options)["input_ids"]
    wholes = tokenizer([whole for _, whole in rendered], **options)["input_ids"]
    end = [tokenizer.eos_token_id] if add_end and tokenizer.eos_token_id is not None else []
    return [
        ([*whole, *end], _common_prefix(prompt, whole))
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]


def _common_prefix(prompt: Sequence[int], whole: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
