"""A name of the Hub where there is no network is told at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.language.hub import answers, only_local
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer

CLOSED = "http://127.0.0.1:9"


class Refuses(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(401)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # where one is set, it would answer


@pytest.fixture
def server() -> Iterator[str]:
    httpd = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", CLOSED)


def test_a_server_that_refuses_has_answered(server: str) -> None:
    assert answers(server)
    assert not answers(CLOSED)
    assert not answers("http://")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["no-such/model", "runs/my/model"])
def test_a_model_that_is_nowhere_is_told_without_asking_for_its_files(name: str) -> None:
    with pytest.raises(SuiteError, match="pretrained: .* is no folder here and not in the local"):
        causal_lm_from_pretrained(name)
    with pytest.raises(SuiteError, match=f"tokenizer '{name}'.* the Hub does not answer"):
        load_tokenizer(name)


@pytest.mark.usefixtures("no_network")
def test_what_is_in_the_cache_is_loaded_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = str(tmp_path / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: found)
    assert only_local("some/model")


def test_where_the_hub_answers_it_is_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server)
    assert not only_local("some/model")
