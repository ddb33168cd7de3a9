"""The live parts in a real Chromium, in a page that is opened as a file.

The page holds what every page of the book holds: the scripts that _config.yml lists, in
their order, the style sheet, and what the build writes. Skipped where there is no
Chromium.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import CHROMIUM, Page, chromium
from gate import ROOT
from live_build import live_weights

STATIC = ROOT / "book" / "_static"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page for each live part."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(STATIC, folder / "_static")
    live_weights().write_weights(folder / "_static" / "live")
    live_weights().write_runs(folder / "_static" / "live")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    scripts = "".join(
        f'<script defer src="_static/{name}"></script>'
        for name, _ in config["sphinx"]["config"]["html_js_files"]
    )
    for name in ("ask", "train", "robot", "drive"):
        (folder / f"{name}.html").write_text(
            '<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f'<link rel="stylesheet" href="_static/custom.css">{scripts}'
            f'<main class="bd-article"><div class="explorer" data-explorer="{name}">'
            "</div></main></html>",
            encoding="utf-8",
        )
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with chromium(tmp_path / "profile") as found:
        found.requests.clear()
        yield found
        assert found.faults == []
        schemes = {address.partition(":")[0] for address in found.requests}
        assert schemes <= {"file", "blob", "about"}


def texts(page: Page, selector: str) -> Any:
    return page.run(
        f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)"
    )


def click(page: Page, words: str) -> None:
    """Click the one button that can be used and says so."""
    found = f"""[...document.querySelectorAll("button")].filter((one) =>
      one.textContent === {words!r} && !one.disabled && one.checkVisibility())"""
    page.until(f"{found}.length > 0")
    page.run(f"{found}[0].click()")


def no_sideways_scroll(page: Page) -> bool:
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return bool(page.run(wide) == 0)


def test_a_reader_asks_three_models_by_keyboard(page: Page, site: Path):
    """A sum, the bars of a token, and another token in its place, on a narrow page."""
    page.open(site / "ask.html", width=390)
    # The engine is loaded when it is needed.
    assert page.run("typeof live.engine") == "undefined"
    page.run("document.querySelector('input').select()")
    page.send("Input.insertText", text="47 + 86")
    page.press("Enter", "\r")
    written = "document.querySelectorAll('.live-verdict:not(:empty)').length"
    page.until(f"{written} === 3")
    verdicts = texts(page, ".live-verdict")
    assert verdicts[0].startswith("\u2717 no")
    assert verdicts[2].startswith("\u2713 right, after work")
    assert texts(page, ".live-heard")[0].count("sft, fine-tuned: ") == 1
    first = "document.querySelectorAll('.live-tokens')[1].firstChild"
    page.run(f"{first}.focus()")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert page.run(f"document.activeElement === {first}")
    page.press("Enter", "\r")
    assert page.run(f"{first}.ariaExpanded") == "true"
    assert sorted(texts(page, ".live-choices tbody button"))[0] == "2"
    page.run(
        "[...document.querySelectorAll('.live-choices button')]"
        ".find((one) => !one.disabled).focus()"
    )
    page.press("Enter", "\r")
    page.until(f"{written} === 4")
    assert len(texts(page, ".live-chosen")) == 1
    assert page.run("document.activeElement.classList.contains('live-chosen')")
    assert no_sideways_scroll(page)


def test_a_sum_that_cannot_be_read_is_refused_in_words(page: Page, site: Path):
    """And what was answered before does not stand beside the refusal."""
    page.open(site / "ask.html")
    click(page, "Ask")
    page.until("document.querySelectorAll('.live-verdict:not(:empty)').length === 3")
    assert texts(page, ".live-question") == ["What is 47+85?"]
    page.run("document.querySelector('input').value = '47-85'")
    click(page, "Ask")
    page.until("document.querySelector('input').ariaInvalid === 'true'")
    assert "a plus between them" in texts(page, ".live-status")[0]
    assert texts(page, ".live-tokens") == []
    click(page, "Reset")
    assert page.run("document.querySelector('input').value") == "47+85"
    assert texts(page, ".live-status") == [""]


@pytest.mark.parametrize(
    ("name", "button"), [("ask", "Ask"), ("train", "Train"), ("robot", "Train")]
)
def test_a_seed_that_is_none_is_refused_in_words(
    page: Page, site: Path, name: str, button: str
):
    page.open(site / f"{name}.html")
    seed = "document.querySelector('input[type=number]')"
    for typed in ("", "1.5", "0", "-3", "99999999"):
        page.run(f"{seed}.value = {typed!r}")
        click(page, button)
        page.until(f"{seed}.ariaInvalid === 'true'")
        said = "A seed is a whole number from 1 to 9999."
        page.until(f"document.querySelector('.live-status').textContent === {said!r}")
        assert page.run(f"{seed}.value") == typed
        click(page, "Reset")
        assert page.run(f"{seed}.ariaInvalid") == "false"
        assert page.run(f"{seed}.value") == "1"


def test_without_luck_the_same_question_keeps_its_seed(page: Page, site: Path):
    page.open(site / "ask.html")
    seed = "document.querySelector('input[type=number]').value"
    written = "document.querySelectorAll('.live-verdict:not(:empty)').length === 3"
    for temperature, seeds in (("1", ["1", "2"]), ("0", ["2", "2"])):
        slider = "document.querySelector('input[type=range]')"
        page.run(f"{slider}.value = {temperature}")
        page.run(f"{slider}.dispatchEvent(new Event('input'))")
        for wanted in seeds:
            click(page, "Ask")
            page.until(written)
            assert page.run(seed) == wanted


def test_a_run_says_whether_it_goes_on(page: Page, site: Path):
    """Pause while the model is loaded; Train, Pause, Train; Step; and the focus."""
    page.open(site / "train.html")
    page.run("document.querySelector('select').value = 1")
    status = "document.querySelector('.live-status').textContent"
    rows = "document.querySelectorAll('.live-numbers tbody tr').length"
    steps = "document.querySelectorAll('.live-buttons button')[1].disabled"
    focus = "document.activeElement.textContent"
    page.run("document.querySelector('.live-go').focus()")
    page.press("Enter", "\r")
    assert page.run(focus) == "Pause"
    page.press("Enter", "\r")
    assert page.run(focus) == "Train"
    page.until(f"!{steps}")  # the model is loaded
    assert page.run(status) == "Paused."
    assert page.run(rows) == 0
    click(page, "Train")
    page.until(f"{rows} === 1")
    click(page, "Pause")
    click(page, "Train")
    assert page.run(status) == "Training."
    click(page, "Pause")
    page.until(f"!{steps}")
    before = page.run(rows)
    click(page, "Step")
    page.until(f"{rows} === {before + 1}")
    page.until(f"{status} === 'Paused.'")


@pytest.mark.parametrize("workers", [True, False])
def test_a_reader_trains_a_model_and_asks_it(page: Page, site: Path, workers: bool):
    """Step by step and then of itself; then Pause; in a worker, or without any."""
    before = "" if workers else "delete globalThis.Worker"
    page.open(site / "train.html", width=390, before=before)
    assert not page.run("document.querySelector('.live-charts').checkVisibility()")
    page.run("document.querySelector('select').value = 1")  # the smallest recipe
    click(page, "Step")
    rows = "document.querySelectorAll('.live-numbers tbody tr').length"
    page.until(f"{rows} === 1")
    click(page, "Train")
    page.until(f"{rows} >= 3")
    click(page, "Pause")
    click(page, "Step")  # which can be used when the last update is through
    drawn = page.run(
        "[...document.querySelectorAll('svg')].map((one) => one.ariaLabel)"
    )
    assert all(label.startswith("Against updates, ") for label in drawn)
    banded = ["In the five stored runs" in label for label in drawn]
    assert banded == [True, True, True, False]
    rewards = [float(one) for one in texts(page, ".live-group td:nth-child(2)")]
    signs = texts(page, ".live-group td:nth-child(3)")
    assert len(rewards) == 8
    if len(set(rewards)) == 2:
        assert [not one.startswith("\u2212") for one in signs] == list(
            map(bool, rewards)
        )
    click(page, "Ask")
    page.until("document.querySelectorAll('.live-verdict:not(:empty)').length === 3")
    assert texts(page, ".live-card .live-name")[1].startswith("yours")
    assert no_sideways_scroll(page)
    click(page, "Reset")
    assert not page.run("document.querySelector('.live-charts').checkVisibility()")
    assert texts(page, ".live-status")[0] == ""


def test_a_hidden_page_waits_and_a_run_ends_by_itself(page: Page, site: Path):
    page.open(site / "train.html")
    page.run("document.querySelector('select').value = 1")
    hide = (
        "Object.defineProperty(document, 'hidden', { configurable: true, value: %s })"
    )
    page.run(hide % "true")
    click(page, "Train")
    page.until("document.querySelector('.live-status').textContent === 'Training.'")
    page.run("new Promise((resolve) => setTimeout(resolve, 3000))")
    assert texts(page, ".live-numbers tbody tr") == []
    page.run(hide % "false")
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.until("document.querySelector('.live-status').textContent.startsWith('Done')")
    assert len(texts(page, ".live-numbers tbody tr")) == 13
    enabled = (
        "[...document.querySelectorAll('.live-buttons button')].map((b) => !b.disabled)"
    )
    assert page.run(enabled) == [False, False, False]


def test_a_robot_learns_in_a_page_and_the_run_before_stays(page: Page, site: Path):
    page.open(site / "robot.html", width=390)
    click(page, "Train")
    page.until("document.querySelectorAll('.live-cell').length === 25")
    click(page, "Pause")
    assert texts(page, ".live-status") == ["Paused."]
    click(page, "Step")
    page.until("document.querySelector('.live-status').textContent === ''")
    click(page, "Train")
    click(page, "Pause")
    click(page, "Train")  # before the next frame
    page.until("document.querySelector('.live-status').textContent.startsWith('Done')")
    assert "From 96 of 96 starts" in texts(page, ".live-status")[0]
    assert len(texts(page, "tbody tr")) == 11
    labels = page.run(
        "[...document.querySelectorAll('svg')].map((one) => one.ariaLabel)"
    )
    assert "reaches the exit in 17 moves" in labels[0]
    assert "Dashed" not in labels[1]
    page.run("document.querySelector('select').focus()")
    page.run("document.querySelector('select').value = '3'")
    page.run("document.querySelector('select').dispatchEvent(new Event('change'))")
    assert not page.run("document.querySelector('svg').checkVisibility()")
    click(page, "Train")
    page.until("document.querySelector('.live-status').textContent.startsWith('Done')")
    second = page.run("document.querySelectorAll('svg')[1].ariaLabel")
    assert second.endswith("Dashed, the run before.")
    assert no_sideways_scroll(page)
    click(page, "Reset")
    assert texts(page, ".live-status") == [""]


# Drive to the exit by the buttons, with the focus on each: a breadth-first search.
OUT = """(() => {
  const { worlds } = live;
  const maze = worlds.mazeTables(worlds.bookMaze("5/0"));
  const ways = [{ state: worlds.START, moves: [] }];
  const seen = new Set();
  while (!maze.isExit(ways[0].state)) {
    const { state, moves } = ways.shift();
    if (seen.has(state)) continue;
    seen.add(state);
    for (const move of [0, 1, 2]) {
      ways.push({ state: maze.next[3 * state + move], moves: [...moves, move] });
    }
  }
  const buttons = document.querySelectorAll(".live-buttons button");
  for (const move of ways[0].moves) {
    buttons[1 + move].focus();
    buttons[1 + move].click();
  }
})()"""


def test_a_reader_drives_with_the_arrow_keys(page: Page, site: Path):
    page.open(site / "drive.html", width=390)
    click(page, "Start")
    page.until("document.querySelectorAll('.live-robot').length === 1")
    walls = "document.querySelectorAll('.live-wall').length"
    all_walls = page.run(walls)
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert texts(page, ".live-log li") == [
        "left turn: \u22120.01",
        "right turn: \u22120.01",
    ]
    click(page, "\u2191 Forward")
    assert "a wall" in texts(page, ".live-status")[0]
    assert texts(page, ".explorer-numbers dd")[0] == "3"
    page.run("document.querySelector('input[type=checkbox]').click()")
    assert page.run(walls) == 1 < all_walls
    click(page, "Start again")
    page.until("document.querySelectorAll('.explorer-numbers dd')[0].innerText === '0'")
    page.run(OUT)
    assert "You are out" in texts(page, ".live-status")[0]
    assert page.run("document.activeElement.textContent") == "Start again"
    assert no_sideways_scroll(page)
