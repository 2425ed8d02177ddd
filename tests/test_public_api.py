from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_suite

HEAVY = ("torch", "lightning", "numpy", "transformers", "matplotlib", "jsonargparse")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, lightning_suite; print([m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n in lightning_suite.__all__ if n != "__version__"])
def test_every_public_name_is_a_documented_class(name: str) -> None:
    public = getattr(lightning_suite, name)
    assert inspect.isclass(public)
    assert public.__name__ == name
    assert public.__module__ == lightning_suite._PUBLIC[name]
    assert inspect.getdoc(public)


def test_the_three_lists_of_public_names_say_the_same() -> None:
    tree = ast.parse(Path(inspect.getfile(lightning_suite)).read_text(encoding="utf-8"))
    for_type_checkers = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_type_checkers == lightning_suite._PUBLIC
    assert lightning_suite.__all__ == sorted([*lightning_suite._PUBLIC, "__version__"])
    assert dir(lightning_suite) == sorted(lightning_suite.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lightning_suite' has no attribute 'Nothing'"):
        _ = lightning_suite.Nothing


def test_the_version_is_that_of_the_installed_distribution() -> None:
    installed = importlib.import_module("importlib.metadata").version("lightning-suite")
    assert installed == lightning_suite.__version__
