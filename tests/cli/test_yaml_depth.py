"""YAML nested so deep that libyaml crashes the process is refused, wherever a parser meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_suite.cli.yaml_depth import refuse_deep
from lightning_suite.json_text import DEEPEST

DEEP = 100_000


def blocks(depth: int) -> str:
    return "".join(f"{' ' * level}a:\n" for level in range(depth))


@pytest.mark.parametrize(
    "text", ["[" * DEEP, "- " * DEEP, "{a: " * DEEP, blocks(200), f"""a: '{"[" * DEEP}'"""]
)
def test_deep_text_is_refused_before_it_is_read_to_its_end(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"nested more than {DEEPEST} levels deep"):
        refuse_deep(text)


@pytest.mark.parametrize(
    "text", ["[" * DEEPEST, blocks(DEEPEST - 1), "a: [", "\x00", "[[], []]" * 99]
)
def test_other_text_is_left_to_the_reader(text: str) -> None:
    refuse_deep(text)


@pytest.mark.parametrize(
    ("command", "content"),
    [
        ("check", f'trainer: {{callbacks: "{"[" * DEEP}"}}'),
        ("fit -c", "model: " + "[" * DEEP),
        ("fit -c", f'trainer: {{callbacks: "{"[" * DEEP}"}}'),
        ("coord-check -c", "- " * DEEP),
    ],
    ids=["check", "fit", "fit-quoted", "coord-check"],  # the texts are too long for a name
)
def test_a_deep_config_ends_no_command(tmp_path: Path, command: str, content: str) -> None:
    (tmp_path / "deep.yaml").write_text(content)
    # in a process of its own: what is tested for is a crash
    done = subprocess.run(
        [sys.executable, "-m", "lightning_suite", *command.split(), "deep.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout + done.stderr) < 2000
