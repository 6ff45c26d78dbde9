"""The dashboard in a real browser, by what a person sees, against a service of its own with the demonstration data.

SCREENSHOT=1 pytest -n 0 tests/test_dashboard.py     makes the pictures in docs/ anew
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from helpers import ROOT, Service, run_app, wait_until
from issuer import Issuer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

DESKTOP, TABLET, PHONE = (1440, 900), (820, 1180), (390, 844)
INJECTION = "<img src=x onerror=window.injected=1>"
ALL_RECORDS = "SELECT CURRENT_DATE AS day, COUNT(*) AS records FROM metrics"
RECORDS_SINCE = """SELECT COUNT(*) AS records
FROM metrics
WHERE date >= COALESCE(:start_date, DATE '2000-01-01')
AND date < COALESCE(:end_date, CURRENT_DATE) + 1"""
BY_MOMENT = "SELECT :start_date::timestamptz AS first, :end_date::timestamp AS last"
REGIONS = """-- param region (required): Sales region
SELECT 'sales in ' || :region::text AS sales"""
BRIEF = {
    "queries.csv": "id,query\n" + "".join(f"q{n},\"SELECT {n} AS a, DATE '2025-06-01' AS day\"\n" for n in range(5)),
    "metrics.json": json.dumps(
        {
            "items": [{"id": f"{n}" * 8, "queryId": f"q{n}", "isEditable": True} for n in range(5)],
            "layouts": {
                "lg": [
                    {"i": f"{n}" * 8, "x": x, "y": y, "w": w, "h": h, "static": False}
                    for n, x, y, w, h in [(0, 0, 20, 5, 4), (1, 0, 24, 5, 10), (2, 5, 12, 7, 14), (3, 0, 10, 5, 10)]
                ],
                "md": [
                    {"i": f"{n}" * 8, "x": 0, "y": y, "w": w, "h": h, "static": None}
                    for n, y, w, h in [(0, 10, 1, 4), (1, 24, 1, 10), (2, 14, 1, 10), (4, 9999999, 5, 10)]
                ],
            },
        }
    ),
}


def call(service: Service, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(service.url.rstrip("/") + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or b"null", parse_float=Decimal)


def listed(service: Service) -> dict[str, Any]:
    return {metric["id"]: metric for metric in call(service, "GET", "/metrics")["metrics"]}


Made = Callable[..., str]
Open = Callable[..., Any]
Write = Callable[[str, str], Path]


def write_record(service: Service, metric_id: str, **record: Any) -> None:
    call(service, "POST", f"/metrics/{metric_id}/metric-records", record)


@pytest.fixture(scope="module")
def service(start_service: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = Path(tempfile.mkdtemp(prefix="metrics-api-test-"))
    data.chmod(0o755)  # as root, the database's user must reach it
    queries = tmp_path_factory.mktemp("demonstration") / "queries"
    shutil.copytree(ROOT / "queries", queries)
    service = start_service(DATABASE_URL="", DATA_DIR=str(data), QUERIES_DIR=str(queries))
    yield service._replace(queries=queries)
    service.stop()
    shutil.rmtree(data)


@pytest.fixture
def made(service: Service) -> Iterator[Made]:
    """Makes a metric that goes with the test."""
    ids: list[str] = []

    def make(query: str, title: str = "Made by a test", **more: Any) -> str:
        ids.append(call(service, "POST", "/metrics", {"query": query, "title": title, **more})["id"])
        return ids[-1]

    yield make
    for metric_id in ids:
        call(service, "DELETE", f"/metrics/{metric_id}")


@pytest.fixture
def write_file(service: Service) -> Iterator[Write]:
    """Writes an SQL file that goes with the test."""
    files: list[Path] = []

    def write(name: str, sql: str) -> Path:
        files.append(service.queries / f"{name}.sql")
        files[-1].write_text(sql)
        wait_until(lambda: name in listed(service))
        return files[-1]

    yield write
    for file in files:
        file.unlink()


def context_of(browser: Any, size: tuple[int, int], scheme: str = "light") -> Any:
    viewport = {"width": size[0], "height": size[1]}
    return browser.new_context(
        viewport=viewport, color_scheme=scheme, has_touch=size != DESKTOP, locale="en-US", reduced_motion="reduce"
    )


@pytest.fixture
def open_page(browser: Any, service: Service) -> Iterator[Open]:
    """Opens the dashboard; an error or a warning in its console, or what its policy forbids, fails the test."""
    said: list[str] = []
    contexts: list[Any] = []

    def open_it(path: str = "", size: tuple[int, int] = DESKTOP, scheme: str = "light", wait: bool = True) -> Any:
        contexts.append(context_of(browser, size, scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{service.url}/{path}")
        return settle(page) if wait else page

    yield open_it
    for context in contexts:
        context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def settle(page: Any) -> Any:
    expect(page.locator(".cell >> visible=true").first).to_be_visible()
    expect(page.locator(".cell[data-state=loading], .cell [aria-busy=true]")).to_have_count(0)
    return page


def tile(page: Any, metric_id: str) -> Any:
    return page.locator(f'.cell[data-id="{metric_id}"]')


def choose(page: Any, metric_id: str, item: str) -> None:
    tile(page, metric_id).get_by_label("Menu").click()
    tile(page, metric_id).get_by_role("button", name=item).click()


def show_table(page: Any, metric_id: str) -> None:
    if tile(page, metric_id).locator("table").count() == 0:
        choose(page, metric_id, "Show as table")
    expect(tile(page, metric_id).locator("table")).to_be_visible()


def cells(page: Any, metric_id: str) -> list[list[str]]:
    rows = tile(page, metric_id).locator("tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def subscriptions(page: Any) -> dict[str, Any]:
    """What each tile was last asked for, filled as the page runs."""
    asked: dict[str, Any] = {}

    def note(frame: str | bytes) -> None:
        message = json.loads(frame)
        if message["type"] == "subscribe":
            asked[message["id"]] = message["params"]

    page.on("websocket", lambda socket: socket.on("framesent", note))
    return asked


def boxes(page: Any) -> list[dict[str, float]]:
    return [cell.bounding_box() for cell in page.locator(".cell").all()]


def box(page: Any, metric_id: str) -> dict[str, float]:
    return {side: round(value) for side, value in tile(page, metric_id).bounding_box().items()}


# ------------------------------------------------------------------------------------------------ what is shown


def test_a_written_record_moves_a_tile(service: Service, open_page: Open, made: Made) -> None:
    metric_id = made(ALL_RECORDS)
    page = open_page()
    before = call(service, "GET", f"/metrics/{metric_id}")["records"][0]["records"]
    show_table(page, metric_id)
    write_record(service, metric_id, obsolescence=1)
    expect(tile(page, metric_id).locator("tbody td").last).to_have_text(f"{before + 1:,}")


def test_markup_stays_text(open_page: Open, made: Made) -> None:
    metric_id = made(f"SELECT '{INJECTION}' AS name, 3 AS total", title=INJECTION)
    page = open_page()
    expect(tile(page, metric_id).get_by_role("heading")).to_have_text(INJECTION)
    show_table(page, metric_id)
    expect(tile(page, metric_id).locator("tbody td").first).to_have_text(INJECTION)
    choose(page, metric_id, "Show as chart")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.injected") is None


def test_the_page_is_small_and_its_policy_strict(service: Service) -> None:
    with urllib.request.urlopen(service.url, timeout=10) as response:
        text, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    scripts = [name for name in re.findall(r'"(pages/[\w.]+)"', text) if name.endswith(".js")]
    assert {ROOT / name for name in scripts} == {*(ROOT / "pages").glob("*.js")} - {ROOT / "pages" / "docs.js"}
    assert sum((ROOT / name).stat().st_size for name in scripts) <= 80 * 1024
    for name in scripts:
        request = urllib.request.Request(f"{service.url}/{name}")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["Content-Security-Policy"] == policy
            request.add_header("If-None-Match", response.headers["ETag"])
        with pytest.raises(urllib.error.HTTPError, match="304"):
            urllib.request.urlopen(request, timeout=10)


@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE])
def test_tiles_close_ranks_whatever_layouts_a_data_set_brings(
    service: Service, open_page: Open, tmp_path: Path, size: tuple[int, int]
) -> None:
    """No two overlap, none is too narrow to read, and nothing is left between them."""
    if not any(metric_id == "0" * 8 for metric_id in listed(service)):
        seed(service, tmp_path)
    page = open_page(size=size)
    expect(tile(page, "0" * 8)).to_be_visible()
    found = boxes(page)
    assert min(each["width"] for each in found) > 170
    for a, b in combinations(found, 2):
        aside = a["x"] + a["width"] <= b["x"] + 1 or b["x"] + b["width"] <= a["x"] + 1
        assert aside or a["y"] + a["height"] <= b["y"] + 1 or b["y"] + b["height"] <= a["y"] + 1
    grid = page.locator("#grid").bounding_box()
    taken = sum(each["width"] * each["height"] for each in found)
    ragged = sum(grid["y"] + grid["height"] - end for end in bottoms(found, grid)) * grid["width"] / 100
    assert taken + ragged > 0.995 * grid["width"] * grid["height"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def bottoms(found: list[dict[str, float]], grid: dict[str, float]) -> list[float]:
    """Where the lowest tile ends, at a hundred places across."""
    xs = [grid["x"] + (n + 0.5) * grid["width"] / 100 for n in range(100)]
    return [
        max(each["y"] + each["height"] for each in found if each["x"] <= x <= each["x"] + each["width"]) for x in xs
    ]


def seed(service: Service, directory: Path) -> None:
    for name, text in BRIEF.items():
        (directory / name).write_text(text)
    environment = dict(line.split("=", 1) for line in environ_of(service) if "=" in line)
    run_app("seed", directory, **environment).check_returncode()
    wait_until(lambda: "0" * 8 in listed(service))


def environ_of(service: Service) -> list[str]:
    return Path(f"/proc/{service.process.pid}/environ").read_text().split("\0")


# ------------------------------------------------------------------------------------------------ what fails


def test_what_does_not_compile_says_where_and_comes_back(service: Service, open_page: Open, write_file: Write) -> None:
    file = write_file("weather", "-- title: Weather\nSELECT 21 AS degrees")
    page = open_page()
    expect(tile(page, "weather")).to_contain_text("21")

    file.write_text("-- title: Weather\nSELECT no_such_column")
    for seen in (page, open_page(wait=False)):
        wait_until(lambda: "weather" not in listed(service))
        seen.evaluate("dispatchEvent(new Event('online'))")
        expect(tile(seen, "weather")).to_have_attribute("data-state", "broken")
        expect(tile(seen, "weather")).to_contain_text('queries/weather.sql:2:8: column "no_such_column" does not exist')

    file.write_text("-- title: Weather\nSELECT 22 AS degrees")
    wait_until(lambda: "weather" in listed(service))
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(tile(page, "weather")).to_contain_text("22")


def test_an_unreachable_service_is_said_and_the_tile_comes_back(open_page: Open, made: Made) -> None:
    metric_id = made(ALL_RECORDS)
    page = open_page()
    page.route(re.compile("/metrics/"), lambda route: route.abort())
    page.route_web_socket(re.compile("/live$"), lambda socket: socket.close())
    page.reload()
    failed = tile(page, metric_id)
    expect(failed).to_have_attribute("data-state", "error", timeout=10_000)
    expect(failed).to_contain_text("The service cannot be reached")
    page.unroute(re.compile("/metrics/"))
    failed.get_by_text("Try again").dispatch_event("click")  # it may have come back by itself in the meantime
    expect(failed).to_have_attribute("data-state", "ready")


TROUBLES = {
    "savings": (500, "The query fails on its data; the log has the reason.", "This metric cannot be worked out"),
    "cost-avoided": (504, "The query took longer than STATEMENT_TIMEOUT.", "It takes too long"),
    "stock-value": (422, "The result is larger than MAX_RESULT_BYTES.", "The result is too large to show"),
    "parts-flagged": (503, "The pool is busy.", "The numbers cannot be had right now"),
}


def test_a_viewer_reads_sentences_for_viewers(open_page: Open) -> None:
    page = open_page(wait=False)

    def answer(route: Any) -> None:
        metric_id = route.request.url.rpartition("/")[2].partition("?")[0]
        status, detail, _ = TROUBLES[metric_id]
        route.fulfill(status=status, json={"title": "Internal Server Error", "status": status, "detail": detail})

    page.route_web_socket(re.compile("/live$"), lambda socket: socket.close())
    page.route(re.compile(rf"/metrics/({'|'.join(TROUBLES)})\?"), answer)
    page.reload()
    for metric_id, (_, _, said) in TROUBLES.items():
        expect(tile(page, metric_id).locator(".why")).to_contain_text(said)
        assert not re.search("[A-Z]_[A-Z]|Internal", tile(page, metric_id).inner_text())


def test_a_required_parameter_asks_for_its_value(open_page: Open, write_file: Write) -> None:
    write_file("regions", REGIONS)
    page = open_page()
    expect(tile(page, "regions")).to_contain_text("Choose region")
    tile(page, "regions").get_by_role("combobox", name="region").fill("the north")
    page.keyboard.press("Enter")
    expect(tile(page, "regions")).to_contain_text("sales in the north")
    page.reload()
    expect(tile(page, "regions")).to_contain_text("sales in the north")


# ------------------------------------------------------------------------------------------------ what can be adjusted


def test_the_period_reaches_every_tile(service: Service, open_page: Open, made: Made) -> None:
    metric_id = made(RECORDS_SINCE)
    write_record(service, metric_id, obsolescence=1)
    write_record(service, metric_id, obsolescence=1, date="2001-02-03T00:00:00Z")
    page = open_page("?period=90")
    asked = subscriptions(page)
    page.reload()
    settle(page)
    count = tile(page, metric_id).locator("b, dd").first
    whole = f"{call(service, 'GET', f'/metrics/{metric_id}')['records'][0]['records']:,}"
    expect(count).not_to_have_text(whole)

    page.get_by_label("Period").select_option(label="Last 7 days")
    expect(page).to_have_url(re.compile("period=7"))
    settle(page)
    assert {params["day_range"] for params in asked.values()} == {"7"}
    assert len(asked) == page.locator(".cell").count()
    today, days = page.evaluate("[0, 6].map((ago) => new Date(Date.now() - ago * 864e5).toISOString().slice(0, 10))")
    assert (asked[metric_id]["start_date"], asked[metric_id]["end_date"]) == (days, today)

    page.get_by_label("Period").select_option(label="From … to …")
    page.get_by_label("From", exact=True).fill("2001-01-01")
    expect(count).to_have_text(whole)
    page.get_by_label("To", exact=True).fill("2001-12-31")
    expect(count).to_have_text("1")
    page.get_by_label("Period").select_option(label="All")
    expect(count).to_have_text(whole)


def test_a_tile_that_does_not_take_the_period_says_so(open_page: Open, made: Made) -> None:
    fixed, moment = made(ALL_RECORDS), made(BY_MOMENT)
    page = open_page("?period=hour")
    expect(tile(page, fixed)).to_contain_text("own period")
    expect(tile(page, "savings")).to_contain_text("whole days")
    expect(tile(page, moment)).not_to_contain_text("whole days")
    show_table(page, moment)
    first, last = cells(page, moment)[0]
    assert re.search(r"\d:\d\d", first)
    assert first != last


def test_parameters_have_fields_by_their_types(service: Service, open_page: Open, made: Made) -> None:
    typed = made("SELECT :day::date AS d, :least::numeric AS l, :whole::int AS w, :on::bool AS o, :words::text AS t")
    page = open_page()
    fields = tile(page, typed)
    kinds = {name: fields.get_by_label(name).get_attribute("type") for name in ("Day", "Least", "Whole", "Words")}
    assert kinds == {"Day": "date", "Least": "number", "Whole": "number", "Words": "text"}
    fields.get_by_label("Least").fill("2.5")
    fields.get_by_label("On").select_option("yes")
    fields.get_by_label("Words").fill("a & b")
    page.keyboard.press("Enter")
    show_table(page, typed)
    expect(fields.locator("tbody td")).to_have_text(["\N{EN DASH}", "2.5", "\N{EN DASH}", "true", "a & b"])

    copied = open_page(page.url.partition("/?")[2].join(["?", ""]))
    expect(tile(copied, typed).locator("tbody td")).to_have_text(["\N{EN DASH}", "2.5", "\N{EN DASH}", "true", "a & b"])


def test_a_name_that_several_tiles_share_is_asked_for_once(open_page: Open) -> None:
    page = open_page("?period=365")
    asked = subscriptions(page)
    page.reload()
    settle(page)
    field = page.locator("header").get_by_label("Category")
    assert tile(page, "recent-alerts").get_by_label("Category").count() == 0
    field.focus()
    values = page.locator("#suggested option").evaluate_all("(options) => options.map(({ value }) => value)")
    assert {"End of life", "Supply risk"} <= set(values)
    field.fill("End of life")
    page.keyboard.press("Enter")
    settle(page)
    shared = {"recent-alerts", "critical-alerts", "alerts-per-day"}
    assert {metric_id for metric_id, params in asked.items() if params.get("category") == "End of life"} == shared
    assert {row[2] for row in cells(page, "recent-alerts")} == {"End of life"}


def test_a_shared_name_may_be_one_that_every_object_has(open_page: Open, made: Made) -> None:
    one, other = (made(f"SELECT COALESCE(:constructor::text, 'nobody') AS who, {n} AS n") for n in (1, 2))
    page = open_page()
    for metric_id in (one, other):
        show_table(page, metric_id)
        assert cells(page, metric_id)[0][0] == "nobody"
    page.locator("header").get_by_label("Constructor").fill("Lotus")
    page.keyboard.press("Enter")
    for metric_id in (one, other):
        expect(tile(page, metric_id).locator("tbody td").first).to_have_text("Lotus")


def test_an_enums_labels_can_be_chosen(service: Service, open_page: Open) -> None:
    """Its type is made where the demonstration's owner would make it."""
    page = open_page(wait=False)
    document = {
        "paths": {"/metrics/moods": {"get": {"parameters": [{"name": "mood", "schema": {"enum": ["sad", "ok"]}}]}}}
    }
    metric = {"id": "moods", "title": "Moods", "description": "", "unit": "", "chart": "table", "is_editable": False}
    metric |= {"version": 1, "live": True, "columns": [{"name": "mood", "type": "mood"}], "layouts": []}
    metric |= {"parameters": [{"name": "mood", "type": "mood", "required": False, "description": ""}]}
    page.route(re.compile("/metrics$"), lambda route: route.fulfill(json={"metrics": [metric]}))
    page.route(re.compile("/openapi.json$"), lambda route: route.fulfill(json=document))
    page.reload()
    expect(tile(page, "moods").get_by_label("Mood").locator("option")).to_have_text(["\N{EN DASH}", "sad", "ok"])


