"""``lightning-suite bank`` as a user runs it, on a bank of a tiny trained model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.cli.main import main
from lightning_suite.cli.tables import table
from lightning_suite.datamodules.edit_sources import read_edits
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.answers import Answer, Answerer
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import read_bank, save_bank
from lightning_suite.scen.editing import open_bank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.prompts import PromptFormat

Run = Callable[..., tuple[int, str, str]]
COLOURS = {"tom": ("Tom", "red"), "lily": ("Lily", "blue"), "max": ("Max", "green")}


def question(name: str) -> str:
    return f"What is the colour of {name}?"


def edits(*names: str) -> list[Edit]:
    return [Edit(n, question(COLOURS[n][0]), COLOURS[n][1], subject=COLOURS[n][0]) for n in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the banks ``facts`` (tom twice, lily) and ``more`` (max)."""
    folder = tmp_path_factory.mktemp("made")
    glass_model().save_pretrained(folder / "lm")
    glass_tokenizer().save_pretrained(folder / "lm")
    model = causal_lm_from_pretrained(str(folder / "lm")).eval()
    tokenizer = load_tokenizer(str(folder / "lm"))
    settings = ExpertSettings(steps=60)  # a tiny model learns slowly
    for name, groups in (("facts", [["tom", "lily"]]), ("more", [["max"]])):
        bank = ExpertBank.for_model(model, tokenizer, gate="closed")
        for group in groups:
            bank.add(model, tokenizer, edits(*group), settings=settings)
        if name == "facts":
            newer = Edit("tom", question("Tom"), "grey", subject="Tom")
            bank.add(model, tokenizer, [newer], settings=settings)
        save_bank(bank, folder / name)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Run:
    """Run the command on copies of the banks; returns status, output and errors."""
    for name in ("facts", "more"):
        for suffix in (".json", ".safetensors"):
            shutil.copy(made / f"{name}{suffix}", tmp_path)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def call(*args: str) -> tuple[int, str, str]:
        status = main(["bank", *args])
        return status, *capfd.readouterr()

    return call


