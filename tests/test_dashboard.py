"""The dashboard in a real browser, against a service of its own with the demonstration data.

SCREENSHOT=1 pytest tests/test_dashboard.py     makes the README's picture anew
"""

import json
import os
import re
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Serve, Service

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no /usr/bin/chromium")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
INJECTION = "<img src=x onerror=window.injected=1>"
ALL_RECORDS = "SELECT CURRENT_DATE AS day, COUNT(*) AS records FROM metrics"
RECORDS_SINCE = """SELECT CURRENT_DATE AS day, COUNT(*) AS records
FROM metrics
WHERE date >= COALESCE(:start_date, DATE '2000-01-01')"""


Open = Callable[[], None]


def call(service: Service, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(service.url.rstrip("/") + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or b"null")


def create(service: Service, query: str, title: str = "Made by a test") -> str:
    return str(call(service, "POST", "/metrics", {"query": query, "title": title})["id"])


def write_record(service: Service, metric_id: str, **record: Any) -> None:
    call(service, "POST", f"/metrics/{metric_id}/metric-records", record)


def put_first(service: Service, metric_id: str) -> None:
    place = {"breakpoint": "lg", "x": 0, "y": 0, "w": 4, "h": 8, "static": False}
    call(service, "PUT", f"/metrics/{metric_id}/layouts", [place])


@pytest.fixture(scope="module")
def service(start_service: Serve) -> Iterator[Service]:
    data = Path(tempfile.mkdtemp(prefix="metrics-api-test-"))
    data.chmod(0o755)  # as root, the database's user must reach it
    service = start_service(DATABASE_URL="", DATA_DIR=str(data), QUERIES_DIR=str(ROOT / "queries"))
    yield service
    service.stop()
    shutil.rmtree(data)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A wide page whose console must stay silent: an error, a warning or a CSP violation fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, locale="en-US", reduced_motion="reduce")
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def open_dashboard(page: Any, service: Service) -> Open:
    def open_it() -> None:
        page.goto(service.url)
        sync_api.expect(page.locator(".cell").first).to_be_visible()
        sync_api.expect(page.locator(".cell[data-state=loading]")).to_have_count(0)

    return open_it


def tile(page: Any, metric_id: str) -> Any:
    return page.locator(f'.cell[data-id="{metric_id}"]')


def choose(page: Any, metric_id: str, item: str) -> None:
    tile(page, metric_id).get_by_label("Menu").click()
    tile(page, metric_id).get_by_role("button", name=item).click()


def show_table(page: Any, metric_id: str) -> None:
    if tile(page, metric_id).locator("table").count() == 0:
        choose(page, metric_id, "Show as table")
    sync_api.expect(tile(page, metric_id).locator("table")).to_be_visible()


