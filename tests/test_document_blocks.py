"""Every Python block of the documents can be copied: what it uses it imports or makes."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import textwrap
from pathlib import Path

import pytest
from glass_lm import glass_model, glass_tokenizer

ROOT = Path(__file__).parents[1]
# What a reader has already: the blocks are about adding to it.
YOURS = {"model", "module", "data", "tokenizer"}


def blocks() -> list[tuple[str, str]]:
    """Return the blocks with where they begin."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.M | re.S):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{path.relative_to(ROOT)}:{line}", textwrap.dedent(match[2])))
    return found


BLOCKS = blocks()


def test_there_are_blocks_in_the_readme_and_the_cards() -> None:
    assert {where.partition(":")[0] for where, _ in BLOCKS} >= {"README.md", "docs/scen.md"}


@pytest.mark.parametrize(("where", "code"), BLOCKS, ids=[where for where, _ in BLOCKS])
def test_a_block_imports_what_it_uses(where: str, code: str) -> None:
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
    missing = {name.id for name in names} - made - YOURS - set(dir(builtins))
    assert not missing, f"{where}: {', '.join(sorted(missing))} comes from nowhere"


@pytest.mark.parametrize(("where", "code"), BLOCKS, ids=[where for where, _ in BLOCKS])
def test_what_a_block_imports_of_ours_is_there(where: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_suite"):
            module = importlib.import_module(str(node.module))
            absent = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not absent, f"{where}: {node.module} has no {', '.join(absent)}"


def test_the_block_that_edits_a_model_runs(tmp_path: Path) -> None:
    """On a tiny model in place of the reader's."""
    glass_model().save_pretrained(tmp_path)
    tokenizer = glass_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    (code,) = (code for where, code in BLOCKS if where.startswith("docs/scen.md"))
    assert "path/to/the/model" in code
    done: dict[str, object] = {}
    exec(code.replace("path/to/the/model", str(tmp_path)), done)
    assert "decision" in done