class TestLooking:
    def test_list_shows_live_edits_in_columns(self, run: Run) -> None:
        status, out, _ = run("list", "facts")
        assert status == 0
        assert [" ".join(line.split()) for line in out.splitlines()] == [
            "id prompt target version",
            "lily What is the colour of Lily? blue 1",
            "tom What is the colour of Tom? grey 2",
            "2 edits shown, 2 live, 3 ever made",
        ]

    def test_list_finds_and_shows_what_is_gone(self, run: Run) -> None:
        _, out, _ = run("list", "facts", "--find", "LILY")
        assert "1 edit shown, 2 live" in out
        assert "Tom" not in out
        _, out, _ = run("list", "facts.json", "--all", "--find", "tom")
        assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["replaced", "live"]

    def test_show_says_what_the_bank_is(self, run: Run, made: Path) -> None:
        status, out, _ = run("show", "facts")
        assert status == 0
        for words in (str(made / "lm"), "down_proj (341 -> 128)", "closed", "1 replaced", "2 live"):
            assert words in out

    @pytest.mark.parametrize("words", [("tom",), ("--id", "tom")])
    def test_show_has_all_versions_of_an_edit(self, run: Run, words: tuple[str, ...]) -> None:
        _, out, _ = run("show", "facts", *words)
        assert [line for line in out.splitlines() if "target" in line or "replaces" in line] == [
            "target       red",
            "replaces     -",
            "target       grey",
            "replaces     tom",
        ]
        assert "loss " in out

    def test_an_unknown_edit_is_refused_with_the_nearest(self, run: Run) -> None:
        status, _, err = run("show", "facts", "lilly")
        assert (status, "Did you mean 'lily'" in err) == (2, True)

    def test_looking_takes_no_model_and_no_torch(self, run: Run) -> None:
        code = (
            "import sys; from lightning_suite.cli.main import main;"
            "runs = [['list', 'facts'], ['show', 'facts'], ['export', 'facts', '-']];"
            "failed = any([main(['bank', *words]) for words in runs]);"
            "slow = {'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules);"
            "sys.exit(f'loaded {slow}' if slow else failed)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "2 live" in done.stdout

    def test_what_takes_no_model_waits_for_no_lightning(self, run: Run) -> None:
        code = (
            "import sys; from lightning_suite.cli.main import main;"
            "failed = any([main(['bank', 'remove', 'facts', 'tom']),"
            " main(['bank', 'compact', 'facts'])]);"
            "slow = {'lightning', 'transformers', 'torchmetrics'} & set(sys.modules);"
            "sys.exit(f'loaded {slow}' if slow else failed)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 edit removed, 1 live" in done.stdout

    def test_explain_names_the_edit_and_its_margin(self, run: Run) -> None:
        status, out, _ = run("explain", "facts", question("Tom"), "Who is there?")
        rows = out.splitlines()
        assert status == 0
        assert rows[0].split()[-3:] == ["score", "threshold", "margin"]
        assert rows[1].split()[-6:-3] == ["tom", "grey", "tom"]
        assert rows[2].split()[-5] == "-"
        for row, fires in zip(rows[1:3], (True, False), strict=True):
            score, threshold, margin = map(float, row.split()[-3:])
            assert score - threshold == pytest.approx(margin, abs=0.002)
            assert (margin >= 0) == fires
        assert rows[3].startswith("margin = score - threshold")

    def test_explain_has_no_threshold_where_no_edit_comes_near(self, run: Run) -> None:
        run("remove", "facts", "lily", "tom")
        status, out, _ = run("explain", "facts", "Who is there?")
        assert (status, out.splitlines()[1].split()[-2:]) == (0, ["-inf", "-inf"])


class TestChanging:
    def test_remove_then_rollback(self, run: Run) -> None:
        before = Path("facts.safetensors").read_bytes()
        assert run("remove", "facts", "lily", "tom")[:2] == (0, "2 edits removed, 0 live\n")
        assert [r.status for r in read_bank("facts").records] == ["replaced", "removed", "removed"]
        status, out, _ = run("rollback", "facts", "lily")
        assert (status, out) == (0, f"lily: {question('Lily')} -> blue\n")
        assert [r.status for r in read_bank("facts").records] == ["replaced", "live", "removed"]
        assert len(Path("facts.safetensors").read_bytes()) <= len(before)

    def test_rollback_brings_the_earlier_version_back(self, run: Run, made: Path) -> None:
        assert run("rollback", "facts", "tom", "--model", str(made / "lm"))[1].endswith("red\n")
        model = causal_lm_from_pretrained(str(made / "lm")).eval()
        tokenizer = load_tokenizer(str(made / "lm"))
        bank = open_bank("facts", model, tokenizer)
        with bank.attach(model, tokenizer) as attached:
            assert [d.fired for d in attached.explain([question("Tom")])] == ["tom"]
            form = attached.format
            batch = form.batch([form.encode(question("Tom"))])
            out = model.generate(**batch, max_new_tokens=3, do_sample=False)
            answer = form.decode(out[0, batch["input_ids"].shape[1] :].tolist())
        assert answer.split()[0] == "red"

    def test_compact_leaves_no_trace_of_what_was_taken_out(self, run: Run) -> None:
        run("remove", "facts", "lily")
        before = Path("facts.safetensors").stat().st_size
        assert "Lily" in Path("facts.json").read_text()  # for rollback
        status, out, _ = run("compact", "facts")
        freed = before - Path("facts.safetensors").stat().st_size
        assert (status, out) == (0, f"2 versions forgotten, 1 live, {freed:,} bytes less\n")
        assert freed > 0
        said = Path("facts.json").read_text()
        assert not any(word in said.casefold() for word in ("lily", "blue", "red"))
        assert run("explain", "facts", question("Tom"))[1].splitlines()[1].split()[-5] == "grey"
        for edit in ("tom", "lily"):
            status, _, err = run("rollback", "facts", edit)
            assert (status, "no edit 'lily'" in err or "no earlier version" in err) == (2, True)
        assert run("compact", "facts")[1].startswith("no versions forgotten, 1 live, 0 bytes")

    def test_merge_writes_a_third_bank(self, run: Run) -> None:
        status, out, _ = run("merge", "facts", "more", "all")
        assert (status, out) == (0, "1 edit added, 3 live: all\n")
        assert run("explain", "all", question("Max"))[1].splitlines()[1].split()[-5] == "green"
        status, _, err = run("merge", "facts", "more", "all")
        assert (status, "add --force" in err) == (2, True)
        assert run("merge", "facts", "more", "all", "--force")[0] == 0

    def test_merging_conflicts_is_refused(self, run: Run) -> None:
        for kind in ("json", "safetensors"):
            shutil.copy(f"facts.{kind}", f"copy.{kind}")
        status, _, err = run("merge", "facts", "copy", "all")
        assert (status, "cannot be merged: 'lily' has the prompt of 'lily'" in err) == (2, True)

    def test_export_writes_edits_that_can_be_made_again(self, run: Run) -> None:
        assert run("export", "facts", "facts.jsonl")[:2] == (0, "2 edits: facts.jsonl\n")
        lines = [json.loads(line) for line in Path("facts.jsonl").read_text().splitlines()]
        assert lines[0] == {
            "id": "lily",
            "prompt": question("Lily"),
            "target": "blue",
            "subject": "Lily",
        }
        assert run("export", "facts", "facts.jsonl")[0] == 2
        assert json.loads(run("export", "facts", "-")[1].splitlines()[1])["target"] == "grey"


class TestParaphrasing:
    """Other wordings for the method to learn from, as a file of edits."""

    @pytest.fixture(autouse=True)
    def _source(self, run: Run) -> None:
        rows = [
            {"id": n, "prompt": question(name), "target": colour, "rephrases": [f"{name} is of?"]}
            for n, (name, colour) in COLOURS.items()
        ]
        Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def test_by_template(self, run: Run) -> None:
        status, out, _ = run("paraphrase", "my.jsonl", "out.jsonl", "--way", "template")
        assert (status, out) == (0, "3 edits with 9 paraphrases: out.jsonl\n")
        first = read_edits("out.jsonl")[0]
        assert all(question("Tom") in text for text in first.paraphrases)
        assert first.rephrases == ("Tom is of?",), "kept for the evaluation"

    def test_by_a_model_what_is_written_is_not_written_again(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def answer(_self: object, questions: list[str]) -> list[Answer]:
            asked.extend(questions)
            return [
                Answer(f"Has {text.split(chr(34))[1]} a colour, {n % 5}?", True)
                for n, text in enumerate(questions)
            ]

        monkeypatch.setattr(Answerer, "__call__", answer)
        command = ("paraphrase", "my.jsonl", "out.jsonl", "--model", str(self.model(run)))
        assert run(*command)[:2] == (0, "3 edits with 9 paraphrases: out.jsonl\n")
        made = Path("out.jsonl").read_text()
        lines = made.splitlines(keepends=True)
        Path("out.jsonl").write_text(lines[2] + lines[0])  # as if it had been killed
        asked.clear()
        assert run(*command)[0] == 0
        assert Path("out.jsonl").read_text() == made
        assert asked
        assert all("Lily" in text for text in asked)

    @staticmethod
    def model(run: Run) -> str:
        return str(json.loads(Path("facts.json").read_text())["base"]["name"])

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["out.jsonl"], "--model NAME"),
            (["out.jsonl", "--way", "template", "--most", "0"], "--most is 0"),
            (["out.txt", "--way", "template"], "out.txt: name a .jsonl file"),
            (["other.jsonl", "--way", "template"], "other.jsonl: is of other edits, such as 'x'"),
        ],
    )
    def test_mistakes(self, run: Run, args: list[str], message: str) -> None:
        Path("other.jsonl").write_text('{"id": "x", "prompt": "Who?", "target": "me"}\n')
        status, _, err = run("paraphrase", "my.jsonl", *args)
        assert (status, message in err) == (2, True), err
        assert not Path("out.jsonl").exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["lst", "facts"], "there is no 'lst'. Did you mean 'list'"),
            (["list", "nowhere"], "nowhere.json: cannot be read"),
            (["list", "nowhere"], "a bank, as `lightning-suite fit -c scen/edit` writes it"),
            (["list", "fact"], "Did you mean 'facts'? In .: facts, more."),
            (["list", "runs/scen"], "runs/scen is a folder; in it there is a bank: runs/scen/bank"),
            (["merge", "facts", "facts.json", "out"], "facts and facts.json are the same bank"),
            (["remove", "facts", "nobody"], "no live edit 'nobody'"),
            (["remove", "facts", "nobody"], "`lightning-suite bank list` shows the ids"),
            (["remove", "facts", "lilly"], "Did you mean 'lily'?"),
            (["remove", "facts"], "ids"),
            (["list", "facts", "--fnd", "x"], "--fnd"),
            (["explain", "facts", "Who?", "--model", "nowhere/at-all"], "nowhere/at-all"),
        ],
    )
    def test_are_one_line_and_status_2(self, run: Run, args: list[str], message: str) -> None:
        before = Path("facts.json").read_bytes()
        Path("runs/scen").mkdir(parents=True)
        for kind in ("json", "safetensors"):
            shutil.copy(f"facts.{kind}", f"runs/scen/bank.{kind}")
        status, _, err = run(*args)
        assert status == 2
        assert message in err
        assert Path("facts.json").read_bytes() == before

    def test_a_model_named_in_a_bank_is_never_looked_up_elsewhere(self, run: Run) -> None:
        value = json.loads(Path("facts.json").read_text())
        value["base"]["name"] = "somebody/model"
        Path("facts.json").write_text(json.dumps(value))
        status, _, err = run("explain", "facts", "Who?")
        assert (status, "'somebody/model', which is no folder here" in err) == (2, True)

    def test_a_bank_of_another_model_is_refused(self, run: Run, tmp_path: Path) -> None:
        other = glass_model()
        other.get_submodule(read_bank("facts").base.layer).weight.data.mul_(1.1)
        other.save_pretrained(tmp_path / "other")
        glass_tokenizer().save_pretrained(tmp_path / "other")
        status, _, err = run("explain", "facts", "Who?", "--model", "other")
        assert (status, "10.0% apart" in err) == (2, True)
        assert "--allow-other-weights" in err
        with pytest.warns(UserWarning, match=r"10\.0% apart"):
            status, out, _ = run(
                "explain", "facts", "Who?", "--model", "other", "--allow-other-weights"
            )
        assert (status, "Who?" in out) == (0, True)


