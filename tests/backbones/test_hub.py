"""The hub is asked once, for seconds; without it a model is read from the cache or refused."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants
from refusals import refused
from transformers import AutoModel, GPT2Config

from llmdreamer.backbones import hub
from llmdreamer.backbones.factory import make_backbone
from llmdreamer.utils.errors import ConfigError


@pytest.fixture
def endpoint(monkeypatch):
    """Say where the hub is."""

    def at(port):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        hub.is_reachable.cache_clear()

    yield at
    hub.is_reachable.cache_clear()


@pytest.fixture
def listening():
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def refusing():
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Saying(BaseHTTPRequestHandler):
    asked = 0

    def do_HEAD(self):
        Saying.asked += 1
        self.send_error(403)

    def log_message(self, *_):
        pass


def test_a_hub_that_says_no_is_there_and_is_asked_once(endpoint):
    with HTTPServer(("127.0.0.1", 0), Saying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint(server.server_port)
        assert hub.is_reachable() and hub.is_reachable()
        server.shutdown()
    assert Saying.asked == 1


def test_no_hub_at_all_is_unreachable(endpoint, refusing):
    endpoint(refusing)
    assert not hub.is_reachable()


def test_a_hub_that_keeps_silent_is_unreachable(endpoint, listening, monkeypatch):
    monkeypatch.setattr(hub, "HUB_TIMEOUT_SECONDS", 0.2)
    endpoint(listening)
    assert not hub.is_reachable()


def test_whoever_works_offline_asks_nobody(endpoint, listening, monkeypatch):
    endpoint(listening)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.urllib.request, "urlopen", None)  # would be called
    assert not hub.is_reachable()


def test_without_the_hub_its_client_is_not_left_to_try(endpoint, refusing, monkeypatch, compose):
    """Left to itself it asks six times, and waits longer each time."""
    endpoint(refusing)
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with refused(ConfigError, "nobody/no-such-model", "hub", "backbone.path", "pretrained=false"):
        make_backbone(compose("pretrained=true", "backbone.path=nobody/no-such-model"))
    assert not waits


def test_without_the_hub_a_model_in_the_cache_is_loaded_at_once(
    endpoint, refusing, monkeypatch, compose, tmp_path
):
    folder = tmp_path / "models--nobody--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 8}
    AutoModel.from_config(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(
        folder / "snapshots" / "abc123"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    endpoint(refusing)
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    backbone = make_backbone(compose("pretrained=true", "backbone.path=nobody/tiny"))
    assert backbone.width == 16 and not waits
