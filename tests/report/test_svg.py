from __future__ import annotations

import re

import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.report.style import INK, PAPER
from lightning_suite.report.svg import inline_svg

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def inlined(body: str, attributes: str = "") -> str:
    return inline_svg(f"{HEAD} {attributes}>{body}</svg>", prefix="p-", label="L")


def test_ids_and_all_that_points_to_them_get_the_prefix() -> None:
    svg = inlined(
        '<defs><path id="m"/></defs><use xlink:href="#m"/><use href="#m"/>'
        '<g clip-path="url(#c)" style="fill: url(\'#c\')"/>'
    )
    assert 'id="p-m"' in svg
    assert svg.count('href="#p-m"') == 2
    assert 'clip-path="url(#p-c)"' in svg
    assert "url('#p-c')" in svg


@pytest.mark.parametrize(
    "body",
    [
        "<script>alert(1)</script>",
        '<g onclick="alert(1)" ONLOAD="alert(1)"/>',
        '<a href="javascript:alert(1)"><path/></a>',
        '<use href="https://elsewhere.example/x.svg#a"/>',
        '<image href="http://elsewhere.example/x.png"/>',
        '<image href="data:text/html,alert(1)"/>',
        "<style>@import url(https://elsewhere.example)</style>",
        '<g style="fill: url( https://elsewhere.example )"/>',
        "<g style=\"fill: url('https://elsewhere.example')\"/>",
        "<g style=\"fill: image-set('https://elsewhere.example/x.png' 1x)\"/>",
        '<g style="fill: u\\72l(https://elsewhere.example)"/>',
        "<foreignObject><iframe src='https://elsewhere.example'/></foreignObject>",
        "<metadata>https://elsewhere.example</metadata>",
        "<!-- alert -->",
    ],
)
def test_scripts_and_requests_are_dropped(body: str) -> None:
    svg = inlined(body)
    assert not re.search(r"alert|elsewhere|script|style=|on[a-z]+=", svg, re.IGNORECASE)


def test_embedded_bitmaps_stay() -> None:
    assert "data:image/png;base64,AAAA" in inlined('<image href="data:image/png;base64,AAAA"/>')


def test_a_figure_in_our_style_takes_the_colours_of_the_page() -> None:
    svg = inlined(f'<rect style="fill: {PAPER}"/><path style="stroke: {INK}"/>')
    assert 'class="themed"' in svg
    assert 'style="fill: var(--card)"' in svg
    assert 'style="stroke: currentColor"' in svg


def test_any_other_figure_keeps_its_colours_on_white_paper() -> None:
    svg = inlined(f'<path style="stroke: {INK}"/>')
    assert 'class="paper"' in svg
    assert INK in svg


def test_the_page_decides_the_size_and_a_wide_figure_says_so() -> None:
    svg = inlined("", 'width="504pt" height="300pt" viewBox="0 0 504 300"')
    assert re.search(
        r'<svg viewBox="0 0 504 300" role="img" aria-label="L" class="paper wide"', svg
    )
    assert " wide" not in inlined("", 'viewBox="0 0 280 180"')


def test_a_figure_cannot_lay_itself_over_the_page() -> None:
    svg = inlined("", 'style="position: fixed; inset: 0" class="bar"')
    assert "position" not in svg
    assert 'class="paper"' in svg


def test_text_of_the_label_cannot_leave_its_attribute() -> None:
    assert 'aria-label="&quot;&gt;&lt;b&gt;"' in inline_svg(f"{HEAD}/>", prefix="", label='"><b>')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<svg",
        "<html/>",
        '<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>',
        "not xml at all",
    ],
)
def test_what_is_no_figure_is_refused(text: str) -> None:
    with pytest.raises(SuiteError, match="SVG"):
        inline_svg(text, prefix="", label="")
