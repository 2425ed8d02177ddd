"""What the model reads and what it learns, against tokens written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import write_gguf

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import load_tokenizer
from lightning_suite.language.prompts import (
    PLAIN,
    ByteTokenizer,
    ChatTemplate,
    PlainTemplate,
    choose_template,
    encode_answers,
    template_hash,
)

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pytest.importorskip("transformers")
    write_gguf(tmp_path / "m.gguf")
    return load_tokenizer(str(tmp_path / "m.gguf"))


def test_a_chat_template_teaches_the_role_header_of_the_answer(chat) -> None:
    prompt, whole = ChatTemplate(chat).render([USER, ANSWER])
    assert prompt == "<|im_start|>user\n2+2?<|im_end|>\n"
    assert whole == prompt + "<|im_start|>assistant\n4<|im_end|>\n"
    ((tokens, start),) = encode_answers([(prompt, whole)], chat, add_end=False)
    symbol = {c: chat.convert_tokens_to_ids(c) for c in "user2+?asitn4Ċ"}
    start_token, end_token = 1, 2
    assert tokens[:start] == [
        start_token, *(symbol[c] for c in "userĊ2+2?"), end_token, symbol["Ċ"]
    ]  # fmt: skip
    assert tokens[start:] == [
        start_token, *(symbol[c] for c in "assistantĊ4"), end_token, symbol["Ċ"]
    ]  # fmt: skip


def test_of_a_conversation_only_the_last_answer_is_learnt(chat) -> None:
    earlier = {"role": "assistant", "content": "Hm."}
    prompt, whole = ChatTemplate(chat).render([USER, earlier, USER, ANSWER])
    assert prompt.count("assistant") == 1
    assert whole.removeprefix(prompt) == "<|im_start|>assistant\n4<|im_end|>\n"


def test_a_plain_template_teaches_the_answer_and_the_end() -> None:
    template = PlainTemplate("Q: {prompt}\nA: {response}!")
    prompt, whole = template.render([USER, ANSWER])
    assert (prompt, whole) == ("Q: 2+2?\nA: ", "Q: 2+2?\nA: 4!")
    ((tokens, start),) = encode_answers([(prompt, whole)], ByteTokenizer(), add_end=True)
    assert (bytes(tokens).decode(), start) == (whole, len(prompt))


def test_the_end_token_follows_where_there_is_one(chat) -> None:
    ((tokens, _),) = encode_answers([("x", "xy")], chat, add_end=True)
    assert tokens[-1] == chat.eos_token_id


def test_a_token_that_reaches_into_the_answer_is_learnt(chat) -> None:
    # "a" + "b" is one token, "ab"
    ((tokens, start),) = encode_answers([("xa", "xab")], chat, add_end=False)
    assert chat.convert_ids_to_tokens(tokens) == ["x", "ab"]
    assert start == 1


def test_braces_in_the_data_are_text() -> None:
    braces = [{"role": "user", "content": "{response}"}, {"role": "assistant", "content": "{x}"}]
    assert PlainTemplate(PLAIN).render(braces)[1] == "Question: {response}\nAnswer: {x}"


def test_the_tokenizers_template_is_taken_if_it_has_one(chat) -> None:
    assert isinstance(choose_template(chat, None), ChatTemplate)
    assert choose_template(chat, "{prompt}{response}").name == "{prompt}{response}"
    assert choose_template(ByteTokenizer(), None).name == PLAIN
    assert template_hash(choose_template(chat, None)) != template_hash(PlainTemplate(PLAIN))


@pytest.mark.parametrize(
    "template", ["", "{prompt}", "{response}{prompt}", "{prompt}" * 2 + "{response}"]
)
def test_a_plain_template_needs_both_places(template: str) -> None:
    with pytest.raises(SuiteError, match="must contain {prompt} once and, after it, {response}"):
        PlainTemplate(template)


def test_a_template_that_rewrites_the_prompt_is_refused(chat) -> None:
    chat.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(SuiteError, match="writes the prompt differently when the answer follows"):
        ChatTemplate(chat).render([USER, ANSWER])


def test_a_template_that_refuses_a_role_is_named(chat) -> None:
    chat.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(SuiteError, match="refuses the roles user: no system role"):
        ChatTemplate(chat).render([USER, ANSWER])