def test_theme_and_the_opened_tile_live_in_the_url(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Switch between dark and light").click()
    expect(page).to_have_url(re.compile("theme=dark"))
    dark = "rgb(15, 18, 22)"
    expect(page.locator("body")).to_have_css("background-color", dark)
    choose(page, "savings", "Full screen")
    expect(page).to_have_url(re.compile("tile=savings"))
    page.reload()
    settle(page)
    expect(page.locator("body")).to_have_css("background-color", dark)
    assert box(page, "savings") == {"x": 0, "y": 0, "width": DESKTOP[0], "height": DESKTOP[1]}


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_tile_opens_to_full_screen_and_closes(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page(size=size)
    before = box(page, "savings")
    closing = tile(page, "savings").get_by_label("Close full screen")
    press = closing.tap if size == PHONE else closing.click
    for close in (lambda: page.keyboard.press("Escape"), press, page.go_back):
        choose(page, "savings", "Full screen")
        assert box(page, "savings") == {"x": 0, "y": 0, "width": size[0], "height": size[1]}
        expect(closing).to_be_focused()
        close()
        expect(tile(page, "savings").get_by_label("Menu")).to_be_focused()
        assert box(page, "savings") == before
        assert "tile=" not in page.url


def test_escape_closes_a_menu_and_keys_walk_it(open_page: Open) -> None:
    page = open_page()
    menu = tile(page, "savings").get_by_label("Menu")
    menu.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(tile(page, "savings").get_by_role("button", name="Full screen")).to_be_focused()
    page.keyboard.press("Tab")
    expect(tile(page, "savings").get_by_role("button", name="Show as table")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    expect(tile(page, "savings").get_by_role("button", name="Full screen")).to_be_hidden()


def test_a_tiles_menu_gives_the_numbers_away(service: Service, open_page: Open) -> None:
    page = open_page("?period=30")
    with page.expect_download() as saved:
        choose(page, "alerts-by-type", "Download CSV")
    assert saved.value.suggested_filename == "alerts-by-type.csv"
    assert saved.value.path().read_text().startswith("alert_type,total_alerts")

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, "alerts-by-type", "Copy as curl")
    expect(page.get_by_role("status")).to_contain_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(["bash", "-c", f"{command} --silent"], capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["id"] == "alerts-by-type"
    assert "day_range=30" in command


def test_tiles_are_found_by_words(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Find").fill("alerts category")
    expect(tile(page, "alerts-by-category")).to_be_visible()
    expect(tile(page, "savings")).to_be_hidden()
    assert box(page, "alerts-by-category")["y"] < DESKTOP[1] / 2
    page.get_by_label("Find").fill("nothing has this")
    expect(page.get_by_text("“nothing has this”")).to_be_visible()


# ------------------------------------------------------------------------------------------------ new tiles, and others


def test_a_prompt_makes_a_tile(service: Service, open_page: Open) -> None:
    page = open_page()
    before = listed(service)
    page.get_by_role("button", name="New tile").click()
    expect(page.get_by_text("built-in mock")).to_be_visible()
    page.get_by_label("Describe a new tile").fill("count of alerts by type and colour")
    page.get_by_role("button", name="Preview").click()
    draft = page.get_by_role("region", name="Proposed tile")
    expect(draft).to_contain_text("Not used: colour.")
    expect(draft).to_contain_text("Warning")
    assert listed(service) == before

    title = f"Alerts {uuid.uuid4().hex[:8]}"
    draft.get_by_label("Title").fill(title)
    draft.get_by_role("button", name="Keep").click()
    expect(page.get_by_role("region", name=title)).to_be_focused()
    (kept,) = listed(service).keys() - before.keys()
    expect(tile(page, kept)).to_have_attribute("data-state", "ready")
    page.once("dialog", lambda dialog: dialog.accept())
    choose(page, kept, "Delete…")
    expect(tile(page, kept)).to_have_count(0)


def test_a_dropped_proposal_is_not_stored(service: Service, open_page: Open) -> None:
    page = open_page()
    before = listed(service)
    page.get_by_role("button", name="New tile").click()
    page.get_by_label("Describe a new tile").fill("count of alerts by type")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Drop").click()
    expect(page.get_by_label("Describe a new tile")).to_be_hidden()
    assert listed(service) == before


def test_sql_is_refused_at_its_place_and_changed(service: Service, open_page: Open, made: Made) -> None:
    metric_id = made("SELECT 1 AS one", title="One")
    page = open_page()
    choose(page, metric_id, "SQL…")
    editor = page.locator("#query")
    expect(editor).to_have_value("SELECT 1 AS one")
    editor.fill("SELECT 2 AS two,\n\tno_such_column")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("alert").locator("visible=true")).to_have_text(
        'Line 2, column 2: column "no_such_column" does not exist.'
    )
    selected = (
        "document.activeElement.value.slice(document.activeElement.selectionStart, document.activeElement.selectionEnd)"
    )
    assert page.evaluate(selected) == "no_such_column"

    editor.fill("SELECT 2 AS two")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("region", name="Proposed tile")).to_contain_text("2")
    page.get_by_role("button", name="Keep").click()
    expect(tile(page, metric_id)).to_contain_text("two")
    assert call(service, "GET", f"/metrics/{metric_id}/definition")["query"] == "SELECT 2 AS two"

    choose(page, "savings", "SQL…")
    expect(editor).to_have_attribute("readonly", "")
    expect(page.get_by_text("It comes from queries/savings.sql and is edited there.")).to_be_visible()
    expect(page.get_by_role("button", name="Preview")).to_be_hidden()


# ------------------------------------------------------------------------------------------------ arranging


def place(service: Service, metric_id: str) -> list[int]:
    layouts = call(service, "GET", f"/metrics/{metric_id}")["layouts"]
    return [item[side] for item in layouts if item["breakpoint"] == "lg" for side in "xywh"]


def put_first(service: Service, metric_id: str) -> None:
    item = {"breakpoint": "lg", "x": 0, "y": 0, "w": 4, "h": 8, "static": False}
    call(service, "PUT", f"/metrics/{metric_id}/layouts", [item])


def drag(page: Any, metric_id: str, dx: float, dy: float = 0) -> None:
    start = box(page, metric_id)
    page.mouse.move(start["x"] + 60, start["y"] + 25)
    page.mouse.down()
    page.mouse.move(start["x"] + 60 + dx / 2, start["y"] + 25 + dy / 2, steps=4)
    page.mouse.move(start["x"] + 60 + dx, start["y"] + 25 + dy, steps=4)
    page.mouse.up()


def test_arranging_is_undone_cancelled_and_kept(service: Service, open_page: Open, made: Made) -> None:
    metric_id = made(ALL_RECORDS)
    put_first(service, metric_id)
    page = open_page()
    start, width = box(page, metric_id), DESKTOP[0] / 2
    drag(page, metric_id, width)
    assert box(page, metric_id) == start, "outside the mode nothing moves"

    page.get_by_role("button", name="Edit").click()
    drag(page, metric_id, width)
    assert box(page, metric_id)["x"] > start["x"] + 300
    page.get_by_role("button", name="Undo").click()
    assert box(page, metric_id) == start
    drag(page, metric_id, width)
    page.get_by_role("button", name="Cancel").click()
    assert box(page, metric_id) == start
    assert place(service, metric_id) == [0, 0, 4, 8]

    page.get_by_role("button", name="Edit").click()
    drag(page, metric_id, width)
    page.get_by_role("button", name="Done").click()
    dropped = box(page, metric_id)
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false", timeout=20_000)
    page.reload()
    settle(page)
    assert box(page, metric_id) == dropped
    assert place(service, metric_id)[0] > 3


def test_a_tile_is_moved_and_resized_with_keys(service: Service, open_page: Open, made: Made) -> None:
    metric_id = made(ALL_RECORDS)
    put_first(service, metric_id)
    page = open_page()
    page.get_by_role("button", name="Edit").click()
    tile(page, metric_id).get_by_role("region").focus()
    before = box(page, metric_id)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    after = box(page, metric_id)
    assert after["x"] > before["x"]
    assert after["height"] == before["height"] + 32
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false", timeout=20_000)
    x, _, _, h = place(service, metric_id)
    assert (x, h) == (1, 9)


# ------------------------------------------------------------------------------------------------ who looks


def test_who_may_only_read_is_offered_nothing_else(start_service: Serve, issuer: Issuer, browser: Any) -> None:
    """And a token is asked for, sent, and stored nowhere."""
    secured = start_service(JWT_ISSUER=issuer.url)
    page = context_of(browser, DESKTOP).new_page()
    page.goto(secured.url)
    offers = [page.get_by_role("button", name=name) for name in ("New tile", "Edit")]
    for scope, may_write in (("api/backend_access", False), ("api/backend_access api/backend_write", True)):
        field = page.get_by_label("Access token", exact=True)
        assert field.get_attribute("type") == "password"
        field.fill(issuer.token(scope=scope))
        with page.expect_request(lambda request: request.url.endswith("/metrics")) as sent:
            page.get_by_role("button", name="Use token").click()
        assert sent.value.headers["authorization"].startswith("Bearer ")
        settle(page)
        assert [offer.is_visible() for offer in offers] == [may_write, may_write]
        tile(page, "total").get_by_label("Menu").click()
        expect(tile(page, "total").get_by_role("button", name="Download CSV")).to_be_visible()
        assert page.evaluate("JSON.stringify([{ ...localStorage }, document.cookie])") == '[{},""]'
        page.reload()
    page.context.close()
    secured.stop()


# ------------------------------------------------------------------------------------------------ accessibility


def violations(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    if not page.evaluate("'axe' in window"):
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (TABLET, "dark"), (PHONE, "light")])
def test_nothing_keeps_anybody_out(open_page: Open, made: Made, size: tuple[int, int], scheme: str) -> None:
    """axe-core finds no violation on the dashboard and its menus, a draft, a full screen, and while arranging."""
    made("SELECT :asked::text AS asked, :kind::int AS kind")
    page = open_page("?period=30", size, scheme)
    tile(page, "alerts-per-day").get_by_label("Menu").click()
    assert violations(page) == []
    tile(page, "alerts-per-day").get_by_role("button", name="Full screen").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    if size == DESKTOP:
        page.get_by_role("button", name="Edit").click()
        assert violations(page) == []
        page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="New tile").click()
    page.get_by_label("Describe a new tile").fill("count of alerts by type and colour")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("region", name="Proposed tile")).to_be_visible()
    assert violations(page) == []


# ------------------------------------------------------------------------------------------------ pictures

PICTURES = {"dashboard": (DESKTOP, "light"), "dashboard-dark": (DESKTOP, "dark"), "dashboard-phone": (PHONE, "light")}


# First, while there is nothing but the demonstration data.
@pytest.fixture(scope="module", autouse=True)
def pictures(service: Service, browser: Any) -> None:
    for name, (size, scheme) in PICTURES.items() if os.environ.get("SCREENSHOT") == "1" else ():
        context = context_of(browser, size, scheme)
        page = context.new_page()
        page.goto(f"{service.url}/?period=30")
        expect(page.locator("#state")).to_have_attribute("data-state", "live")
        settle(page)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=ROOT / "docs" / f"{name}.png")
        context.close()
