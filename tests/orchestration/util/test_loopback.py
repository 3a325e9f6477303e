"""Loopback is reached directly, whatever proxy is set."""

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests

from orchestration.util.loopback import bypass_proxies


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ours")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_loopback_answers_though_a_dead_proxy_is_set(
    variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {variable: "http://127.0.0.1:9"}
    bypass_proxies(environment)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://{host}:{server.server_port}/"
        assert requests.get(url, timeout=5).content == b"ours"
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.read() == b"ours"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_needs_no_proxy_already_still_needs_none() -> None:
    environment = {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": ".intern, localhost", "no_proxy": "10.0.0.0/8"}
    bypass_proxies(environment)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "10.0.0.0/8,.intern,localhost,127.0.0.1,::1"


def test_without_a_proxy_nothing_is_set() -> None:
    environment: dict[str, str] = {}
    bypass_proxies(environment)
    assert not environment


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_where_nothing_needs_a_proxy_that_stays_as_it_is(variable: str) -> None:
    environment = {"http_proxy": "http://proxy:1", variable: "*"}
    bypass_proxies(environment)
    assert environment == {"http_proxy": "http://proxy:1", variable: "*"}
