"""What a reader's browser makes of a page: on a phone, in the dark, on paper, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_run import NAMES, hostile_run
from matplotlib.figure import Figure
from support.browser import PROGRAM, Tab, browser

from lightning_suite.report.index import write_index
from lightning_suite.report.page import write_report
from lightning_suite.report.style import figure_style
from lightning_suite.run_folder import RunFolder

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")

PHONES = (360, 390)
COMMAND = ["lightning-suite", "fit", "-c", "a.yaml", "--trainer.max_epochs", "2", "--ckpt_path"]
LONG = "A sentence that is longer than a cell of a table can hold in a single line."

# Elements that stick out of the window, those in a box that scrolls left aside.
STICK_OUT = """(() => {
  const scrolls = (e) =>
    e && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
    .map((e) => e.outerHTML.slice(0, 80));
})()"""
# Texts of tiles that leave their tile; those of an element are wider than its box says.
LEAVE_TILE = """(() => {
  const right = (e) => {
    const range = document.createRange();
    range.selectNodeContents(e);
    return range.getBoundingClientRect().right;
  };
  return [...document.querySelectorAll(".tiles .card")]
    .filter((e) => right(e) > e.getBoundingClientRect().right + 1).map((e) => e.textContent);
})()"""
# Figures and tables that are wider than their place, and what they say of it.
WIDE = """[...document.querySelectorAll(".plot, .scroll")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1)
  .map((e) => ({
    label: e.getAttribute("aria-label"), role: e.getAttribute("role"), tab: e.tabIndex,
    fades: getComputedStyle(e).maskImage !== "none", hint: e.previousElementSibling?.textContent,
  }))"""
# The least contrast of any text with the ground behind it (WCAG 2.2, 1.4.3).
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] > 200) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => e.getClientRects().length && !e.closest("svg"))
    .map((e) => {
      const [a, b] = [rgba(getComputedStyle(e).color), ground(e)].map(light).sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
    });
  return found.sort((x, y) => x[0] - y[0])[0];
})()"""
# What has the focus, and whether one sees that.
FOCUS = """(() => {
  const e = document.activeElement, style = getComputedStyle(e);
  return { what: e.textContent.trim().slice(0, 20) || e.tagName, box: e.matches(".plot, .scroll"),
    label: e.getAttribute("aria-label"),
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 1,
    masked: style.maskImage !== "none" };
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with the kinds of content that are hard to fit: wide, long, many."""
    place = tmp_path_factory.mktemp("run")
    folder = RunFolder(place)
    with figure_style():
        figure = Figure(figsize=(10, 3))
        for axes in figure.subplots(1, 3):
            axes.plot([0, 1])
    folder.add_figure("three", figure, title="Three panels", caption="They stand side by side.")
    columns = [f"a_long_name_of_column_{n}" for n in range(14)]
    folder.add_table("columns", [dict.fromkeys(columns, 0.123456)] * 3, title="Many columns")
    many = (dict.fromkeys(columns, n) for n in range(400))
    folder.add_table("rows", many, title="Many wide rows")
    rows = ({"number": n, "prompt": LONG, "answer": f"{n}. {LONG}"} for n in range(60))
    folder.add_table("texts", rows, title="Many texts")
    (place / "metrics.csv").write_text(
        "step,train_loss,val_loss\n" + "".join(f"{n},{1 / (n + 1)},{n}\n" for n in range(9)),
        encoding="utf-8",
    )
    folder.write_record(command=COMMAND, seed=0, config=None)
    (place / "hparams.yaml").write_text(f"a_key: '{'no_space_' * 30}'\n", encoding="utf-8")
    return write_report(place)


