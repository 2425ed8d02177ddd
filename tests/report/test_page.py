"""What the page shows and what it must never do, on folders as real runs leave them."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
import warnings
from base64 import b64encode
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite.cli.main import main
from lightning_suite.errors import SuiteError
from lightning_suite.report.page import write_report
from lightning_suite.report.style import figure_style
from lightning_suite.run_folder import RunFolder

EVIL = '"><script>alert(1)</script><img src=http://evil.example onerror=alert(1)>'


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open = ""
        self._heading = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if re.fullmatch("h[1-6]", tag):
            self._heading = True
            self.headings.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        self._heading = self._heading and not re.fullmatch("h[1-6]", tag)

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.text += data
        if self._heading:
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)

    def sections(self) -> list[str]:
        return [text for tag, text in self.headings if tag == "h2"]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


class TinyModule(lightning.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.ModuleList([nn.Linear(4, width), nn.Linear(width, 2)])

    def _loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        hidden = self.layers[0](batch[0])
        self.log_dict({f"depth_mup/rms/block_{n}": hidden.square().mean() + n for n in range(2)})
        return nn.functional.cross_entropy(self.layers[1](hidden.relu()), batch[1])

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log(
            "val_loss", nn.functional.cross_entropy(self.layers[1](torch.zeros(1, 8)), batch[1][:1])
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": layer.parameters(), "name": name}
            for layer, name in zip(self.layers, ("hidden_first", "output"), strict=True)
        ]
        return torch.optim.SGD(groups, lr=0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folder of a real Lightning run with a CSVLogger."""
    root = tmp_path_factory.mktemp("fit")
    data = TensorDataset(torch.randn(32, 4), torch.randint(2, (32,)))
    with warnings.catch_warnings():  # what Lightning says about a tiny run is not the subject here
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=CSVLogger(root),
            log_every_n_steps=1,
            callbacks=[LearningRateMonitor("step")],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(TinyModule(), DataLoader(data, 8), DataLoader(data, 32))
    return root


@pytest.fixture
def fit(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "fit")) / "lightning_logs" / "version_0"


@pytest.fixture
def check(tmp_path: Path) -> RunFolder:
    """A folder as the analysis commands leave it: artifacts and a record, no training."""
    folder = RunFolder(tmp_path / "coord-check")
    rows = [{"rule": "sp", "slope": 0.512345}, {"rule": "depth_mup", "slope": 0.01}]
    folder.add_table("slopes", rows, title="Slopes", caption="Of `delta`.", section="Coordinates")
    with figure_style():
        figure = Figure(figsize=(7, 4))
        figure.add_subplot().plot([1, 2, 3], marker="o")
    folder.add_figure(
        "growth",
        figure,
        title="Growth with depth",
        caption="See https://arxiv.org/abs/2310.02244.",
        section="Coordinates",
    )
    folder.write_record(
        command=["/venv/bin/lightning-suite", "coord-check", "--depths", "2, 4"],
        seed=3,
        config="depths: [2, 4]\n",
        note="Does anything grow?",
    )
    return folder


