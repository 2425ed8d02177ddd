from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_suite.errors import MissingExtraError
from lightning_suite.extras import import_extra


def test_an_installed_module_is_returned() -> None:
    assert import_extra("json", "report") is json


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtraError) as caught:
        import_extra("no_such_package.inner", "report")
    assert str(caught.value) == (
        "'no_such_package' is not installed. It belongs to the extra 'report': "
        "pip install 'lightning-suite[report]'"
    )


def test_a_package_that_is_there_but_broken_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import a_dependency_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_missing") as caught:
        import_extra("broken_package", "report")
    assert not isinstance(caught.value, MissingExtraError)