@pytest.fixture(scope="module")
def index(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    for name, loss in (("a_run_with_a_rather_long_name", 1.0), ("another", 2.0)):
        (home / name).mkdir()
        text = "".join(f"{n},{loss / (n + 1)},{n}\n" for n in range(5))
        (home / name / "metrics.csv").write_text(f"step,train_loss,val_acc\n{text}")
        (home / name / "hparams.yaml").write_text(f"width: {loss}\n")
    return write_index([home], home / "index.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with names that could break it; an index over it lies above."""
    home = tmp_path_factory.mktemp("hostile")
    page = write_report(hostile_run(home / "run", NAMES["hostile"]))
    write_index([home], home / "index.html")
    return page


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with the tiles whose small lines are long: those of edits and of a diagnosis."""
    folder = RunFolder(tmp_path_factory.mktemp("tiles"))
    answers = [{"prompt": "Who?", "fired": "e1"}, {"prompt": "What?", "fired": ""}]
    folder.add_table("scen_answers", answers, title="Answers")
    common = {"answers": 1200, "kind": "exercise", "fold": 0, "folds": 3, "split_seed": 0}
    systems = ("lmcd", "floor", "ceiling")
    scores = [{"system": name, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9} for name in systems]
    folder.add_table("lmcd_scores", [row | common for row in scores], title="Scores")
    return write_report(folder.path)


@pytest.mark.parametrize("width", PHONES)
def test_the_small_line_of_a_tile_wraps_within_it(tab: Tab, tiles: Path, width: int) -> None:
    tab.open(tiles, width=width)
    assert tab.run("document.querySelectorAll('.tiles small').length") == 4
    assert tab.run(LEAVE_TILE) == []


@pytest.mark.parametrize("which", ["report", "index"])
def test_names_that_could_break_a_page_do_nothing_in_a_browser(
    tab: Tab, hostile: Path, which: str
) -> None:
    path = hostile if which == "report" else hostile.parents[1] / "index.html"
    for width in (390, 1280):
        tab.open(path, width=width)
        assert tab.complaints == []  # no dialog, no error, nothing that the policy had to stop
        assert [url for url in tab.requests if not url.startswith("data:")] == [path.as_uri()]
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(STICK_OUT) == []
        assert tab.run("document.scripts.length + document.styleSheets.length") == 2
    assert tab.run("document.documentElement.scrollHeight") < 100_000
    tab.press("Tab")
    assert tab.run("document.activeElement.textContent") == "Skip to content"
    tab.press("Enter")
    assert tab.run("location.hash") == "#content"


@pytest.mark.parametrize("width", PHONES)
@pytest.mark.parametrize("which", ["page", "index"])
def test_nothing_sticks_out_of_a_phone(
    tab: Tab, which: str, width: int, request: pytest.FixtureRequest
) -> None:
    tab.open(request.getfixturevalue(which), width=width)
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run(STICK_OUT) == []


def test_what_is_wider_than_a_phone_says_so_fades_and_takes_the_focus(tab: Tab, page: Path) -> None:
    tab.open(page, width=360)
    wide = tab.run(WIDE)
    assert {"Three panels", "Many columns"} <= {box["label"] for box in wide}
    for box in wide:
        assert box["hint"].startswith("Scroll sideways")
        assert (box["role"], box["tab"], box["fades"]) == ("region", 0, True)


def test_letters_of_a_figure_stay_readable_on_a_phone(tab: Tab, page: Path) -> None:
    """The figure scrolls before it shrinks: its letters are drawn with 9 pt."""
    tab.open(page, width=360)
    scale = tab.run(
        "Math.min(...[...document.querySelectorAll('svg.themed')]"
        ".map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width))"
    )
    assert scale > 0.9


def test_on_a_wide_screen_a_figure_has_no_hint_and_is_no_stop_of_the_keyboard(
    tab: Tab, page: Path
) -> None:
    tab.open(page, width=1280)
    assert tab.run("document.querySelector('.plot').hasAttribute('tabindex')") is False
    assert tab.run("document.querySelector('.plot').previousElementSibling.className") != "hint"


def test_a_table_of_texts_becomes_a_block_a_row_on_a_phone(tab: Tab, page: Path) -> None:
    tab.open(page, width=360)
    box = "document.querySelector('[aria-label=\"Many texts\"]')"
    assert tab.run(f"{box}.scrollWidth <= {box}.clientWidth")
    cell = f"{box}.querySelector('td.long')"
    assert tab.run(f"getComputedStyle({cell}, '::before').content") == '"prompt"'
    assert tab.run(f"{cell}.getBoundingClientRect().width") > 200


def test_every_stop_of_the_keyboard_is_seen_and_a_wide_figure_is_one(tab: Tab, page: Path) -> None:
    tab.open(page, width=360)
    stops = []
    for _ in range(60):
        tab.press("Tab")
        if tab.run("document.activeElement === document.body"):  # past the last one
            break
        stops.append(tab.run(FOCUS))
    unseen = [stop["what"] for stop in stops if not stop["ring"] or stop["masked"]]
    assert unseen == []
    assert {"Three panels", "Many columns"} <= {stop["label"] for stop in stops if stop["box"]}


def test_the_arrow_keys_scroll_a_figure_and_its_end_no_longer_fades(tab: Tab, page: Path) -> None:
    tab.open(page, width=360)
    box = "document.querySelector('.plot')"
    tab.run(f"{box}.focus()")
    tab.press("ArrowRight")
    tab.run("new Promise(done => setTimeout(done, 300))")
    assert tab.run(f"{box}.scrollLeft") > 0
    tab.run(f"{box}.scrollTo(9999, 0)")
    tab.run("new Promise(done => setTimeout(done, 100))")
    assert tab.run(f"[{box}.classList.contains('left'), {box}.classList.contains('right')]") == [
        True,
        False,
    ]


def test_a_command_is_broken_between_its_words(tab: Tab, page: Path) -> None:
    tab.open(page, width=360)
    lines = (
        """[...document.querySelectorAll(".command span")].map((e) => e.getClientRects().length)"""
    )
    assert tab.run(lines) == [1] * len(COMMAND)
    height = "document.querySelector('.command pre').clientHeight"
    assert tab.run(height) > 60  # several lines
    assert tab.run("document.querySelector('.command code').textContent") == " ".join(COMMAND)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_contrast_in_both_themes(tab: Tab, page: Path, dark: bool) -> None:
    tab.open(page, dark=dark)
    contrast, where = tab.run(CONTRAST)
    assert contrast >= 4.5, where


def test_on_paper_tables_end_within_the_page_and_are_not_endless(tab: Tab, page: Path) -> None:
    paper = 700  # CSS pixels between the margins of A4
    tab.open(page, width=paper, dark=True, paper=True)
    cells = "[...document.querySelectorAll('td, th')].map(e => e.getBoundingClientRect().right)"
    assert tab.run(f"Math.max(...{cells})") <= paper
    box = "document.querySelector('[aria-label=\"Many texts\"]')"
    shown = f"[...{box}.querySelectorAll('tbody tr')].filter(e => e.getClientRects().length).length"
    assert tab.run(shown) == 40
    assert "Printed: the first 40 of 60 rows." in tab.run("document.body.innerText")
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    contrast, where = tab.run(CONTRAST)
    assert contrast >= 4.5, where


def test_on_paper_rows_that_are_not_printed_leave_no_empty_pages(tab: Tab, page: Path) -> None:
    """Between the rows of a table with many columns there are ends of lines."""
    tab.open(page, width=700, paper=True)
    box = "document.querySelector('[aria-label=\"Many wide rows\"]')"
    last = f"{box}.querySelector('tbody tr:nth-child(40)').getBoundingClientRect().bottom"
    assert tab.run(f"{box}.getBoundingClientRect().bottom - {last}") < 20


def test_folded_text_is_open_on_paper(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.run("[...document.querySelectorAll('details')].some(e => e.open)") is False
    tab.call("Page.printToPDF")
    assert tab.run("[...document.querySelectorAll('details')].every(e => e.open)") is True


def test_a_page_asks_nobody_for_anything(tab: Tab, page: Path, index: Path) -> None:
    for path in (page, index):
        tab.open(path)
        assert [url for url in tab.requests if not url.startswith("data:")] == [path.as_uri()]
