"""The examples in the docstrings are run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lightning_suite

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lightning_suite.__path__, "lightning_suite.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_print_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(bool(t.examples) for module in modules for t in finder.find(module)) >= 20
