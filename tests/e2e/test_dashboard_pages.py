"""Every page of the dashboard as people see it: a real Chromium, the real dashboard, a real broker, twenty stations.

The stations are simulated; test_dashboard_story.py has a real one. ``make screenshots`` keeps the pictures.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from station.messages import Feedback
from tests.support.browser import Screenshot, violations
from tests.support.dashboard import DashboardProcess, Visitor
from tests.support.mosquitto import Mosquitto, Subscriber
from tests.support.simulated_plant import Plant, paths, something_of_everything
from tests.support.station_process import REPOSITORY

sync_api = pytest.importorskip("playwright.sync_api")
Page, expect = sync_api.Page, sync_api.expect
expect.set_options(timeout=60_000)  # of a slow machine; a wait ends as soon as it may

pytestmark = pytest.mark.e2e

SECTION = "operators = ['ann']\npreview_every = 3"
STATIONS = paths(20)
FIRST, FAULTY, AWAY, PAUSED, DRIFTING = (STATIONS[at] for at in (0, 5, 9, 14, 3))


@dataclass
class Mill:
    """Attributes: ``cookie`` of ann, who may act."""

    broker: Mosquitto
    dashboard: DashboardProcess
    plant: Plant
    cookie: str

    def open(self, page: Page, path: str, *, as_ann: bool = False) -> None:
        """Show a page; ann may act, everybody else looks."""
        if as_ann:
            name, _, value = self.cookie.partition("=")
            page.context.add_cookies([{"name": name, "value": value, "url": self.dashboard.url}])
        page.goto(self.dashboard.url + path)


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    folder = tmp_path_factory.mktemp("mill")
    with (
        Mosquitto(folder) as broker,
        DashboardProcess(folder, broker.port, SECTION, users=("ann", "bob")) as dashboard,
        Plant(broker.port, STATIONS) as plant,
    ):
        visitor = Visitor(dashboard)
        visitor.wait_for("/api/stations", lambda told: len(told["stations"]) == len(STATIONS))
        visitor.log_in("ann")
        something_of_everything(plant)
        plant.run(per_second=5)
        visitor.wait_for("/api/alerts", lambda told: sum(1 for a in told["alerts"] if a["image_url"]) == 14)
        visitor.wait_for(f"/api/stations/{FAULTY}", lambda told: told["health"] and told["reasons"])
        yield Mill(broker, dashboard, plant, visitor.cookie)


def loaded(page: Page, pictures: str) -> None:
    """Until every picture is drawn."""
    page.wait_for_function(
        "pictures => { const all = [...document.querySelectorAll(pictures)];"
        " return all.length > 0 && all.every(image => image.complete && image.naturalWidth > 0); }",
        arg=pictures,
    )


def accessible(page: Page) -> None:
    """In light colours by all rules, in dark ones by those that look at colours."""
    page.emulate_media(color_scheme="light")
    assert violations(page) == ""
    page.emulate_media(color_scheme="dark")
    assert violations(page, "color-contrast", "link-in-text-block") == ""


def test_one_look_tells_how_twenty_stations_are(page: Page, mill: Mill, screenshot: Screenshot) -> None:
    mill.open(page, "/")
    cards = page.locator(".card")
    expect(cards).to_have_count(20)
    expect(page.locator("h1")).to_have_text("2 open alerts, 1 out of reach, 1 with a fault")
    expect(page.locator(".tally")).to_have_text(re.compile(r"17\s*running\s*1\s*faulty\s*1\s*at rest\s*1\s*away"))
    for path, state, words in (
        (FIRST, "Running", "1 alert in 24 h"),
        (FAULTY, "Camera fault", "Out of focus"),
        (AWAY, "Offline", "No contact since"),
        (PAUSED, "Paused", "Paused"),
        (DRIFTING, "Running", "Scores have drifted"),
    ):
        card = page.locator(f".card[data-path='{path}']")
        expect(card.locator(".chip")).to_have_text(state)
        expect(card.locator(".note")).to_contain_text(words)
    # What needs somebody comes first: alerts, the newest leading; then what is out of reach, faulty, drifting, at rest.
    expect(page.locator(".rail .title")).to_have_text(["cam-07", "cam-01", "cam-10", "cam-06", "cam-04", "cam-15"])
    # A score beside its threshold; none where nothing is inspected.
    meter = page.locator(f".card[data-path='{STATIONS[1]}'] [role=meter]")
    expect(meter).to_have_attribute("aria-valuetext", re.compile(r"^\d+ % of the threshold$"))
    idle = page.locator(f".card[data-path='{PAUSED}'] [role=meter]")
    expect(idle).to_have_attribute("aria-valuetext", "no score now")
    # The pictures that somebody looks at are asked for.
    loaded(page, ".card:nth-child(-n+6) img:not([hidden])")
    expect(page.locator(f".card[data-path='{STATIONS[1]}'] .age")).to_have_text(re.compile(r"\d+ s ago"))
    accessible(page)
    screenshot(page, "dashboard-wall-dark")
    page.emulate_media(color_scheme="light")
    screenshot(page, "dashboard-wall")


def test_readable_from_three_metres(page: Page, mill: Mill, screenshot: Screenshot) -> None:
    page.set_viewport_size({"width": 1920, "height": 1080})
    mill.open(page, "/?big=1&theme=dark")  # as a screen on a wall would be set up
    expect(page.locator(".card")).to_have_count(20)
    # 3 m / 200 = 15 mm high, which on a 24-inch screen is 54 pixels.
    size = "one => parseFloat(getComputedStyle(one).fontSize)"
    assert page.locator(f".card[data-path='{FIRST}'] .part").evaluate(size) >= 54
    assert page.locator(f".card[data-path='{FIRST}'] .flag svg").bounding_box()["height"] >= 54
    # All twenty without scrolling.
    assert page.evaluate("document.documentElement.scrollHeight") <= 1080
    assert violations(page) == ""
    screenshot(page, "dashboard-big")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.big") == "1"  # remembered
    page.keyboard.press("b")
    assert page.evaluate("document.documentElement.dataset.big") is None


def test_nothing_moves_while_news_come_in(page: Page, mill: Mill, record_property: pytest.FixtureRequest) -> None:
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries())"
        " if (!entry.hadRecentInput) window.shift += entry.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    station = STATIONS[12]
    found = {}
    for path, ready in (
        ("/", ".card:nth-child(20)"),
        (f"/stations/{station}", ".u-over"),
        ("/alerts", ".tile"),
        (f"/alerts/{FIRST}/{mill.plant.stations[FIRST].open.id}", ".spot"),
    ):
        mill.open(page, path)
        page.wait_for_selector(ready)
        expect(page.locator(".badge")).to_have_text(re.compile(r"^\d+$"))
        shown = page.locator(".badge").text_content()
        mill.plant.alert(station, 31)
        expect(page.locator(".badge")).not_to_have_text(shown)
        mill.plant.close(station)
        expect(page.locator(".badge")).to_have_text(shown)
        found[path] = page.evaluate("window.shift")
    record_property("layout_shift", found)
    print("layout shift by page:", found)
    assert max(found.values()) < 0.01  # a tenth of what counts as good


def test_a_station_with_all_that_is_known_of_it(page: Page, mill: Mill, screenshot: Screenshot) -> None:
    mill.open(page, f"/stations/{FIRST}", as_ann=True)
    expect(page.locator("h1")).to_have_text("cam-01")
    expect(page.locator(".chip.large")).to_have_text("Running")
    expect(page.locator(".open-alert")).to_contain_text("Defect, open since")
    loaded(page, ".view img:not([hidden])")
    page.wait_for_selector(".u-over")
    expect(page.locator(".readout")).to_have_text(re.compile(r"Last 15 min: highest \d+\.\d at .* · 1 alert"))
    expect(page.locator(".health")).to_contain_text("Camera to verdict")
    expect(page.locator(".health")).to_contain_text("the last 500 frames score as those of the calibration")
    expect(page.locator(".latest .tile")).to_have_count(1)
    page.get_by_role("button", name="24 h").click()
    expect(page.locator(".readout")).to_contain_text("Last 24 h")
    accessible(page)
    page.emulate_media(color_scheme="light")
    screenshot(page, "dashboard-station")


def test_faults_and_drift_are_called_what_they_are(page: Page, mill: Mill) -> None:
    mill.open(page, f"/stations/{FAULTY}")
    expect(page.locator(".chip.large")).to_have_text("Camera fault")
    expect(page.locator(".reasons")).to_contain_text("Out of focusFocus and clean the lens")
    expect(page.locator(".reasons small")).to_have_text(re.compile("^camera-blurred: sharpness 0.31"))
    expect(page.locator(".health [data-bad]").first).to_contain_text("Out of focus")
    mill.open(page, f"/stations/{DRIFTING}")
    expect(page.locator(".reasons")).to_contain_text("Scores have drifted")
    expect(page.locator(".health [data-bad]").first).to_contain_text("Drifted higher")
    expect(page.locator(".health [data-bad]").first).to_contain_text("81 times of 100")
    mill.open(page, "/stations/north-mill/line-9/nobody")
    expect(page.locator(".missing")).to_be_visible()


def test_a_threshold_is_tried_on_the_last_frames_first(page: Page, mill: Mill, screenshot: Screenshot) -> None:
    station = STATIONS[1]
    mill.open(page, f"/stations/{station}", as_ann=True)
    expect(page.get_by_role("button", name="Threshold …")).to_be_enabled()
    with page.expect_response("**/recent-scores") as answer:
        page.keyboard.press("h")
    scores = answer.value.json()["scores"]  # those that the dialog has
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Threshold of cam-02")
    wanted = round(sorted(scores)[len(scores) // 2], 6)
    dialog.get_by_label("Threshold", exact=True).fill(str(wanted))
    told = dialog.locator(".would")
    flagged = sum(score > wanted for score in scores)
    expect(told).to_contain_text(f"would have flagged {flagged} of the last {len(scores):,} frames")
    assert 0 < flagged < len(scores)
    slider = dialog.get_by_role("slider")
    slider.focus()
    slider.press("End")
    expect(told).to_contain_text("flagged 0 of")
    slider.press("Home")
    expect(told).to_contain_text(re.compile(r"\(100 %\)"))
    dialog.get_by_label("Threshold", exact=True).fill("22")
    assert violations(page) == ""
    screenshot(page, "dashboard-threshold")
    dialog.get_by_role("button", name="Set threshold").click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".toast.good")).to_contain_text("cam-02: threshold")
    [(path, payload)] = [(path, payload) for path, verb, payload in mill.plant.commands if verb == "set-threshold"]
    assert path == station
    assert json.loads(payload)["threshold"] == 22
    assert json.loads(payload)["by"] == "ann"


def test_the_gallery_by_keyboard(page: Page, mill: Mill, screenshot: Screenshot) -> None:
    mill.open(page, "/alerts", as_ann=True)
    tiles = page.locator("a.tile")
    expect(tiles.nth(13)).to_be_visible()
    loaded(page, ".tile img[src]")
    for words in ("cam-07", "1.8 × threshold", "lower centre"):
        expect(page.locator(f"a.tile[href*='{mill.plant.stations[STATIONS[6]].open.id}']")).to_contain_text(words)
    accessible(page)
    screenshot(page, "dashboard-alerts-dark")
    page.emulate_media(color_scheme="light")
    screenshot(page, "dashboard-alerts")
    focused = "document.activeElement.getAttribute('href')"
    page.keyboard.press("ArrowRight")
    first = page.evaluate(focused)
    assert first == tiles.first.get_attribute("href")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == first
    page.keyboard.press("ArrowDown")
    below = page.evaluate(focused)
    page.keyboard.press("c")
    expect(page.locator(f"a.tile[href='{below}'] .verdict")).to_have_text("Confirmed")
    page.keyboard.press("Enter")
    expect(page).to_have_url(mill.dashboard.url + below)
    expect(page.locator(".said .verdict")).to_have_text("Confirmed")
    page.go_back()
    expect(tiles.first).to_be_visible()
    page.get_by_label("Judged").select_option("confirmed")
    expect(tiles).to_have_count(1)
    assert tiles.first.get_attribute("href") == below
    page.get_by_label("Judged").select_option("")
    page.get_by_label("Station", exact=True).select_option(STATIONS[6])
    expect(page).to_have_url(re.compile(r"station=north-mill%2Fline-2%2Fcam-07"))
    page.get_by_label("State").select_option("open")
    expect(tiles).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_text("Judged frames").click()
    assert download.value.suggested_filename == "feedback.zip"


def test_an_alert_in_full_and_what_people_say_of_it(page: Page, mill: Mill, screenshot: Screenshot) -> None:
    alert = mill.plant.stations[FIRST].open
    with Subscriber(mill.broker.port) as subscriber:
        mill.open(page, f"/alerts/{FIRST}/{alert.id}", as_ann=True)
        loaded(page, ".view img:not([hidden])")
        expect(page.locator(".spot")).to_have_count(len(alert.patches))
        expect(page.locator(".patches tbody tr")).to_have_count(len(alert.patches))
        expect(page.locator(".facts")).to_contain_text(f"{alert.peak_score / alert.threshold:.1f} × threshold")
        # Point at a patch, in the picture or in the table: both show which, and the picture its score.
        page.locator(".spot").last.hover()
        expect(page.locator(".tip")).to_have_text(re.compile(r"^#1 · \d"))
        expect(page.locator(".patches tr[data-on] td").first).to_have_text("1")
        page.locator(".patches tbody tr").nth(2).hover()
        expect(page.locator(".tip")).to_have_text(re.compile(r"^#3 · "))
        box = page.locator(".spot[data-on]").bounding_box()
        picture = page.locator(".view .picture").bounding_box()
        assert abs((box["x"] - picture["x"]) / picture["width"] - alert.patches[2].x / alert.frame_width) < 0.02
        assert abs((box["y"] - picture["y"]) / picture["height"] - alert.patches[2].y / alert.frame_height) < 0.02
        page.keyboard.press("o")
        expect(page.locator(".box")).to_be_visible()
        page.keyboard.press("p")
        expect(page.locator(".spot").last).to_be_hidden()
        page.keyboard.press("p")
        page.keyboard.press("n")
        page.keyboard.type("oil, harmless")
        accessible(page)
        page.emulate_media(color_scheme="light")
        screenshot(page, "dashboard-alert")
        page.get_by_role("button", name="False alarm").click()
        expect(page.locator(".said")).to_contain_text("False alarm")
        expect(page.locator(".said-note")).to_have_text("oil, harmless")
        subscriber.wait_for(lambda _: subscriber.on("/feedback"))
        said = Feedback.model_validate_json(subscriber.on("/feedback")[-1])
        assert (said.alert, said.verdict, said.by, said.note) == (alert.id, "false-alarm", "ann", "oil, harmless")
        page.reload()
        expect(page.locator(".said-note")).to_have_text("oil, harmless")
        page.keyboard.press("u")
        expect(page.locator(".said")).to_contain_text("Nobody has said yet")
    # Neighbours by keyboard, also where the page was opened by its address.
    expect(page.locator("a.step[href]")).to_have_count(2)
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(re.compile(alert.id))
    page.locator("a.step[href]").first.wait_for()
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(alert.id))
    # What the camera saw comes with the end of an alert.
    older = page.locator("a.step").last
    older.click()
    page.locator("a.step[href]").first.wait_for()
    page.keyboard.press("ArrowRight")


def test_a_phone_and_a_thumb(phone: Page, mill: Mill, screenshot: Screenshot) -> None:
    alert = mill.plant.stations[FIRST].open
    small = """() => [...document.querySelectorAll('a, button, select, input, textarea, summary')].filter(one => {
        const box = one.getBoundingClientRect();
        const hit = one.type === 'checkbox' ? one.closest('label').getBoundingClientRect() : box;
        const inText = one.tagName === 'A' && getComputedStyle(one).display === 'inline';
        const cover = one.classList.contains('cover') || one.classList.contains('skip');
        return box.width && !inText && !cover && (hit.height < 43.5 || hit.width < 43.5);
    }).map(one => one.outerHTML.slice(0, 120))"""
    for path, ready, name in (
        ("/", ".card:nth-child(20)", "wall"),
        (f"/stations/{FIRST}", ".u-over", "station"),
        ("/alerts", ".tile", "alerts"),
        (f"/alerts/{FIRST}/{alert.id}", ".spot", "alert"),
        ("/login", ".login", "login"),
    ):
        mill.open(phone, path, as_ann=name != "login")
        phone.wait_for_selector(ready)
        if name != "login":
            loaded(
                phone, ".card:nth-child(-n+3) img:not([hidden])" if name == "wall" else "main img[src]:not([hidden])"
            )
        assert phone.evaluate(small) == [], name
        # Nothing sticks out at the side.
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390, name
        accessible(phone)
        if name != "login":
            screenshot(phone, f"dashboard-phone-{name}")
        if name == "alert":
            phone.locator(".spot").last.tap()
            expect(phone.locator(".tip")).to_have_text(re.compile(r"^#1 · "))


def test_looking_needs_no_right_and_acting_does(page: Page, mill: Mill, console_errors: list[str]) -> None:
    mill.open(page, f"/stations/{STATIONS[2]}")
    expect(page.locator(".only")).to_have_text("You may look. Log in to act.")
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    link = page.locator(".only a")
    link.evaluate("link => { link.kept = true; link.focus(); }")
    page.wait_for_timeout(2500)  # scores keep coming
    assert link.evaluate("link => link.kept && document.activeElement === link"), "replaced under the pointer"
    link.click()
    accessible(page)
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("password|log-in"))
    assert len(console_errors) == 1, "Chromium reports every 401 by itself"
    console_errors.clear()
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/stations/"))
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("p")
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator(".chip.large")).to_have_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".chip.large")).to_have_text("Running")
    page.get_by_role("button", name="Log out").click()
    expect(page.locator(".only")).to_be_visible()
    assert page.context.cookies() == []


def test_news_are_told_wherever_one_is(page: Page, mill: Mill) -> None:
    mill.open(page, "/alerts?state=open")
    page.wait_for_selector(".tile")
    page.keyboard.press("m")
    expect(page.get_by_role("button", name="Sound at new alerts")).to_have_attribute("aria-pressed", "true")
    station = STATIONS[16]
    id_ = mill.plant.alert(station, 44)
    expect(page.locator("#said")).to_have_text(re.compile(r"^Defect at cam-17: \d+(\.\d)? × threshold$"))
    expect(page.locator(".news")).to_have_text("1 new alert")  # the list does not jump; it says that there is more
    page.locator(".news").click()
    expect(page.locator(f"a.tile[href$='{id_}']")).to_be_visible()
    page.locator(".toast a").click()
    expect(page).to_have_url(re.compile(id_))
    expect(page.get_by_label("As the camera saw it")).to_be_disabled()
    mill.plant.close(station)
    expect(page.get_by_label("As the camera saw it")).to_be_enabled()
    page.keyboard.press("r")
    page.wait_for_function("() => document.querySelector('.view img').src.includes('/frame?')")


def test_the_keyboard_does_all_and_can_be_silenced(page: Page, mill: Mill) -> None:
    mill.open(page, "/")
    page.wait_for_selector(".card")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Everywhere")
    assert violations(page) == ""
    dialog.get_by_label("Shortcuts of one letter are on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    expect(page).to_have_url(mill.dashboard.url + "/")
    page.keyboard.press("?")
    page.get_by_label("Shortcuts of one letter are on").check()
    page.keyboard.press("Escape")
    for key, path in (("a", "/alerts"), ("g", "/")):
        page.keyboard.press(key)
        expect(page).to_have_url(mill.dashboard.url + path)
    # Tab reaches the first card, Enter opens it, and one sees where one is.
    page.locator(".cover").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.card').dataset.path") == STATIONS[1]
    assert page.evaluate("getComputedStyle(document.activeElement.closest('.card')).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{mill.dashboard.url}/stations/{STATIONS[1]}")
    for theme in ("light", "dark", None):
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme ?? null") == theme
    page.emulate_media(reduced_motion="reduce")
    assert page.locator(".gauge-fill").evaluate("one => getComputedStyle(one).transitionDuration") == "0s"
    page.emulate_media(reduced_motion="no-preference")
    assert page.locator(".gauge-fill").evaluate("one => getComputedStyle(one).transitionDuration") == "0.25s"


STATIC = REPOSITORY / "station" / "dashboard" / "static"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("uPlot.iife.min.js", "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"),
        ("uPlot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
        ("LICENSE", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
    ],
)
def test_what_is_not_ours_is_as_it_was_published(name: str, digest: str) -> None:
    """uPlot 1.6.32, of the npm package of that version."""
    assert hashlib.sha256((STATIC / "vendor" / "uPlot" / name).read_bytes()).hexdigest() == digest


def _own(suffix: str) -> list[Path]:
    return sorted(path for path in STATIC.rglob(f"*{suffix}") if "vendor" not in path.parts)


@pytest.mark.parametrize("path", [*_own(".js"), *_own(".html"), *_own(".css")], ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_nor_becomes_markup(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/)|(?:src|href)=\"//|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"\sstyle=|\son\w+=\"", text)  # the page's own rules forbid them
