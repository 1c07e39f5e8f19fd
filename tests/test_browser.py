"""The report's page in a real browser: what it shows, and that nothing a model wrote runs or is fetched."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuesmith.programs.diagnosis.figures import Curve, Figure, Section
from cuesmith.programs.diagnosis.page import Quote, html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
EVIL = (
    "<script>document.title='run'</script>\"'><img src=http://a.test/x onerror=document.title='run'>{{ 7 * 7 }}\u202e"
)


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """A loopback port through which the browser would fetch anything; yields it and what was asked for."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    asked.append(connection.recv(4096))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], asked
        over.set()
        thread.join()


def rendered(page: Path, port: int) -> str:
    """Return the document as Chromium has it after loading the page."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={page.parent / 'profile'}",
            f"--proxy-server=127.0.0.1:{port}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_page_is_shown_and_nothing_in_it_runs(tmp_path: Path, proxy: tuple[int, list[bytes]]) -> None:
    port, asked = proxy
    figure = Figure(EVIL, 0.5, 0.25, 0.75, 40, 0.01, EVIL, EVIL)
    curves = tuple(Curve(f"line {k} {EVIL}", [0.0, 1.0, 2.0], [k, None, k + 1.0], EVIL, "y") for k in range(6))
    page = tmp_path / "page.html"
    page.write_text(html(EVIL, EVIL, [Section(EVIL, EVIL, (figure,), curves)], [Quote(EVIL, EVIL)]), encoding="utf-8")
    dom = rendered(page, port)
    assert not re.search(r"<(script|img|iframe|link|object)\b", dom) and "<title>run" not in dom
    assert "&lt;script&gt;" in dom and "{{ 7 * 7 }}" in dom
    assert dom.count('class="key c') == 6 and len(set(re.findall(r"--c\d: (#\w+)", dom))) == 12
    assert not [request for request in asked if b"a.test" in request], "the page fetches nothing"


def test_the_check_would_see_a_page_that_fetches(tmp_path: Path, proxy: tuple[int, list[bytes]]) -> None:
    port, asked = proxy
    page = tmp_path / "page.html"
    page.write_text("<script>document.title='run'</script><img src=http://a.test/x>", encoding="utf-8")
    dom = rendered(page, port)
    assert "<title>run" in dom and [request for request in asked if b"a.test" in request]
