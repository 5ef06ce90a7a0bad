"""The dashboard beside a real station, and what happens to it when things break: never a reload, never lost news."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from station.messages import Info, Status
from tests.e2e.test_station_run import Line, write_config
from tests.support.browser import Screenshot, violations
from tests.support.dashboard import PASSWORD, DashboardProcess, SpokenStation, Visitor, health_message, info_message
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto, Subscriber
from tests.support.simulated_plant import Plant, paths
from tests.support.station_process import StationProcess

sync_api = pytest.importorskip("playwright.sync_api")
Page, expect = sync_api.Page, sync_api.expect
expect.set_options(timeout=60_000)  # of a slow machine; a wait ends as soon as it may

pytestmark = pytest.mark.e2e

REAL = "plant/line-1/cam-1"


def log_in(page: Page, dashboard: DashboardProcess) -> None:
    page.goto(f"{dashboard.url}/login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{dashboard.url}/")


def test_from_a_defect_under_the_camera_to_its_picture_and_back(
    tmp_path: Path,
    page: Page,
    broker: Mosquitto,
    subscriber: Subscriber,
    record_property: Callable[[str, object], None],
    screenshot: Screenshot,
) -> None:
    line = Line()
    with (
        MjpegServer(fps=25, picture=line.picture) as camera,
        DashboardProcess(tmp_path, broker.port, "operators = ['ann']\npreview_every = 3", users=("ann",)) as dashboard,
        StationProcess(
            write_config(tmp_path, camera.url, broker.port, "[health]\ninterval = 1\n"), tmp_path / "log"
        ) as process,
    ):
        log_in(page, dashboard)
        expect(page.locator(".card .chip")).to_have_text("Running")
        start = time.monotonic()
        line.defective = True
        page.wait_for_function(
            "() => [...document.querySelectorAll('.attention.alert img')].some(one => one.naturalWidth > 0)",
            polling=20,
        )
        seconds = time.monotonic() - start
        record_property("alert_to_picture_s", round(seconds, 3))
        print(f"from the defect under the camera to its picture on the page: {seconds:.2f} s")
        page.locator(".attention.alert").click()
        line.defective = False
        expect(page.locator(".patches tbody tr").first).to_be_visible()
        expect(page.locator(".facts")).to_contain_text("of 128 × 96 pixels")
        expect(page.get_by_label("As the camera saw it")).to_be_enabled()  # closed: its frame is there
        page.keyboard.press("c")
        expect(page.locator(".said")).to_contain_text("Confirmed")
        subscriber.wait_for(lambda _: subscriber.on("/feedback"))

        page.keyboard.press("s")
        expect(page.locator(".health")).to_contain_text("toy")
        expect(page.locator(".chip.large")).to_have_text("Running")
        states = lambda: [Status.model_validate_json(payload).state for payload in subscriber.on("/status")]  # noqa: E731
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        expect(page.locator(".chip.large")).to_have_text("Paused")
        assert Status.model_validate_json(subscriber.on("/status")[-1]).reasons[0].startswith("paused: by ann")
        expect(page.locator(".side [role=meter]")).to_have_attribute("aria-valuetext", "no score now")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".chip.large")).to_have_text("Running")
        assert states()[-1] == "online"

        page.get_by_role("button", name="Threshold …").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Threshold", exact=True).fill("55")
        dialog.get_by_role("button", name="Set threshold").click()
        expect(page.locator(".toast").last).to_contain_text("threshold 55.0, was 40.0")
        expect(page.locator(".side .exact")).to_have_text(re.compile(r"/ 55\.0$"))  # it judges by it
        record = json.loads((tmp_path / "state-home" / "cbigan-station").rglob("threshold.log").__next__().read_text())
        assert (record["by"], record["to"]) == ("ann", 55)
        assert Info.model_validate_json(subscriber.on("/info")[-1]).frame_width == 128

        process.process.kill()
        expect(page.locator(".chip.large")).to_have_text("Offline")
        expect(page.get_by_role("button", name="Pause")).to_be_disabled()
        page.goto("about:blank")


def test_broker_and_dashboard_may_go_and_come_without_a_reload(
    tmp_path: Path, page: Page, broker: Mosquitto, console_errors: list[str]
) -> None:
    path = paths(1)[0]
    with DashboardProcess(tmp_path, broker.port) as dashboard, Plant(broker.port, [path]) as plant:
        page.goto(dashboard.url)
        expect(page.locator(".card .chip")).to_have_text("Running")
        page.evaluate("() => { window.sameDocument = true; }")
        banner = page.locator("#banner")
        broker.kill()
        expect(banner).to_contain_text("no connection to the broker")
        expect(page.locator(".card .chip")).to_have_text("Unknown")  # it does not pretend to know
        broker.start()
        expect(banner).to_be_hidden()
        expect(page.locator(".card .chip")).to_have_text("Running")
        plant.alert(path, 3)
        expect(page.locator(".attention.alert")).to_be_visible()
        plant.close(path)
        expect(page.locator(".attention.alert")).to_be_hidden()

        dashboard.kill()
        expect(banner).to_contain_text("No connection to the dashboard")
        plant.alert(path, 4)  # while it is away
        dashboard.start()
        expect(banner).to_be_hidden()
        expect(page.locator(".attention.alert")).to_be_visible()
        expect(page.locator("#said")).to_contain_text("Defect at cam-01")
        plant.close(path)
        expect(page.locator(".attention.alert")).to_be_hidden()
        plant.tell_status(path, "degraded", "camera-black: no light")
        expect(page.locator(".card .note")).to_have_text("Picture is black")
        assert page.evaluate("() => window.sameDocument") is True
        page.goto("about:blank")
    assert all("ERR_" in error for error in console_errors), (
        console_errors
    )  # what the browser says of a server that is away
    console_errors.clear()


HOSTILE = '<img src=x onerror="window.caught=1"><script>window.caught=1</script>&amp;'


def test_words_of_others_stay_words(tmp_path: Path, page: Page, broker: Mosquitto) -> None:
    path = "mill/3/left"
    with (
        DashboardProcess(tmp_path, broker.port, users=("ann",)) as dashboard,
        SpokenStation(broker.port, path) as spoken,
    ):
        visitor = Visitor(dashboard)
        spoken.say(info_message(bundle_name=HOSTILE, camera_url=f"javascript:alert(1)//{HOSTILE}", version=HOSTILE))
        health = health_message()
        camera = health.camera.model_copy(update={"fault": f"camera-{HOSTILE}"})
        spoken.say(
            health.model_copy(update={"camera": camera, "temperatures_c": {HOSTILE: 40.0}, "dropped": {HOSTILE: 2}})
        )
        spoken.say(Status(state="degraded", reasons=(HOSTILE, f"camera-odd: {HOSTILE}", "__proto__: x"), session="s"))
        spoken.score()
        spoken.alert("20240101-120000000-0001", name=HOSTILE)
        spoken.put(
            "feedback",
            json.dumps(
                {
                    "schema": "station/v1/feedback",
                    "seq": 1,
                    "at": "2024-01-01T00:00:00Z",
                    "alert": "20240101-120000000-0001",
                    "verdict": "confirmed",
                    "by": HOSTILE[:100],
                    "note": HOSTILE,
                }
            ).encode(),
        )
        visitor.wait_for("/api/alerts", lambda told: told["alerts"] and told["alerts"][0]["feedback"])
        for address, where in (
            ("/", ".card .note"),
            (f"/stations/{path}", ".health .group"),
            ("/alerts", ".tile .verdict"),
            (f"/alerts/{path}/20240101-120000000-0001", ".said-note"),
        ):
            page.goto(dashboard.url + address)
            page.locator(where).first.wait_for()
            assert page.locator("img[src='x'], main script").count() == 0
            assert page.evaluate("() => window.caught") is None
            assert page.locator("a[href^='javascript:']").count() == 0
        expect(page.locator(".said-note")).to_have_text(HOSTILE)
        # Nor does a log-in lead elsewhere.
        page.goto(f"{dashboard.url}/login?next=//example.com/%5C%5Cexample.com")
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.locator(".who")).to_have_text("ann")
        assert page.url.startswith(dashboard.url)
        page.goto("about:blank")


def test_a_page_that_only_members_may_see(tmp_path: Path, page: Page, broker: Mosquitto) -> None:
    with DashboardProcess(tmp_path, broker.port, "public = false", users=("ann",)) as dashboard:
        page.goto(f"{dashboard.url}/alerts?state=open")
        expect(page.get_by_role("button", name="Log in")).to_be_visible()
        assert violations(page) == ""
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{dashboard.url}/alerts?state=open")
        expect(page.locator(".none")).to_have_text("No alert is like that.")
        page.goto("about:blank")
