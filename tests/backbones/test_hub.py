"""The hub is checked once with a short timeout; offline, models come from the cache or are refused."""

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
    """Return a function that sets the hub's port on this machine."""

    def use_port(port):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        hub.is_reachable.cache_clear()

    yield use_port
    hub.is_reachable.cache_clear()


@pytest.fixture
def listening():
    """A port that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def refusing():
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class ForbiddenHandler(BaseHTTPRequestHandler):
    requests = 0

    def do_HEAD(self):
        ForbiddenHandler.requests += 1
        self.send_error(403)

    def log_message(self, *_):
        pass


def test_hub_with_http_error_is_reachable_and_checked_once(endpoint):
    with HTTPServer(("127.0.0.1", 0), ForbiddenHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint(server.server_port)
        assert hub.is_reachable() and hub.is_reachable()
        server.shutdown()
    assert ForbiddenHandler.requests == 1


def test_hub_refused_connection_is_unreachable(endpoint, refusing):
    endpoint(refusing)
    assert not hub.is_reachable()


def test_hub_without_response_is_unreachable(endpoint, listening, monkeypatch):
    monkeypatch.setattr(hub, "HUB_TIMEOUT_SECONDS", 0.2)
    endpoint(listening)
    assert not hub.is_reachable()


def test_hub_in_offline_mode_sends_no_request(endpoint, listening, monkeypatch):
    endpoint(listening)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.urllib.request, "urlopen", None)  # a call would fail
    assert not hub.is_reachable()


def test_unreachable_hub_is_refused_without_retries(endpoint, refusing, monkeypatch, compose):
    """The hub's own client would try six times, with growing pauses."""
    endpoint(refusing)
    sleeps = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    with refused(ConfigError, "nobody/no-such-model", "hub", "backbone.path", "pretrained=false"):
        make_backbone(compose("pretrained=true", "backbone.path=nobody/no-such-model"))
    assert not sleeps


def test_unreachable_hub_loads_cached_model_without_retries(
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
    sleeps = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    backbone = make_backbone(compose("pretrained=true", "backbone.path=nobody/tiny"))
    assert backbone.width == 16 and not sleeps