def assert_self_contained(page: Page) -> None:
    """No element asks for anything; only links lead out, and scripts are exactly ours."""
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            target = attributes.get(name) or "#"
            if tag == "a":
                assert not target.lower().startswith("javascript:")
            else:
                assert target.startswith(("#", "data:")), (tag, attributes)
        assert not re.search(r"url\((?!#)", attributes.get("style") or "")
    assert not {"iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    (script,) = page.scripts
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_a_lightning_run_is_shown_with_its_curves(fit: Path) -> None:
    path = write_report(fit)
    assert path == fit / "report.html"
    page = Page(path)
    assert page.sections() == ["Training", "Configuration", "Files"]
    assert ("h1", "lightning_logs/version_0") in page.headings
    assert [heading for heading in page.headings if heading[0] in {"h3", "h4"}] == [
        ("h3", "loss"),
        ("h3", "Learning rate · SGD"),
        ("h3", "depth_mup"),
        ("h4", "rms"),
        ("h3", "Summary"),
    ]
    assert page.count("svg") == 3
    assert "width: 8" in page.text  # hparams.yaml
    assert "epoch=1-step=8.ckpt" in page.text
    assert re.search(r"[\d.]+ kB", page.text)
    assert_self_contained(page)


def test_a_folder_of_logs_shows_its_newest_version(fit: Path) -> None:
    (shutil.copytree(fit, fit.parent / "version_10") / "hparams.yaml").write_text("width: 1010\n")
    (shutil.copytree(fit, fit.parent / "version_9") / "hparams.yaml").write_text("width: 9999\n")
    root = fit.parent.parent
    assert write_report(root) == root / "report.html"
    page = Page(root / "report.html")
    assert "width: 1010" in page.text
    assert 'href="lightning_logs/version_10/metrics.csv"' in page.source
    assert "Only version_10, the newest of 3 runs in this folder. All, typed where " in page.text


@pytest.mark.parametrize("given", ["below", "absolute"])
def test_the_command_for_all_runs_of_a_folder_works_where_the_page_was_made(
    fit: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fit, fit.parent / "version_10")
    root = fit.parent.parent
    monkeypatch.chdir(root.parent.parent)
    folder = root.relative_to(Path.cwd()) if given == "below" else root
    (line,) = re.findall(
        r"lightning-suite (report .*? --index \S+)", Page(write_report(folder)).text
    )
    assert main(shlex.split(line)) == 0
    assert (root / "index.html").is_file()


def test_of_a_single_run_nothing_is_said_of_others(fit: Path) -> None:
    assert "the newest of" not in Page(write_report(fit)).text
    assert "the newest of" not in Page(write_report(fit.parent.parent)).text


def test_the_folder_of_a_command_is_shown_with_its_artifacts(check: RunFolder) -> None:
    page = Page(write_report(check.path))
    assert page.sections() == ["Coordinates", "Configuration", "Files"]
    assert [text for tag, text in page.headings if tag == "h3"] == ["Growth with depth", "Slopes"]
    assert "lightning-suite · coord-check" in page.text
    assert "lightning-suite coord-check --depths '2, 4'" in page.text
    assert "Does anything grow?" in page.text
    assert "depths: [2, 4]" in page.text
    assert f"torch {version('torch')}" in page.text
    assert "0.5123" in page.text
    assert '<a href="https://arxiv.org/abs/2310.02244" rel="noreferrer">' in page.source
    assert 'href="artifacts/slopes.csv"' in page.source
    assert_self_contained(page)


def test_artifacts_beside_the_logs_of_a_run_are_shown_too(fit: Path) -> None:
    RunFolder(fit).add_table("roles", [{"role": "output"}], title="Roles", section="depth-µP")
    for folder in (fit, fit.parent.parent):
        assert Page(write_report(folder)).sections()[:2] == ["depth-µP", "Training"]


def test_sections_are_sorted_whatever_the_order_of_writing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number, section in enumerate(["b", "", "A", "b"]):
        folder.add_table(f"t{number}", [{"x": 1}], title=f"T{number}", section=section)
    page = Page(write_report(tmp_path))
    assert page.sections() == ["Results", "A", "b", "Files"]
    assert [text for tag, text in page.headings if tag == "h3"] == ["T1", "T2", "T0", "T3"]


def test_the_same_folder_gives_the_same_page(fit: Path, check: RunFolder) -> None:
    for folder in (fit, check.path):
        first = write_report(folder).read_bytes()
        assert write_report(folder).read_bytes() == first


def test_nothing_that_a_user_or_a_file_says_becomes_markup(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "<b>run")
    folder.add_table("t", [{EVIL: EVIL}], title=EVIL, caption=EVIL, section=EVIL)
    folder.add_figure("f", Figure(), title=EVIL, caption=f"`{EVIL}` https://a.example/{EVIL}")
    folder.write_record(command=[EVIL], seed=None, config=EVIL, note=EVIL)
    (folder.path / "metrics.csv").write_text('step,"m/<script>alert(1)</script>/x_1"\n1,2\n')
    (folder.path / "hparams.yaml").write_text(f"x: {EVIL}\n")
    page = Page(write_report(folder.path))
    assert_self_contained(page)
    assert page.count("script") == 1
    assert page.count("img") == page.count("b") == 0


def test_a_script_inside_a_figure_file_is_dropped(check: RunFolder) -> None:
    (check.artifacts / "growth.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script>'
        '<image href="http://evil.example/x.png"/><path d="M0 0"/></svg>'
    )
    page = Page(write_report(check.path))
    assert_self_contained(page)
    assert "alert" not in page.source


def test_a_very_large_figure_goes_in_as_bitmap(
    check: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_suite.report.page._LARGE_SVG", 100)
    page = Page(write_report(check.path))
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["alt"] == "Growth with depth"
    assert (image["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert_self_contained(page)


def test_two_figures_do_not_share_ids(check: RunFolder) -> None:
    shutil.copy(check.artifacts / "growth.svg", check.artifacts / "again.svg")
    check.add_figure("again", Figure(), title="Again")
    shutil.copy(check.artifacts / "growth.svg", check.artifacts / "again.svg")
    ids = [a["id"] for _, a in Page(write_report(check.path)).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_link_inside_the_page_leads_somewhere(check: RunFolder) -> None:
    page = Page(write_report(check.path))
    ids = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        if tag == "a" and (target := attributes["href"] or "").startswith("#"):
            assert target[1:] in ids
        if tag == "a" and not target.startswith(("#", "http")):
            assert (check.path / target).is_file()


def test_headings_are_nested_without_gaps(fit: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page(write_report(fit)).headings]
    assert levels.count(1) == 1
    assert all(below - level <= 1 for level, below in pairwise(levels))


def test_missing_and_damaged_files_are_named_and_the_rest_is_shown(
    fit: Path, check: RunFolder
) -> None:
    (check.artifacts / "slopes.csv").write_text("a,b\n1\n")
    (check.artifacts / "growth.svg").unlink()
    page = Page(write_report(check.path))
    assert "slopes.csv, row 2: 1 cells, but the header has 2" in page.text
    assert "Figure 'growth'" in page.text
    assert "depths: [2, 4]" in page.text

    (fit / "metrics.csv").write_text("step,a\n1,x\n")
    page = Page(write_report(fit))
    assert "metrics.csv, row 2, column 'a': expected a number, found 'x'" in page.text
    assert "width: 8" in page.text


def test_a_killed_run_says_that_its_last_row_is_cut(fit: Path) -> None:
    with (fit / "metrics.csv").open("a") as file:
        file.write("0.12")
    assert "The last row of metrics.csv was cut off" in Page(write_report(fit)).text


def test_values_that_are_not_finite_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train_loss\n1,2\n2,nan\n3,inf\n")
    assert "2 values are NaN or infinite" in Page(write_report(tmp_path)).text


def test_a_run_that_logged_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,a\n")
    assert "nothing was logged" in Page(write_report(tmp_path)).text


def test_one_value_is_no_curve_and_a_test_no_training(tmp_path: Path) -> None:
    record = {"version": 1, "command": ["lightning-suite", "test", "-c", "a.yaml"]}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "metrics.csv").write_text("step,m/test_f1\n0,0.75\n", encoding="utf-8")
    (tmp_path / "hparams.yaml").write_text("a: 1\n", encoding="utf-8")
    page = Page(write_report(tmp_path))
    assert page.sections()[0] == "Logged values"
    assert page.count("svg") == 0
    assert "metricvalue m/test_f10.75 Configuration" in page.text  # one number, not five times


def test_long_tables_are_cut_and_say_where_the_rest_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_table("long", ({"x": n} for n in range(1500)), title="Long")
    page = Page(write_report(tmp_path))
    assert "First 500 of 1,500 rows; all are in the file." in page.text
    assert page.source.count('<td class="number" data-value="') < 510


@pytest.mark.parametrize("name", ["artifacts/index.json", "run.json"])
def test_a_damaged_index_or_record_is_an_error_and_keeps_the_old_page(
    check: RunFolder, name: str
) -> None:
    before = write_report(check.path).read_bytes()
    (check.path / name).write_text("{")
    with pytest.raises(SuiteError, match=name.replace(".", r"\.")):
        write_report(check.path)
    assert (check.path / "report.html").read_bytes() == before


def test_a_record_from_elsewhere_may_have_any_shape(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        '{"command": "rm", "seed": [1], "versions": 3, "threads": {}, "config": 5, "note": 7}'
    )
    assert_self_contained(Page(write_report(tmp_path)))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no run in here. Expected one of run.json, metrics.csv"):
        write_report(tmp_path)
    with pytest.raises(SuiteError, match="no such folder"):
        write_report(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_page_has_tables_and_says_what_to_install(
    fit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(write_report(fit))
    assert "pip install 'lightning-suite[report]'" in page.text
    assert page.count("svg") == 0
    assert "train_loss" in page.text