def cells(page: Any, metric_id: str) -> list[list[str]]:
    rows = tile(page, metric_id).locator("tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def says(shown: str, value: Any) -> bool:
    """Whether a cell of the table shows this value of the API, digit for digit."""
    if value is None:
        return shown == "\N{EN DASH}"
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(shown.replace(",", "")) == value
    return shown in (value, str(value).lower(), str(value).replace("T", " ").removesuffix("+00:00"), json.dumps(value))


def exact(service: Service, path: str) -> Any:
    with urllib.request.urlopen(service.url.rstrip("/") + path, timeout=10) as response:
        return json.loads(response.read(), parse_float=Decimal)


def box(page: Any, metric_id: str) -> dict[str, float]:
    return {side: round(value) for side, value in tile(page, metric_id).bounding_box().items()}


def test_tiles_show_the_numbers_that_the_api_gives(page: Any, service: Service, open_dashboard: Open) -> None:
    big = create(service, "SELECT 9007199254740993::bigint AS big, 12345678901234567890.10::numeric AS fine")
    open_dashboard()
    listed = [metric["id"] for metric in call(service, "GET", "/metrics")["metrics"]]
    assert page.locator(".cell").count() == len(listed)
    compared = 0
    for metric_id in [big, *listed]:
        if tile(page, metric_id).get_attribute("data-state") != "ready":
            continue
        show_table(page, metric_id)
        result = exact(service, f"/metrics/{metric_id}")
        names = [column["name"] for column in result["columns"]]
        shown = cells(page, metric_id)
        assert len(shown) == min(500, len(result["records"]))
        for row, record in zip(shown, result["records"], strict=False):
            assert [value for value, name in zip(row, names, strict=True) if not says(value, record[name])] == []
        compared += len(shown)
    assert compared > 1
    assert cells(page, big) == [["9,007,199,254,740,993", "12,345,678,901,234,567,890.10"]]


def test_a_written_record_moves_a_chart(page: Any, service: Service, open_dashboard: Open) -> None:
    metric_id = create(service, ALL_RECORDS)
    open_dashboard()
    before = call(service, "GET", f"/metrics/{metric_id}")["records"][0]["records"]
    drawn = tile(page, metric_id).locator("svg, dl, table").first
    sync_api.expect(drawn).to_be_visible()
    label = tile(page, metric_id).locator("svg").get_attribute("aria-label") or ""
    write_record(service, metric_id, obsolescence=1)
    if tile(page, metric_id).get_attribute("data-chart") in ("line", "bar"):
        moved = re.compile(rf"\b{before + 1:,}\b")
        assert not moved.search(label)
        sync_api.expect(tile(page, metric_id).locator("svg")).to_have_attribute("aria-label", moved)
    show_table(page, metric_id)
    sync_api.expect(tile(page, metric_id).locator("tbody td").last).to_have_text(f"{before + 1:,}")


def test_the_period_reaches_every_tile(page: Any, service: Service, open_dashboard: Open) -> None:
    metric_id = create(service, RECORDS_SINCE)
    write_record(service, metric_id, obsolescence=1)
    write_record(service, metric_id, obsolescence=1, date="2001-02-03T00:00:00Z")
    sent: list[dict[str, Any]] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(json.loads(frame))))
    open_dashboard()
    show_table(page, metric_id)
    count = tile(page, metric_id).locator("tbody td").last
    whole = call(service, "GET", f"/metrics/{metric_id}")["records"][0]["records"]
    sync_api.expect(count).to_have_text(f"{whole:,}")

    page.get_by_label("Period").select_option(label="Last 7 days")
    sync_api.expect(count).not_to_have_text(f"{whole:,}")
    asked = {message["id"]: message["params"] for message in sent if message["type"] == "subscribe"}
    assert {params["day_range"] for params in asked.values()} == {"7"}
    assert all({"start_date", "end_date"} <= params.keys() for params in asked.values())
    assert len(asked) == page.locator(".cell").count()

    page.get_by_label("Period").select_option(label="From … to …")
    page.get_by_label("From", exact=True).fill("2001-01-01")
    sync_api.expect(count).to_have_text(f"{whole:,}")


def test_a_prompt_makes_a_tile(page: Any, service: Service, open_dashboard: Open) -> None:
    open_dashboard()
    before = len(call(service, "GET", "/metrics")["metrics"])
    page.get_by_label("Describe a new tile").fill("count of alerts by type")
    page.get_by_role("button", name="Preview").click()
    draft = page.get_by_role("region", name="Proposed tile")
    sync_api.expect(draft.get_by_label("SQL")).to_contain_text("SELECT")
    assert len(call(service, "GET", "/metrics")["metrics"]) == before

    title = f"Alerts {uuid.uuid4().hex[:8]}"
    draft.get_by_label("Title").fill(title)
    draft.get_by_role("button", name="Keep").click()
    sync_api.expect(page.get_by_role("region", name=title)).to_be_visible()
    kept = [metric for metric in call(service, "GET", "/metrics")["metrics"] if metric["title"] == title]
    assert len(kept) == 1
    sync_api.expect(tile(page, kept[0]["id"])).not_to_have_attribute("data-state", "loading")


def test_a_dropped_proposal_is_not_stored(page: Any, service: Service, open_dashboard: Open) -> None:
    open_dashboard()
    before = call(service, "GET", "/metrics")
    page.get_by_label("Describe a new tile").fill("count of alerts by type")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Drop").click()
    sync_api.expect(page.get_by_label("SQL")).to_be_hidden()
    assert call(service, "GET", "/metrics") == before


def test_a_dragged_tile_is_where_it_was_after_a_reload(page: Any, service: Service, open_dashboard: Open) -> None:
    metric_id = create(service, ALL_RECORDS)
    put_first(service, metric_id)
    open_dashboard()
    start = box(page, metric_id)
    page.mouse.move(start["x"] + 60, start["y"] + 25)
    page.mouse.down()
    page.mouse.move(start["x"] + 200, start["y"] + 30, steps=4)
    with page.expect_response(lambda answer: answer.request.method == "PUT" and metric_id in answer.url) as stored:
        page.mouse.move(start["x"] + 60 + 3 * start["width"] / 4 * 2, start["y"] + 25, steps=4)
        page.mouse.up()
    assert stored.value.ok
    dropped = box(page, metric_id)
    assert dropped["x"] > start["x"] + 100
    page.wait_for_load_state("networkidle")
    open_dashboard()
    assert box(page, metric_id) == dropped
    layouts = call(service, "GET", f"/metrics/{metric_id}")["layouts"]
    assert [item["x"] for item in layouts if item["breakpoint"] == "lg"] == [6]