class TestHelp:
    def test_without_a_verb_all_verbs_are_shown(self, run: Run) -> None:
        status, out, _ = run()
        assert status == 0
        for verb in (
            "list",
            "show",
            "remove",
            "rollback",
            "compact",
            "merge",
            "export",
            "explain",
            "paraphrase",
        ):
            assert f"\n  {verb:<10} " in out

    def test_each_verb_has_worked_examples(self, run: Run) -> None:
        for verb in (
            "list",
            "show",
            "remove",
            "rollback",
            "compact",
            "merge",
            "export",
            "explain",
            "paraphrase",
        ):
            status, out, _ = run(verb, "--help")
            assert status == 0
            assert f"lightning-suite bank {verb} " in out.partition("Examples:")[2]


def test_tables_are_columns_with_long_cells_cut() -> None:
    assert table(["a", "bc", "n"], [["x", "y" * 70, 1.5], [None, "z\nz", 12]]).splitlines() == [
        "a  bc" + " " * 58 + "      n",
        "x  " + "y" * 59 + "…  1.500",
        "   z z" + " " * 57 + "     12",
    ]


def test_decoding_of_answers_is_the_prompts_own() -> None:
    form = PromptFormat.for_model(glass_model(), glass_tokenizer())
    assert form.text_of(form.encode("Who is Tom?")) == form.prompt_text("Who is Tom?")
