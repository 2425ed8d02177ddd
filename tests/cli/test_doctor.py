"""`doctor` says what is installed, what is wrong and what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from lightning_suite.cli import environment
from lightning_suite.cli.environment import Finding
from lightning_suite.cli.main import main


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions; None: not installed."""

    def pretend(**changed: str | None) -> None:
        real = environment._version

        def version(name: str) -> str | None:
            return changed[name] if name in changed else real(name)

        monkeypatch.setattr(environment, "_version", version)

    return pretend


@pytest.fixture
def no_probe(monkeypatch):
    """Do not start a process that imports torch."""
    probe = {"threads": 1, "gpus": [], "mps": False, "built_for": None}
    monkeypatch.setattr(environment, "probe_torch", lambda: probe)
    return probe


def test_this_environment_has_no_problems(no_probe, capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "  ok       torch " in text
    assert "no GPU: everything runs on the CPU" in text
    assert text.endswith("\nno problems\n")


def test_a_compromised_release_is_a_problem(versions, no_probe, capsys):
    versions(lightning="2.6.2")
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "lightning 2.6.2 is a compromised release" in text
    assert "change your passwords and tokens" in text


def test_versions_out_of_range_come_with_the_pip_command(versions):
    versions(jsonargparse="4.0.0", torchmetrics=None)
    problems = [f.text for f in environment.packages() if f.status == "problem"]
    assert len(problems) == 2
    assert "torchmetrics is not installed: pip install 'torchmetrics>=" in problems[0]
    assert "jsonargparse 4.0.0 does not fit" in problems[1]


def test_a_missing_extra_is_a_note_with_the_pip_command(versions):
    versions(wandb=None)
    notes = [finding for finding in environment.extras() if finding.status == "note"]
    fix = "wandb: wandb missing or too old. pip install 'lightning-suite[wandb]'"
    assert notes == [Finding("note", fix)]


def test_extras_of_extras_are_followed():
    names = {
        requirement.name for requirement in environment.requirements("lightning-suite", "demo")
    }
    assert {"scikit-learn", "matplotlib"} <= names
    always = {r.name for r in environment.requirements("lightning-suite")}
    assert "torch" in always
    assert "wandb" not in always


def test_a_requirement_with_its_own_extra_is_checked_too(versions):
    versions(**{"docstring-parser": None})
    finding = environment._compare(Requirement("jsonargparse[signatures]>=4"))
    assert finding.status == "problem"
    assert "without its extra 'signatures'" in finding.text


def test_devices_and_threads(no_probe):
    no_probe.update(threads=4096, gpus=["Big GPU, 80 GiB"], mps=True, built_for="13.0")
    texts = [finding.text for finding in environment.machine()]
    assert "cuda:0 Big GPU, 80 GiB" in texts
    assert "mps (Apple GPU)" in texts
    assert any("more threads than cores" in text for text in texts)


def test_a_gpu_that_is_not_seen_is_a_note(no_probe):
    no_probe.update(built_for="13.0")
    notes = [finding.text for finding in environment.machine() if finding.status == "note"]
    assert notes == ["torch is built for CUDA 13.0 and sees no GPU: check nvidia-smi"]


def test_torch_is_asked_in_a_process_of_its_own():
    probe = environment.probe_torch()
    assert isinstance(probe, dict)
    assert probe["threads"] >= 1


def test_a_broken_torch_is_a_problem_with_its_own_words(monkeypatch):
    monkeypatch.setattr(environment, "_PROBE", "raise ImportError('libfoo.so: no such file')")
    (problem,) = [finding for finding in environment.machine() if finding.status == "problem"]
    assert problem.text == "torch cannot be imported: ImportError: libfoo.so: no such file"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WANDB_MODE": "offline"}, "WANDB_MODE=offline: no login needed"),
        ({"WANDB_MODE": "", "WANDB_API_KEY": "secret"}, "login from WANDB_API_KEY"),
        ({"WANDB_MODE": ""}, "no login: run `wandb login`, or use the overlay wandb_offline"),
        ({"WANDB_MODE": "", "NETRC": "with"}, "login from the netrc file"),
    ],
)
def test_wandb_login_is_looked_for_and_never_shown(variables, expected, monkeypatch, tmp_path):
    (tmp_path / "with").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "without").write_text("")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / variables.get("NETRC", "without")))
    (finding,) = environment.wandb()
    assert finding.text == expected


def test_works_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['lightning'] = None\n"
        "from lightning_suite.cli import environment\n"
        "environment.find_spec = lambda name: None\n"
        "from lightning_suite.cli.main import main\n"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Extras" in done.stdout


def test_role_table_of_a_config(capsys):
    pytest.importorskip("sklearn")
    assert main(["doctor", "-c", "depth_mup/digits"]) == 0
    text = capsys.readouterr().out
    assert "rule nfd, preset residual_net, depth 16 (base 4)" in text
    assert "optimizer SGD" in text
    row = next(line for line in text.splitlines() if "first.weight" in line)
    assert row.split() == ["net.blocks.*.first.weight", "16", "hidden_first", "2"]


def test_the_role_table_is_that_of_the_options_of_fit(capsys):
    pytest.importorskip("sklearn")
    words = ["--model.init_args.depth", "64", "-c", "depth_mup/digits", "--trainer.max_epochs=3"]
    assert main(["doctor", *words[2:], *words[:2]]) == 0
    text = capsys.readouterr().out
    assert "depth 64 (base 4)" in text
    row = next(line for line in text.splitlines() if "first.weight" in line)
    assert row.split() == ["net.blocks.*.first.weight", "64", "hidden_first", "4"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-c", "base.yaml", "--model.widht", "3"], "Did you mean '--model.init_args.width'?"),
        (["base.yaml"], "A config is given with -c: -c base.yaml"),
        (["--jsn"], "--jsn: unknown option."),
    ],
)
def test_words_that_fit_would_not_take_are_refused_as_there(project, capsys, words, told):
    assert main(["doctor", *words]) == 2
    assert told in capsys.readouterr().err


def test_role_table_needs_the_callback(project, capsys):
    assert main(["doctor", "-c", "base.yaml"]) == 2
    assert "Add `-c overlays/depth_mup`" in capsys.readouterr().err


def test_role_table_of_a_bad_config_lists_its_problems(project, capsys):
    assert main(["doctor", "-c", "base.yaml", "-c", "{trainer: {max_epoch: 3}}"]) == 2
    assert "-c:1: error: trainer.max_epoch: unknown key" in capsys.readouterr().err