def test_a_tile_is_moved_and_resized_with_keys(page: Any, service: Service, open_dashboard: Open) -> None:
    metric_id = create(service, ALL_RECORDS)
    put_first(service, metric_id)
    open_dashboard()
    start = box(page, metric_id)
    choose(page, metric_id, "Move and resize with keys")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert box(page, metric_id) == start

    choose(page, metric_id, "Move and resize with keys")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    with page.expect_response(lambda answer: answer.request.method == "PUT" and metric_id in answer.url):
        page.keyboard.press("Enter")
    (item,) = (each for each in call(service, "GET", f"/metrics/{metric_id}")["layouts"] if each["breakpoint"] == "lg")
    assert (item["x"], item["w"], item["h"]) == (1, 4, 9)


def test_injected_markup_stays_text(page: Any, service: Service, open_dashboard: Open) -> None:
    metric_id = create(service, f"SELECT '{INJECTION}' AS name, 3 AS total", title=INJECTION)
    open_dashboard()
    sync_api.expect(tile(page, metric_id).get_by_role("heading")).to_have_text(INJECTION)
    show_table(page, metric_id)
    sync_api.expect(tile(page, metric_id).locator("tbody td").first).to_have_text(INJECTION)
    if tile(page, metric_id).get_by_role("button", name="Show as chart").count():
        choose(page, metric_id, "Show as chart")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.injected") is None


def test_a_401_shows_the_token_field_and_the_token_is_sent_and_not_stored(page: Any, service: Service) -> None:
    """The service may be open, so the answer is made here: 401 for whoever has no token."""

    def refuse(route: Any) -> None:
        if "authorization" in route.request.headers:
            route.continue_()
        else:
            problem = {"title": "Unauthorized", "status": 401, "detail": "Send a bearer token."}
            route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    page.route(re.compile("/metrics(/|$)"), refuse)
    page.goto(service.url)
    field = page.get_by_label("Access token", exact=True)
    sync_api.expect(field).to_be_visible()
    assert field.get_attribute("type") == "password"
    field.fill("abc.def.ghi")
    with page.expect_request(lambda request: request.url.endswith("/metrics")) as sent:
        page.get_by_role("button", name="Use token").click()
    assert sent.value.headers["authorization"] == "Bearer abc.def.ghi"
    sync_api.expect(page.locator(".cell").first).to_be_visible()
    assert (
        page.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])") == '[{},{},""]'
    )


def test_an_unreachable_service_is_said_and_what_is_there_stays(
    page: Any, service: Service, open_dashboard: Open
) -> None:
    metric_id = create(service, ALL_RECORDS)
    open_dashboard()
    page.route(re.compile("/metrics/"), lambda route: route.abort())
    page.route_web_socket(re.compile("/live$"), lambda socket: socket.close())
    page.reload()
    failed = tile(page, metric_id)
    sync_api.expect(failed).to_have_attribute("data-state", "error", timeout=10_000)
    sync_api.expect(failed).to_contain_text("The service cannot be reached")
    page.unroute(re.compile("/metrics/"))
    failed.get_by_role("button", name="Try again").click()
    sync_api.expect(failed).to_have_attribute("data-state", "ready")


def test_a_phone_has_one_column(page: Any, service: Service, open_dashboard: Open) -> None:
    create(service, ALL_RECORDS)
    page.set_viewport_size({"width": 390, "height": 844})
    open_dashboard()
    assert len({each.bounding_box()["x"] for each in page.locator(".cell").all()}) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_is_small_and_its_policy_strict(page: Any, service: Service, open_dashboard: Open) -> None:
    open_dashboard()
    with urllib.request.urlopen(service.url, timeout=10) as response:
        text, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert sum(path.stat().st_size for path in (ROOT / "pages").glob("*.js")) < 80_000
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


# First, while there is nothing but the demonstration data.
@pytest.fixture(scope="module", autouse=True)
def picture(service: Service, browser: Any) -> None:
    if os.environ.get("SCREENSHOT") == "1":
        context = browser.new_context(viewport={"width": 1440, "height": 1000}, locale="en-US", reduced_motion="reduce")
        opened = context.new_page()
        opened.goto(service.url)
        sync_api.expect(opened.locator("#state")).to_have_attribute("data-state", "live")
        sync_api.expect(opened.locator(".cell").first).to_be_visible()
        sync_api.expect(opened.locator(".cell:not([data-state=ready])")).to_have_count(0)
        opened.screenshot(path=ROOT / "tests" / "dashboard.png")
        context.close()


def test_the_first_paint_comes_within_a_second(page: Any, service: Service, open_dashboard: Open) -> None:
    open_dashboard()
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    assert page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 1000
