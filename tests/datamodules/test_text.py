"""TextDataModule: real text in whole blocks, none of it in two splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_suite import TextDataModule
from lightning_suite.datamodules.text import encode_bytes, read_documents
from lightning_suite.errors import SuiteError

datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


def set_up(*args: Any, **options: Any) -> TextDataModule:
    data = TextDataModule(*args, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def text_of(data: TextDataModule, split: str) -> str:
    return bytes(data.tensors(split)["input_ids"].flatten().tolist()).decode(errors="replace")


def test_the_default_text_is_hundreds_of_kilobytes_of_english() -> None:
    data = set_up()
    text = text_of(data, "train")
    assert len(text) > 300_000
    assert "the object" in text
    assert data.vocab_size == 256


def test_a_batch_is_what_a_causal_lm_takes() -> None:
    batch = next(iter(set_up(block_size=16, batch_size=4).train_dataloader()))
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == dict.fromkeys(
        ("input_ids", "labels", "attention_mask"), ((4, 16), torch.int64)
    )
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert batch["attention_mask"].all()


def test_the_splits_are_consecutive_stretches_of_the_text(tmp_path: Path) -> None:
    text = "".join(f"{i:04d}" for i in range(100))
    (tmp_path / "t.txt").write_text(text)
    data = set_up(str(tmp_path / "t.txt"), block_size=8, val_fraction=0.2, test_fraction=0.1)
    parts = [text_of(data, split) for split in ("train", "val", "test")]
    assert [len(part) // 8 for part in parts] == [35, 10, 5]
    assert "".join(parts) == text


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again, other = (
        next(iter(set_up(seed=seed, num_workers=workers).train_dataloader()))["input_ids"]
        for seed, workers in ((1, 0), (1, 2), (2, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_several_files_are_separated_by_an_empty_line(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"{name}é")
    documents = read_documents([str(tmp_path / "a"), str(tmp_path / "b")])
    assert bytes(encode_bytes(documents["train"]).tolist()).decode() == "aé\n\nbé"


def test_a_saved_data_set_keeps_its_splits(tmp_path: Path) -> None:
    rows = {"train": ["one two", "three", ""], "validation": ["four five"], "test": ["six seven"]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in rows.items()}
    ).save_to_disk(tmp_path)
    data = set_up(str(tmp_path), block_size=4)
    assert text_of(data, "train") == "one two\n\nthr"
    assert text_of(data, "val") == "four fiv"
    assert text_of(data, "test") == "six seve"
    with pytest.raises(SuiteError, match="text_column 'txt' does not exist. Did you mean 'text'"):
        set_up(str(tmp_path), text_column="txt")


def test_a_hugging_face_tokenizer_from_a_folder_ends_each_document(tmp_path: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", "a", "b", "c"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "tokenizer")
    for name, text in (("1", "a b c"), ("2", "c d")):
        (tmp_path / name).write_text(text)
    data = set_up(
        [str(tmp_path / "1"), str(tmp_path / "2")],
        tokenizer=str(tmp_path / "tokenizer"),
        block_size=7,
        val_fraction=0,
    )
    assert data.tensors("train")["input_ids"].tolist() == [[2, 3, 4, 0, 4, 1, 0]]
    assert data.vocab_size == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1}, "block_size is 1; it must be 2 or more"),
        ({"val_fraction": -0.1}, r"val_fraction is -0.1; it must be in \[0, 1\)"),
        ({"source": []}, "source is an empty list"),
        ({"source": "pydocs"}, "pydocs: cannot be read .No such file"),
        ({"block_size": 1_000_000}, "tokens, fewer than one block of 1000000. Take a longer text"),
        ({"block_size": 200_000}, "val_fraction 0.1 of . blocks of 200000 tokens is 0"),
        ({"tokenizer": "/no/tokenizer"}, "tokenizer '/no/tokenizer': is neither 'bytes' nor"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        set_up(**options)


def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("naïve café".encode("latin1"))
    with pytest.raises(SuiteError, match=r"latin.txt: is not UTF-8: byte 0xef at offset 2. Conv"):
        set_up(str(tmp_path / "latin.txt"))


def test_a_split_that_is_not_there_is_named() -> None:
    with pytest.raises(SuiteError, match="pydoc: has no split 'test', and test_fraction is 0"):
        set_up().test_dataloader()
    with pytest.raises(SuiteError, match="split 'validation' does not exist"):
        set_up().tensors("validation")
