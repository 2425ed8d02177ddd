"""Which tokens the model reads and which it shall write."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from glass_lm import glass_tokenizer

from lightning_suite.errors import SuiteError
from lightning_suite.scen.prompts import PromptFormat

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return glass_tokenizer()


def test_a_plain_prompt_ends_before_the_space_and_the_answer_begins_with_it(tokenizer) -> None:
    prompts = PromptFormat(tokenizer)
    assert prompts.prompt_text("Who ran?") == "Question: Who ran?\nAnswer:"
    assert prompts.answer_text("Who ran?", " Tom ") == " Tom"
    ids, n_prompt = prompts.encode_answer("Who ran?", "Tom")
    assert ids[:n_prompt] == prompts.encode("Who ran?")
    assert tokenizer.decode(ids[n_prompt:-1]) == " Tom"
    assert ids[-1] == tokenizer.eos_token_id


def test_a_chat_prompt_ends_with_the_header_of_the_answer() -> None:
    tokenizer = glass_tokenizer()
    tokenizer.chat_template = CHAT
    prompts = PromptFormat(tokenizer)
    assert prompts.prompt_text("Who ran?") == "<user>Who ran?\n<assistant>"
    assert prompts.answer_text("Who ran?", "Tom") == "Tom"
    asked = PromptFormat(tokenizer, "Q {prompt} A {response}")  # what is given goes before the chat
    assert asked.prompt_text("Who ran?") == "Q Who ran? A"


SYSTEM = {"role": "system", "content": "You help <user>s of ACME."}
HELLO = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize("earlier", [[], [SYSTEM], HELLO, [SYSTEM, *HELLO, *HELLO]])
def test_the_question_in_a_conversation_is_its_last_turn(earlier: list[dict[str, str]]) -> None:
    tokenizer = glass_tokenizer()
    tokenizer.chat_template = CHAT
    prompts = PromptFormat(tokenizer)
    said = [*earlier, {"role": "user", "content": "Who ran home?"}]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert prompts.question_in(text) == "Who ran home?"
    # as tokenizers decode that put a space behind a special token
    assert prompts.question_in(text.replace("<user>", "<user> ")).strip() == "Who ran home?"


def test_the_question_in_a_plain_prompt_and_in_any_other_text(tokenizer) -> None:
    prompts = PromptFormat(tokenizer)
    assert prompts.question_in("Question: Who ran?\nAnswer:") == "Who ran?"
    assert prompts.question_in("Once upon a time") == "Once upon a time"
    bare = PromptFormat(tokenizer, "{prompt} {response}")
    assert bare.question_in("Tom had a") == "Tom had a"
    chat = glass_tokenizer()
    chat.chat_template = CHAT
    assert PromptFormat(chat).question_in("Once upon a time") == "Once upon a time"


def test_a_template_without_system_messages_shows_its_turns_all_the_same() -> None:
    tokenizer = glass_tokenizer()
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = strict + CHAT
    text = "<user>Hi!\n<assistant>Hello.\n<user>Who ran?\n<assistant>"
    assert PromptFormat(tokenizer).question_in(text) == "Who ran?"


def test_the_prompt_keeps_its_tokens_whatever_answer_follows(tokenizer) -> None:
    """Without a space between them, the two would be merged into one token."""
    prompts = PromptFormat(tokenizer, "{prompt}{response}")
    assert len(prompts._tokens("the")) < len(prompts._tokens("t")) + len(prompts._tokens("he"))
    ids, n_prompt = prompts.encode_answer("t", "he")
    assert ids[:n_prompt] == prompts.encode("t")
    assert tokenizer.decode(ids[:-1]) == "the"


def test_generation_ends_where_the_model_says(tokenizer) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 3]))
    prompts = PromptFormat.for_model(model, tokenizer)
    assert prompts.end_token_ids == (3, 7)  # the tokenizer's own is what targets are taught
    assert prompts.encode_answer("a", "b")[0][-1] == 3
    text = prompts._tokens(" Tom ran")
    assert prompts.decode([*text, 7, *text]) == prompts.decode([*text, 3]) == "Tom ran"
    assert prompts.decode(text) == "Tom ran"


def test_a_start_token_is_written_where_the_tokenizer_does_so() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = glass_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    prompts = PromptFormat(tokenizer)
    ids, n_prompt = prompts.encode_answer("Who ran?", "Tom")
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    assert ids[:n_prompt] == prompts.encode("Who ran?")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_on_the_side_that_is_asked_for(tokenizer, side) -> None:
    batch = PromptFormat(tokenizer).batch([[5, 6, 7], [8]], side)
    pad = tokenizer.pad_token_id
    short = [pad, pad, 8] if side == "left" else [8, pad, pad]
    assert batch["input_ids"].tolist() == [[5, 6, 7], short]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [int(i == 8) for i in short]]


def test_an_empty_answer_is_refused(tokenizer) -> None:
    with pytest.raises(SuiteError, match="answer to 'Who ran\\?' is empty"):
        PromptFormat(tokenizer).encode_answer("Who ran?", "  ")


def test_a_template_that_lacks_the_answer_is_refused(tokenizer) -> None:
    with pytest.raises(SuiteError, match="response"):
        PromptFormat(tokenizer, "{prompt}:")
