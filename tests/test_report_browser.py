"""The report in a real browser, light and dark, narrow and wide: accessible, silent, within its width, and inert."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_support import hostile_run, large_run

from cuesmith import RunReport

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (400, 800, 1400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core: of CUESMITH_AXE, a file, or else from the npm registry."""
    if given := os.environ.get("CUESMITH_AXE"):
        return Path(given).read_text("utf-8")
    folder = tmp_path_factory.mktemp("npm")
    npm = shutil.which("npm")
    done = npm and subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"],
        capture_output=True,
        timeout=300,
    )
    if not done or done.returncode:
        pytest.skip("no axe-core: no npm, or its registry cannot be reached")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


@pytest.fixture(scope="module", params=["300 candidates", "hostile", "notebook"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on disk."""
    folder = tmp_path_factory.mktemp("page")
    text = {
        "300 candidates": lambda: RunReport.read(large_run(folder / "run", 300, 30)).to_html(),
        "hostile": lambda: hostile_run().to_html(),
        "notebook": lambda: (
            "<!doctype html><html lang=en><title>cell</title><main><h1>cell</h1><h2>output</h2>"
            f"{hostile_run()._repr_html_()}</main>"
        ),
    }[request.param]()
    path = folder / "report.html"
    path.write_text(text, "utf-8")
    return path


def opened(browser: Any, page: Path, width: int, scheme: str, **options: Any) -> tuple[Any, list[str], list[str]]:
    """Open a page; return it, what the console said and what was fetched."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    tab, said, fetched = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("request", lambda request: fetched.append(request.url))
    tab.goto(page.as_uri())
    return tab, said, fetched


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_silent_accessible_and_no_wider_than_the_window(browser: Any, page: Path, axe: str, scheme: str) -> None:
    tab, said, fetched = opened(browser, page, 800, scheme)
    title = tab.title()
    tab.evaluate(axe)
    for every in (False, True):
        if every:
            tab.evaluate(
                "document.querySelectorAll('details').forEach("
                "(d, i) => { d.open ||= i % 5 == 0 || !d.matches('.case') })"
            )
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            if width != 800:
                found = tab.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
                assert not [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
    assert not said and fetched == [page.as_uri()] and tab.title() == title != "run"
    assert not tab.evaluate("document.querySelectorAll('img, iframe, object, svg[onload], a[href^=javascript]').length")
    tab.context.close()


def test_one_click_opens_the_words_and_a_head_sorts(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(RunReport.read(large_run(tmp_path / "run", 60, 20)).to_html(), "utf-8")
    tab, said, _ = opened(browser, path, 800, "light")
    cell = tab.locator("a.cell.won").first
    words = tab.locator(f"[id='{cell.get_attribute('href')[1:]}']")
    assert not words.is_visible()
    cell.click()
    assert words.is_visible() and "The returned prompt: 100.0 %" in words.text_content()
    tab.locator("summary", has_text="All 60 candidates").click()
    tab.locator("th button", has_text="score").click()
    shown = [float(text.split()[0]) for text in tab.locator("table.sort tbody td:nth-child(4)").all_text_contents()]
    assert shown == sorted(shown, reverse=True)
    tab.locator("th button", has_text="score").click()
    turned = [float(text.split()[0]) for text in tab.locator("table.sort tbody td:nth-child(4)").all_text_contents()]
    assert turned == sorted(shown)
    tab.locator("input[type=search]").first.fill(words.locator("dd").nth(1).text_content())
    assert words.is_visible() and tab.locator(".group:not([hidden]) .case:not([hidden])").count() >= 1
    tab.locator("input[type=search]").first.fill("in none of them")
    assert not words.is_visible() and not said
    tab.context.close()


def test_it_reads_without_scripts(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(RunReport.read(large_run(tmp_path / "run", 60, 20)).to_html(), "utf-8")
    tab, said, _ = opened(browser, path, 800, "dark", java_script_enabled=False)
    cell = tab.locator("a.cell.won").first
    cell.click()
    assert tab.locator(f"[id='{cell.get_attribute('href')[1:]}']").is_visible() and not said
    assert not tab.locator(".tools").first.is_visible()
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_printed_on_white_and_nothing_on_paper_is_folded(browser: Any, page: Path, scheme: str) -> None:
    """On A4 with the margins that the page asks for: 688 px."""
    tab, said, _ = opened(browser, page, 688, scheme)
    tab.emulate_media(media="print", color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert tab.evaluate("[...document.querySelectorAll('main, section, .wide, table')].every("
                        "(e) => e.scrollWidth <= e.clientWidth + 1)")  # fmt: skip
    if tab.title() == "cell":  # a notebook prints its cells as it likes
        return
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ink = "getComputedStyle(document.querySelector('h1')).color"
    assert tab.evaluate(ink) == "rgb(22, 25, 29)"
    inside = "[...document.querySelectorAll('details > :not(summary)')].filter((e) => !e.closest('.unprinted'))"
    assert tab.evaluate(f"{inside}.length") and tab.evaluate(f"{inside}.every((e) => e.checkVisibility())")
    heads = "[...document.querySelectorAll('thead')].every((e) => getComputedStyle(e).display === 'table-header-group')"
    assert tab.evaluate(heads) and tab.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") < 10 and not said
    tab.context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_not_on_paper_is_told(browser: Any, tmp_path: Path, scripts: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(RunReport.read(large_run(tmp_path / "run", 60, 300)).to_html(), "utf-8")
    tab, said, _ = opened(browser, path, 688, "light", java_script_enabled=scripts)
    assert not tab.locator(".paper:visible").count(), "on screen there is all"
    tab.emulate_media(media="print")
    assert tab.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") < 10
    for shown in ("#prompt .diff", "svg.chart", "svg.family", "#spending table", ".notes li", "#origin dd"):
        assert tab.locator(shown).first.is_visible()
    assert tab.locator(".sort tbody tr:visible").count() == 12
    lost, told = tab.locator("#examples .group:visible .case"), tab.locator(".case:visible").count()
    assert told == min(3, lost.count()) > 0
    assert [grid.locator("li:visible").count() for grid in tab.locator(".grid").all()] == [200, 200]
    fresh, select = (tab.locator(".grid").nth(k).locator("a.cell").count() for k in range(2))
    assert [" ".join(text.split()) for text in tab.locator(".paper:visible").all_text_contents()] == [
        "What each step changed can be read in the page itself.",
        "48 more candidates, and the prompts of 40, can be read in the page itself.",
        "The first 200 of 300.",
        f"What was asked and answered in {fresh - told} of these examples can be read in the page itself.",
        "The first 200 of 300.",
        f"What was asked and answered in {select} of these examples can be read in the page itself.",
    ]
    assert not said
    tab.context.close()


def test_2000_candidates_are_there_at_once(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(RunReport.read(large_run(tmp_path / "run", 2_000)).to_html(), "utf-8")
    tab, said, _ = opened(browser, path, 1400, "light")
    took = tab.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert took < 10_000 and not said
    tab.context.close()
