"""``lightning-suite select`` as a user runs it, on scores of a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_scoring import rows, write_config, write_rows

from lightning_suite import InstructionDataModule
from lightning_suite.cli.main import main
from lightning_suite.resofilter.selection import score_column, table_columns
from lightning_suite.resofilter.store import merge_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing to learn within max_length")

Select = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data.jsonl`` and the finished ``scores``; one sample has no labels."""
    folder = tmp_path_factory.mktemp("scored")
    data = [*rows(), {"id": "empty", "topic": "words", "question": "How " * 40, "answer": "So."}]
    data[4]["question"] = data[5]["question"] = data[1]["question"]  # the same prompt
    config = write_config(folder, data, without_prompt=True)  # for ifd
    assert main(["score", "-c", str(config)]) == 0
    return folder


@pytest.fixture
def select(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Select:
    """Run the command on a copy of the scores; returns status, output and errors."""
    shutil.copytree(scored / "scores", tmp_path / "scores")
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        status = main(["select", "scores", *args])
        return status, *capfd.readouterr()

    return run


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def original(scored: Path) -> list[dict[str, Any]]:
    return lines(str(scored / "data.jsonl"))


def scores_by_id(by: str = "adam1_mean_abs", **options: Any) -> dict[str, float]:
    table = table_columns(merge_shards("scores"))
    values = score_column(table, by, **options)
    return dict(zip(table["sample_id"].tolist(), values.tolist(), strict=True))


def test_the_lowest_half_as_it_was_with_id_and_score(select: Select, scored: Path) -> None:
    status, out, _ = select("--keep=0.5")
    assert status == 0
    assert "15 of 31 rows kept" in out
    assert "1 have no score (no_labels) and are not kept" in out
    by_id = scores_by_id()
    lowest = sorted((s, i) for i, s in by_id.items() if np.isfinite(s))[:15]
    kept = lines("scores/kept.jsonl")
    assert {row["sample_id"] for row in kept} == {i for _, i in lowest}
    before = [row for row in original(scored) if row["id"] in {i for _, i in lowest}]
    assert [row["id"] for row in kept] == [row["id"] for row in before], "the data's order"
    for row, old in zip(kept, before, strict=True):
        assert row == {**old, "sample_id": old["id"], "selection_score": by_id[old["id"]]}


def test_a_share_in_percent_is_the_same_share(select: Select) -> None:
    assert select("--keep=50%", "--out=percent.jsonl")[0] == 0
    assert select("--keep=0.5", "--out=share.jsonl")[0] == 0
    assert lines("percent.jsonl") == lines("share.jsonl")
    assert json.loads(Path("percent.selection.json").read_text())["keep"] == 0.5
    status, _, err = select("--keep=half")
    assert status == 2
    assert "a share must be above 0 and up to 1, got 'half'" in err


def test_what_was_done_is_written_beside_it(select: Select) -> None:
    select("--keep=0.3", "--order=band", "--out=some.jsonl")
    done = json.loads(Path("some.selection.json").read_text())
    assert done["order"] == "band"
    assert done["kept"] == len(lines("some.jsonl")) == 30 - 21
    assert done["rows"] == 31
    assert done["without_score"] == {"no_labels": 1, "content_changed": 0, "not_scored": 0}
    assert done["manifest"] == json.loads(Path("scores/manifest.json").read_text())


def test_the_report_shows_the_cut(select: Select) -> None:
    before = Path("scores/artifacts/resofilter_histogram.svg").read_bytes()
    select("--keep=0.2", "--by=unsaturation")
    assert Path("scores/artifacts/resofilter_histogram.svg").read_bytes() != before
    assert "Distribution of unsaturation over all samples" in Path("scores/report.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    "by", ["random", "loss", "perplexity", "ifd", "length", "label_length", "grad_norm"]
)
def test_baselines_keep_as_many(select: Select, by: str) -> None:
    assert select(f"--by={by}", "--keep=0.5", "--out=kept.jsonl")[0] == 0
    kept = lines("kept.jsonl")
    assert len(kept) == 15
    if by != "random":
        values = scores_by_id(by)
        assert max(row["selection_score"] for row in kept) <= sorted(values.values())[15]


def test_highest_is_the_complement_of_lowest(select: Select) -> None:
    select("--out=low.jsonl")
    select("--out=high.jsonl", "--order=highest")
    low, high = ({row["id"] for row in lines(f"{name}.jsonl")} for name in ("low", "high"))
    assert not low & high
    assert len(low | high) == 30


def test_random_depends_on_the_seed_alone(select: Select) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        select(f"--out={name}.jsonl", "--order=random", f"--seed={seed}")
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    assert Path("a.jsonl").read_bytes() != Path("c.jsonl").read_bytes()


def test_strata_keep_their_shares(select: Select) -> None:
    select("--out=kept.jsonl", "--strata=topic")
    assert Counter(row["topic"] for row in lines("kept.jsonl")) == {"sums": 10, "words": 5}
    status, _, err = select("--out=no.jsonl", "--strata=topc")
    assert status == 2
    assert "neither length:4 nor a column" in err
    assert "Did you mean 'topic'?" in err
    assert select("--out=length.jsonl", "--strata=length:3")[0] == 0
    assert len(lines("length.jsonl")) == 15


def rewrite_manifest(**changes: Any) -> None:
    path = Path("scores/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_strata_may_be_a_column_of_later_rows_alone(select: Select, scored: Path) -> None:
    data = original(scored)
    del data[0]["topic"]
    write_as("data.jsonl", data)
    status, _, err = select("--strata=topic", "--data=data.jsonl", "--out=k.jsonl")
    assert status == 0, err
    assert len(lines("k.jsonl")) == 15


@pytest.mark.parametrize("options", [["--by=random"], ["--order=random"]])
def test_a_seed_below_0_is_refused(select: Select, options: list[str]) -> None:
    status, _, err = select(*options, "--seed=-1")
    assert status == 2
    assert "seed is -1, and it must be 0 or more" in err


def test_compat_refuses_samples_that_were_cut_elsewhere(select: Select) -> None:
    status, _, err = select("--compat=resofilter")
    assert status == 2
    assert "max_length is 90, expected 768, and there are samples of 90 tokens" in err
    rewrite_manifest(max_length=768, depth=5, precision={"autocast": None, "matmul": "tf32"})
    status, _, err = select("--compat=resofilter")
    assert status == 2
    assert "layers [1, 2, 3] of 5 are scored, expected the last three" in err
    assert "products of float32 are tf32" in err


def test_compat_drops_repeated_prompts_first(select: Select, scored: Path) -> None:
    rewrite_manifest(max_length=768)
    status, out, _ = select("--keep=0.5", "--compat=resofilter", "--out=kept.jsonl")
    assert status == 0
    kept = lines("kept.jsonl")
    prompts = [row["question"] for row in kept]
    assert len(prompts) == len(set(prompts))
    # 30 samples with a score; some prompts occur twice
    data = rows()
    data[4]["question"] = data[5]["question"] = data[1]["question"]
    distinct = len({row["question"] for row in data})
    assert len(kept) == distinct - distinct // 2
    (repeated,) = re.findall(r"^(\d+) repeat the prompt of an earlier row", out, re.MULTILINE)
    asked = [row["question"] for row in original(scored)]
    assert int(repeated) == len(asked) - len(set(asked))


def test_compat_does_not_replace_the_first_of_a_prompt_that_has_changed(
    select: Select, scored: Path
) -> None:
    rewrite_manifest(max_length=768)
    data = original(scored)
    data[1]["answer"] = "Changed."  # 4 and 5 have its prompt
    write_as("data.jsonl", data)
    status, _, _ = select("--keep=1", "--compat=resofilter", "--data=data.jsonl", "--out=k.jsonl")
    assert status == 0
    assert data[1]["question"] not in [row["question"] for row in lines("k.jsonl")]


def test_compat_refuses_other_constants_and_lists_them(select: Select) -> None:
    path = Path("scores/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["features"]["adam1_mean_abs"]["lr"] = 1e-4
    manifest["targets"] = dict.fromkeys(manifest["targets"], "float64")
    path.write_text(json.dumps(manifest))
    status, _, err = select("--compat=resofilter", "--order=highest")
    assert status == 2
    assert "order is 'highest', expected 'lowest'" in err
    assert "lr of adam1_mean_abs is 0.0001, expected 1e-05" in err
    assert "the weights are float64, expected float32" in err


def test_compat_refuses_other_modules_and_adapters(select: Select) -> None:
    status, _, err = select("--compat=resofilter", "--module=down_proj")
    assert status == 2
    assert "module is 'down_proj', expected 'up_proj'" in err
    path = Path("scores/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["targets"]["model.layers.0.mlp.up_proj.lora_A.default"] = "float32"
    path.write_text(json.dumps(manifest))
    status, _, err = select("--compat=resofilter")
    assert status == 2
    assert "lora_A.default is part of an adapter" in err


def test_parquet_stays_parquet_with_its_types(select: Select, scored: Path) -> None:
    data = original(scored)
    types = pa.schema([(name, pa.large_string()) for name in data[0]])
    pq.write_table(pa.Table.from_pylist(data, types), "data.parquet")
    assert select("--data=data.parquet", "--out=kept.parquet")[0] == 0
    table = pq.read_table("kept.parquet")
    assert [table.schema.field(name).type for name in data[0]] == [pa.large_string()] * 4
    assert table.column_names[-2:] == ["sample_id", "selection_score"]
    assert table.schema.field("selection_score").type == pa.float64()
    select("--out=kept.jsonl")
    assert table.to_pylist() == lines("kept.jsonl")


def test_a_folder_of_datasets_stays_one(select: Select, scored: Path) -> None:
    data = datasets.Dataset.from_list(original(scored))
    types = data.features.copy()
    types["topic"] = datasets.ClassLabel(names=["sums", "words"])
    data.cast(types).save_to_disk("data")
    assert select("--data=data", "--out=kept")[0] == 0
    kept = datasets.load_from_disk("kept")
    assert kept.features["topic"] == types["topic"]
    select("--out=kept.jsonl")
    assert kept["sample_id"][:] == [row["sample_id"] for row in lines("kept.jsonl")]
    before = Path("kept", "state.json").read_bytes()
    assert select("--data=data", "--out=kept", "--keep=0.2")[0] == 2
    assert Path("kept", "state.json").read_bytes() == before
    assert select("--data=data", "--out=kept", "--keep=0.2", "--force")[0] == 0
    assert len(datasets.load_from_disk("kept")) == 6
    samples = InstructionDataModule("kept", tokenizer="bytes", max_length=90).samples()
    assert samples.ids == datasets.load_from_disk("kept")["sample_id"][:]


def test_several_parquet_files_become_one(select: Select, scored: Path) -> None:
    data = original(scored)
    for name, part in (("a", data[:11]), ("b", data[11:])):
        pq.write_table(pa.Table.from_pylist(part), f"{name}.parquet")
    known = json.loads(Path("scores/source.json").read_text())
    known["source"] = ["a.parquet", "b.parquet"]
    Path("scores/source.json").write_text(json.dumps(known))
    assert select()[0] == 0
    assert select("--out=kept.jsonl")[0] == 0
    assert pq.read_table("scores/kept.parquet").to_pylist() == lines("kept.jsonl")


@pytest.mark.parametrize("out", ["kept.parquet", "kept"])
def test_a_column_of_later_rows_alone_is_kept(select: Select, scored: Path, out: str) -> None:
    data = original(scored)
    data[20]["remark"] = "checked"
    write_rows(Path("data.jsonl"), data)
    assert select("--data=data.jsonl", "--keep=1", f"--out={out}")[0] == 0
    kept = pq.read_table(out).to_pylist() if Path(out).suffix else datasets.load_from_disk(out)
    assert [row["remark"] for row in kept] == [None] * 20 + ["checked"] + [None] * 9


def test_values_that_json_cannot_hold_are_pointed_to_parquet(select: Select, scored: Path) -> None:
    data = [{**row, "time": datetime(2024, 1, 1)} for row in original(scored)]
    pq.write_table(pa.Table.from_pylist(data), "data.parquet")
    status, _, err = select("--data=data.parquet", "--out=kept.jsonl")
    assert status == 2
    assert "datetime is not JSON serializable" in err
    assert "suffix .parquet" in err
    assert not Path("kept.jsonl").exists()
    assert select("--data=data.parquet", "--strata=time", "--out=kept.parquet")[0] == 0


def test_what_is_kept_is_a_source_for_training(select: Select) -> None:
    select("--out=kept.jsonl")
    data = InstructionDataModule("kept.jsonl", tokenizer="bytes", batch_size=4, max_length=90)
    batches = list(data.train_dataloader())
    ids = {sample_id for batch in batches for sample_id in batch["ids"]}
    assert ids == {row["sample_id"] for row in lines("kept.jsonl")}


def test_rows_that_were_not_scored_are_counted(select: Select, scored: Path) -> None:
    write_rows(Path("more.jsonl"), [*original(scored), {**rows(1)[0], "id": "new"}])
    status, out, _ = select("--data=more.jsonl", "--out=kept.jsonl")
    assert status == 0
    assert "1 have no score (not_scored: not in the scores;" in out
    write_rows(Path("other.jsonl"), [{**row, "id": f"x{row['id']}"} for row in rows()])
    status, _, err = select("--data=other.jsonl", "--out=no.jsonl")
    assert status == 2
    assert "none of its 30 ids is in scores" in err


def write_as(form: str, data: list[dict[str, Any]]) -> None:
    """Write ``data`` as the file or folder ``form``."""
    if form.endswith(".jsonl"):
        write_rows(Path(form), data)
    elif form.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(data), form)
    else:
        datasets.Dataset.from_list(data).save_to_disk(form)


@pytest.mark.parametrize("form", ["data.jsonl", "data.parquet", "data"])
def test_rows_that_say_something_else_than_was_scored_are_never_kept(
    select: Select, scored: Path, form: str
) -> None:
    data = original(scored)
    write_as(form, [{**row, "remark": "not read"} for row in data])
    status, out, err = select(f"--data={form}", "--keep=1", "--out=same.jsonl")
    assert status == 0
    assert "say something else" not in err
    assert len(lines("same.jsonl")) == 30
    data[3]["answer"], data[8]["question"] = "Changed.", "Changed?"
    data.append({**rows(1)[0], "id": "new"})
    shutil.rmtree(form) if Path(form).is_dir() else Path(form).unlink()
    write_as(form, data)
    status, out, err = select(f"--data={form}", "--keep=1", "--out=kept.jsonl")
    assert status == 0
    assert "2 have no score (content_changed) and are not kept" in out
    assert "1 have no score (not_scored:" in out
    assert "2 of 31 rows say something else than what was scored under their id" in err
    assert f"the first is {data[3]['id']!r}, row 4" in err
    kept = {row["id"] for row in lines("kept.jsonl")}
    assert kept == {row["id"] for row in original(scored)} - {data[3]["id"], data[8]["id"], "empty"}
    done = json.loads(Path("kept.selection.json").read_text())
    assert done["without_score"] == {"no_labels": 1, "content_changed": 2, "not_scored": 1}


@pytest.mark.parametrize("options", [[], ["--by=random"], ["--strata=topic"]])
def test_data_of_which_every_row_has_changed_are_refused(
    select: Select, scored: Path, options: list[str]
) -> None:
    write_as("data.jsonl", [{**row, "answer": "Another."} for row in original(scored)])
    status, _, err = select("--data=data.jsonl", "--out=kept.jsonl", *options)
    assert status == 2
    assert "31 of 31 rows say something else than what was scored under their id" in err
    assert "score these into a new folder" in err
    assert not Path("kept.jsonl").exists()


def test_scores_that_do_not_say_what_was_scored_are_joined_with_a_warning(select: Select) -> None:
    Path("scores/contents.parquet").unlink()
    status, _, err = select()
    assert status == 0
    assert "rows are joined to scores by id alone" in err
    pq.write_table(pa.table({"sample_id": ["a"], "content": [[1]]}), "scores/contents.parquet")
    status, _, err = select("--force")
    assert status == 2
    assert "contents.parquet: its columns must be text" in err


def test_an_existing_file_is_overwritten_only_by_force(select: Select) -> None:
    Path("kept.jsonl").write_text("precious")
    status, _, err = select("--out=kept.jsonl")
    assert status == 2
    assert "add --force" in err
    assert Path("kept.jsonl").read_text() == "precious"
    assert select("--out=kept.jsonl", "--force")[0] == 0


def test_unfinished_and_online_scores_are_refused(select: Select) -> None:
    shards = sorted(Path("scores/shards").iterdir())
    shards[0].unlink()
    status, _, err = select()
    assert status == 2
    assert "of 31 samples are scored" in err
    manifest = json.loads(Path("scores/manifest.json").read_text())
    Path("scores/manifest.json").write_text(json.dumps({**manifest, "mode": "online"}))
    status, _, err = select()
    assert status == 2
    assert "holds features of a training run" in err


def test_an_unknown_feature_names_those_that_are_there(select: Select) -> None:
    status, _, err = select("--by=grad_nrom")
    assert status == 2
    assert "Did you mean 'grad_norm'" in err
