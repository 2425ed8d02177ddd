"""Damaged configs for `check`, and damaged tables of roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import fuzz, odd, read_or_refused, text_of, value_of, written
from foreign import PATTERNS, ForeignNet
from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.cli.lightning_cli import ParserOnly
from lightning_suite.cli.problems import command_of, find_problems
from lightning_suite.cli.shipped import find_config
from lightning_suite.depth_mup.roles import assign_roles

CONFIGS = ("depth_mup/llama_from_scratch", "overlays/depth_mup", "overlays/wandb_offline")


@pytest.fixture(scope="module")
def parsers() -> dict[str, Any]:
    return {"fit": ParserOnly().parsers["fit"]}


@pytest.mark.filterwarnings("ignore")
@fuzz(4, 2000)
@given(data=st.data(), name=st.sampled_from(CONFIGS))
def test_configs(tmp_path: Path, parsers: Any, data: st.DataObject, name: str) -> None:
    text = find_config(name).read_text()
    file = tmp_path / "c.yaml"
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(text_of(text)))
    else:
        value = data.draw(value_of(yaml.safe_load(text)))
        file.write_bytes(written(value).encode("utf-8", "surrogatepass"))
    with read_or_refused(file):
        command_of([str(file)], parsers)
        problems = find_problems([str(file)], parsers["fit"])
        "\n".join(map(str, problems)).encode()


@pytest.mark.filterwarnings("ignore:Possible (nested set|set )")  # Python's, of a pattern
@fuzz(20, 2000)
@given(data=st.data())
def test_tables_of_roles(data: st.DataObject) -> None:
    patterns = data.draw(value_of({**PATTERNS, "x": data.draw(odd)}))
    with read_or_refused("pattern", "role", "parameter"):
        assign_roles(ForeignNet(), patterns=patterns)
