"""Whatever stands in a run's files: a message that names the file, never a bare traceback."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_suite.errors import SuiteError
from lightning_suite.report.layout import prose
from lightning_suite.report.metrics import panels, read_metrics
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.tables import html_table, read_table
from lightning_suite.run_folder import RunFolder

fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# half of them look like the real thing, so that the fuzzing gets past the first check
csv_like = st.text(alphabet='step,a1.e-+nanif_"\r\n /lr$', max_size=200).map(str.encode)
json_like = st.text(alphabet='[]{}":,namekindfiles.tbl0 \\', max_size=200).map(str.encode)
anything = st.binary(max_size=200)


@fuzz
@given(st.one_of(csv_like, csv_like.map(b"step,a\n".__add__), anything))
def test_metrics(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with suppress(SuiteError):
        names = list(read_metrics(path).series)
        # no column is lost and none shown twice
        assert sorted(name for panel in panels(names) for _, name in panel.lines) == sorted(names)


@fuzz
@given(st.one_of(csv_like, anything))
def test_tables(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with suppress(SuiteError):
        header, rows, _ = read_table(path)
        assert html_table(header, rows, label="").count("<tr>") == len(rows) + 1


@fuzz
@given(st.one_of(json_like, anything))
def test_the_index_and_the_record(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    for path, read in (
        (folder.artifacts / "index.json", folder.index),
        (folder.path / "run.json", folder.record),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with suppress(SuiteError):
            read()


@fuzz
@given(st.text(alphabet="<>/svgause \"'=#:;x&!-[]", max_size=120))
def test_figures(body: str) -> None:
    for text in (body, f'<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>'):
        with suppress(SuiteError):
            inline_svg(text, prefix="p-", label=body)


@fuzz
@given(st.text(alphabet="<>`https://a.&\"'() ", max_size=120))
def test_captions(text: str) -> None:
    safe = prose(text)
    for tag in ("<code>", "</code>", "<a ", "</a>"):
        safe = safe.replace(tag, "")
    assert "<" not in safe


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deeply_nested_figures(depth: int) -> None:
    text = f'<svg xmlns="http://www.w3.org/2000/svg">{"<g>" * depth}{"</g>" * depth}</svg>'
    with suppress(SuiteError):
        inline_svg(text, prefix="", label="")
