"""pages/charts.js in a page of one's own, in a real browser: what a person sees of a result."""

import datetime
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from helpers import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PAGE = """<!doctype html><html lang="en"><title>A page of one's own</title><link rel="stylesheet" href="charts.css">
<div id="box"></div><script type="module" src="own.js"></script></html>"""
SCRIPT = """import { draw, parse } from './charts.js'
window.show = (metric, answer, options, [width, height]) => {
  Object.assign(document.getElementById('box').style, { width: `${width}px`, height: `${height}px` })
  draw(document.getElementById('box'), metric, parse(answer), options)
  return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
}
window.parse = parse"""
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'"
JUNE = {"from": "2025-06-01", "to": "2025-06-30"}
expect = sync_api.expect

Row = dict[str, Any]
New = Callable[..., Any]


def answer(route: Any) -> None:
    name = route.request.url.rpartition("/")[2]
    body = {"": PAGE, "own.js": SCRIPT}.get(name) if name in ("", "own.js") else (ROOT / "pages" / name).read_text()
    kind = {"css": "text/css", "js": "text/javascript"}.get(name.rpartition(".")[2], "text/html")
    route.fulfill(body=body, content_type=f"{kind}; charset=utf-8", headers={"Content-Security-Policy": POLICY})


@pytest.fixture(scope="module")
def new_page(browser: Any) -> Iterator[New]:
    """Opens the page in a browser with these settings, once for each; its console must stay silent."""
    pages: dict[str, Any] = {}
    said: list[str] = []

    def new(**settings: Any) -> Any:
        key = json.dumps(settings)
        if key not in pages:
            given = {"locale": "en-US", "reduced_motion": "reduce", "viewport": {"width": 900, "height": 700}}
            pages[key] = page = browser.new_context(**given | settings).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.route("http://own.test/**", answer)
            page.goto("http://own.test/")
            page.wait_for_function("!!window.show")
        pages[key].mouse.move(890, 690)
        return pages[key]

    yield new
    assert [text for text in said if "favicon" not in text] == []


@pytest.fixture
def page(new_page: New) -> Any:
    return new_page()


def show(
    page: Any,
    chart: str,
    columns: dict[str, str],
    records: Sequence[Row],
    options: Row | None = None,
    truncated: bool = False,
    **metric: str,
) -> Any:
    result = {"columns": named(columns), "records": records, "truncated": truncated}
    page.evaluate("box.replaceWith(Object.assign(document.createElement('div'), { id: 'box' }))")
    said = [{"title": "Tried", "chart": chart, **metric}, json.dumps(result), options or {}, [420, 240]]
    page.evaluate("([metric, answer, options, size]) => show(metric, answer, options, size)", said)
    return page.locator("#box")


def named(columns: dict[str, str]) -> list[Row]:
    return [{"name": name, "type": kind} for name, kind in columns.items()]


def day(n: int) -> str:
    return str(datetime.date(2025, 6, 1) + datetime.timedelta(days=n))


def stretches(box: Any, kind: str = "line") -> list[list[tuple[float, float]]]:
    """Where each stretch of a line, or each bar, begins and goes."""
    drawn = [path.get_attribute("d") for path in box.locator(f"path.{kind}").all()]
    moves = [move for path in drawn for move in path.split("M")[1:]]
    return [[(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", move)] for move in moves]


def tooltip(page: Any) -> str:
    return str(page.locator(".tip:visible").inner_text()).replace("\n\n", "\n")


# ------------------------------------------------------------------------------------------------ nothing left out


def test_twenty_series_are_the_largest_eight_and_twelve_more_that_open(page: Any) -> None:
    rows = [{"day": day(n), "kind": f"Kind {k:02}", "total": k * 3 + n} for n in range(5) for k in range(1, 21)]
    box = show(page, "line", {"day": "date", "kind": "text", "total": "int8"}, rows)
    names = [f"Kind {k}" for k in range(13, 21)]
    assert box.get_by_role("button").all_inner_texts() == [*names, "12 more"]
    assert len(stretches(box)) == 8
    box.get_by_role("button", name="12 more").click()
    expect(box.locator(".legend button[aria-pressed]")).to_have_count(20)
    assert len(stretches(box)) == 20
    looks = page.evaluate(
        "[...document.querySelectorAll('path.line')].map((path) => {"
        " const { stroke, strokeDasharray } = getComputedStyle(path); return stroke + strokeDasharray })"
    )
    assert len(set(looks)) == 20
    box.get_by_role("button", name="Fewer").click()
    expect(box.get_by_role("button", name="12 more")).to_be_visible()


def test_a_stack_of_twenty_keeps_its_height(page: Any) -> None:
    """What is not told apart is one piece, or the whole would be too low."""
    rows = [{"day": day(0), "kind": f"Kind {k}", "total": 10} for k in range(20)]
    box = show(page, "stacked", {"day": "date", "kind": "text", "total": "int8"}, rows)
    box.locator("svg").focus()
    page.keyboard.press("Home")
    assert "12 more\n120" in tooltip(page)
    assert tooltip(page).endswith("Total\n200")


def test_two_hundred_names_are_horizontal_bars_the_largest_first(page: Any) -> None:
    rows = [{"name": f"Category number {n}", "total": n * 7 % 997} for n in range(1, 201)]
    box = show(page, "bar", {"name": "text", "total": "int8"}, rows)
    items = box.get_by_role("listitem").filter(has=page.locator(".label"))
    values = sorted((n * 7 % 997 for n in range(1, 201)), reverse=True)
    shown = items.count()
    assert [int(text) for text in items.locator("b").all_inner_texts()] == values[:shown]
    assert all(
        label.evaluate("(each) => each.scrollWidth <= each.clientWidth") for label in items.locator(".label").all()
    )
    box.get_by_role("button", name=f"{200 - shown} more").click()
    expect(items).to_have_count(200)
    assert [int(text) for text in items.locator("b").all_inner_texts()] == values


def test_a_table_has_all_rows_for_whoever_asks(page: Any) -> None:
    rows = [{"n": n} for n in range(1000)]
    box = show(page, "table", {"n": "int4"}, rows, truncated=True)
    expect(box.get_by_text("The first 1,000 rows, there are more.")).to_be_visible()
    for more in (800, 600, 400, 200):
        box.get_by_role("button", name=f"{more} more").click()
    expect(box.locator("tbody tr")).to_have_count(1000)
    expect(box.locator("tbody tr").last).to_have_text("999")


def test_rows_that_cannot_be_placed_are_counted(page: Any) -> None:
    rows: list[Row] = [{"day": day(0), "n": 1}, {"day": None, "n": 2}, {"day": "infinity", "n": 3}]
    box = show(page, "line", {"day": "date", "n": "int4"}, rows)
    expect(box.get_by_text("2 rows without a time are not drawn.")).to_be_visible()


# ------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize("chart", ["line", "stacked"])
def test_three_weeks_without_a_value_are_a_gap(page: Any, chart: str) -> None:
    rows = [{"day": day(n), "a": 5 + n % 3, "b": 3} for n in range(90) if not 30 < n < 52]
    box = show(page, chart, {"day": "date", "a": "int8", "b": "int8"}, rows, {"from": day(0), "to": day(89)})
    first, second = stretches(box, "line" if chart == "line" else "column")[:2]
    per_day = (max(x for x, _ in second) - min(x for x, _ in first)) / 89
    assert min(x for x, _ in second) - max(x for x, _ in first) == pytest.approx(22 * per_day, abs=1)


def test_a_value_that_is_null_is_a_gap_and_a_series_of_its_own_step_is_none(page: Any) -> None:
    daily = [{"day": day(n), "kind": "daily", "n": None if n == 9 else 4} for n in range(29)]
    weekly = [{"day": day(n), "kind": "weekly", "n": 9} for n in range(0, 29, 7)]
    box = show(page, "line", {"day": "date", "kind": "text", "n": "int8"}, daily + weekly)
    assert [len(stretch) for stretch in stretches(box)] == [9, 19, 5]


@pytest.mark.parametrize("options", [JUNE, {}])
def test_a_single_point_is_seen_in_its_place_in_the_period(page: Any, options: Row) -> None:
    box = show(page, "line", {"day": "date", "n": "int8"}, [{"day": "2025-06-16", "n": 12}], options)
    ((((x, _),)),) = stretches(box, "dots")
    rule = box.locator(".base").get_attribute("d")
    left, right = (float(number) for number in re.findall(r"M([\d.]+),.*H([\d.]+)", rule)[0])
    assert (x - left) / (right - left) == pytest.approx(15 / 29 if options else 0.5, abs=0.01)
    assert box.locator(".dots").evaluate("(dot) => +getComputedStyle(dot).strokeWidth.slice(0, -2)") >= 5


def test_an_axis_spans_the_period_and_not_the_data(page: Any) -> None:
    rows = [{"day": day(n), "n": n} for n in range(10, 20)]
    box = show(page, "bar", {"day": "date", "n": "int8"}, rows, JUNE)
    assert {"Jun 2", "Jun 30"} <= set(box.locator("text.name").all_text_contents())


# ------------------------------------------------------------------------------------------------ axes and marks


@pytest.mark.parametrize(
    ("unit", "columns", "axes"),
    [
        ("", {"revenue": 1_200_000, "orders": 25}, [["revenue"], ["orders"]]),
        ("", {"price": "19.5", "orders": 325}, [["price"], ["orders"]]),
        (
            "USD",
            {"sales": "900.5", "cost_eur": "800.5", "margin_pct": "11.1"},
            [["sales"], ["cost eur"], ["margin pct"]],
        ),
        ("ms", {"min_ms": 12, "avg_ms": "20.125", "max_ms": 90}, [["min ms", "avg ms", "max ms"]]),
        ("", {"lowest": 12, "average": "20.125", "highest": 90}, [["lowest", "average", "highest"]]),
        ("alerts", {"critical": 2, "warning": 9, "info": 70}, [["critical", "warning", "info"]]),
    ],
)
def test_columns_share_an_axis_when_they_are_of_one_unit_and_size(
    page: Any, unit: str, columns: Row, axes: list[list[str]]
) -> None:
    rows = [{"day": day(n), **columns} for n in range(5)]
    kinds = {name: "numeric" if isinstance(value, str) else "int8" for name, value in columns.items()}
    box = show(page, "line", {"day": "date", **kinds}, rows, unit=unit)
    assert [panel.get_by_role("button").all_inner_texts() for panel in box.locator("figure").all()] == axes
    assert box.get_by_role("img").count() == len(axes)


def test_stacked_bars_stand_on_each_other(page: Any) -> None:
    rows = [{"name": name, "kind": kind, "n": 10} for name in ("North", "South") for kind in ("Lamp", "Desk")]
    box = show(page, "stacked", {"name": "text", "kind": "text", "n": "int8"}, rows)
    (lamp, _), (desk, _) = (path.get_attribute("d").split("M")[1:] for path in box.locator("path.column").all())
    lower, upper = ([float(n) for n in re.findall(r"[\d.]+", mark)] for mark in (lamp, desk))
    assert lower[0] == upper[0]
    assert upper[1] == pytest.approx(lower[3], abs=0.2)


def test_horizontal_bars_grow_from_zero_to_both_sides(page: Any) -> None:
    rows = [{"name": "Loss", "n": -50}, {"name": "Gain", "n": 100}]
    box = show(page, "hbar", {"name": "text", "n": "int8"}, rows)
    assert box.locator(".label").all_inner_texts() == ["Gain", "Loss"]
    gain, loss = (bar.bounding_box() for bar in box.locator(".track i").all())
    assert gain["x"] == pytest.approx(loss["x"] + loss["width"], abs=1)
    assert gain["width"] == pytest.approx(2 * loss["width"], abs=1)


def test_a_legend_entry_hides_and_shows_its_series(page: Any) -> None:
    rows = [{"day": day(n), "a": 5, "b": 50} for n in range(5)]
    box = show(page, "line", {"day": "date", "a": "int8", "b": "int8"}, rows)
    entry = box.get_by_role("button", name="b", exact=True)
    entry.click()
    expect(entry).to_have_attribute("aria-pressed", "false")
    assert len(stretches(box)) == 1
    assert "50" not in box.locator("text.level").all_text_contents()
    entry.click()
    expect(entry).to_have_attribute("aria-pressed", "true")
    assert len(stretches(box)) == 2


# ------------------------------------------------------------------------------------------------ numbers and texts


@pytest.mark.parametrize(
    ("locale", "value", "unit", "said"),
    [
        ("en-US", "1234567.80", "EUR", "€1,234,567.80"),
        ("de-DE", "1234567.80", "EUR", "1.234.567,80 €"),
        ("en-US", "99.98712345", "%", "99.987%"),
        ("de-DE", "99.987", "%", "99,987 %"),
        ("en-US", "0.000123456", "", "0.00012346"),
        ("en-US", 42, "hours", "42 hr"),
        ("en-US", "33.3333333333333333", "parts", "33.333"),
        ("en-US", "9223372036854775807", "", "9,223,372,036,854,775,807"),
        ("en-US", "NaN", "", "NaN"),
    ],
)
def test_a_number_is_written_as_the_language_does(new_page: New, locale: str, value: Any, unit: str, said: str) -> None:
    box = show(new_page(locale=locale), "number", {"n": "numeric"}, [{"n": value}], unit=unit)
    expect(box.locator("b")).to_have_text(said)
    assert box.locator("b").evaluate("(b) => b.getBoundingClientRect().width <= b.closest('#box').clientWidth")


@pytest.mark.parametrize("width", [420, 160])
def test_no_digit_is_lost(page: Any, width: int) -> None:
    """Neither to a double nor to the width; what does not fit is in the tooltip."""
    text = '{"columns": [{"name": "n", "type": "numeric"}], "records": [{"n": 12345678901234567890123.10}]}'
    assert page.evaluate("(text) => parse(text).records[0].n", text) == "12345678901234567890123.10"
    assert page.evaluate("(text) => parse(text)", r'["1.50 \" 2.50", 1.5, 1e3]') == ['1.50 " 2.50', 1.5, "1e3"]
    page.evaluate("([text, width]) => show({ chart: 'number' }, text, {}, [width, 120])", [text, width])
    figure = page.locator("#box b")
    assert figure.evaluate("(b) => b.getBoundingClientRect().width <= b.closest('#box').clientWidth")
    if width == 160:
        figure.focus()
        assert tooltip(page).replace("\n", "") == "12,345,678,901,234,567,890,123.10"
    else:
        expect(figure).to_have_text("12,345,678,901,234,567,890,123.10")


def test_a_number_has_its_change_and_a_line_that_has_gaps_too(page: Any) -> None:
    rows = [{"day": day(n), "alerts": 10 + n} for n in range(30) if not 10 < n < 20]
    before = {"columns": named({"day": "date", "alerts": "int8"}), "records": [{"day": day(-1), "alerts": 52}]}
    box = show(page, "number", {"day": "date", "alerts": "int8"}, rows, {"before": before, **JUNE})
    expect(box.locator("b")).to_have_text("39")
    expect(box.get_by_text("-25% from 52 before")).to_be_visible()
    assert len(stretches(box)) == 2


def test_texts_keep_their_direction_and_times_lose_their_microseconds(page: Any) -> None:
    rows: list[Row] = [{"at": "2025-06-01T12:34:56.123456+00:00", "name": "שלום"}, {"at": None, "name": "Hello"}]
    box = show(page, "table", {"at": "timestamptz", "name": "text"}, rows)
    assert box.locator("td").all_inner_texts() == ["2025-06-01 12:34:56", "שלום", "\N{EN DASH}", "Hello"]
    directions = page.evaluate("[...document.querySelectorAll('td.text')].map((td) => getComputedStyle(td).direction)")
    assert directions == ["rtl", "ltr"]


def test_levels_are_told_apart(page: Any) -> None:
    rows = [{"day": day(n), "n": f"99.98{n}"} for n in range(9)]
    box = show(page, "line", {"day": "date", "n": "numeric"}, rows, unit="%")
    levels = box.locator("text.level").all_text_contents()
    assert len(set(levels)) == len(levels) > 2


# ------------------------------------------------------------------------------------------------ pointing


@pytest.mark.parametrize("by", ["mouse", "touch", "keys"])
def test_mouse_touch_and_keys_show_the_same(new_page: New, by: str) -> None:
    page = new_page(has_touch=by == "touch")
    rows = [{"day": day(n), "a": f"{n}.123456789", "b": n} for n in range(30)]
    box = show(page, "line", {"day": "date", "a": "numeric", "b": "int8"}, rows, JUNE)
    chart = box.get_by_role("img").first
    place = chart.bounding_box()
    x, y = place["x"] + place["width"] - 14, place["y"] + 20
    if by == "mouse":
        page.mouse.move(x, y)
    elif by == "touch":
        page.touchscreen.tap(x, y)
    else:
        chart.focus()
        page.keyboard.press("End")
        expect(box.locator("[aria-live]")).to_have_text("Jun 30, 2025: a 29.123456789, b 29")
    assert tooltip(page) == "Jun 30, 2025\na\n29.123456789\nb\n29"
    page.keyboard.press("Escape")
    expect(page.locator(".tip")).to_be_hidden()


def test_a_name_that_is_cut_is_told_in_full_on_hover_and_focus(page: Any) -> None:
    long = "A name that is much longer than a legend has room for, whatever its script"
    rows = [{"day": day(n), "kind": kind, "n": n} for n in range(3) for kind in (long, "b")]
    box = show(page, "line", {"day": "date", "kind": "text", "n": "int8"}, rows)
    entry = box.get_by_role("button", name=long)
    entry.hover()
    assert tooltip(page).replace("\n", " ") == long
    page.mouse.move(890, 690)
    expect(page.locator(".tip")).to_be_hidden()
    entry.focus()
    assert tooltip(page).replace("\n", " ") == long


def test_a_chart_says_its_gist(page: Any) -> None:
    rows = [{"day": day(n), "total": 1000 + n} for n in range(3)]
    box = show(page, "line", {"day": "date", "total": "int8"}, rows, title="Sales", unit="EUR")
    gist = "Sales, line chart, Jun 1, 2025 to Jun 3, 2025. total from €1,000 to €1,002."
    expect(box.get_by_role("img", name=gist)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_a_series_stands_out(new_page: New, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    colours = page.evaluate(
        """['tile', ...Array(8).keys()].map((name) => {
          const mark = document.body.appendChild(document.createElement('p'))
          mark.style.color = `var(--${name === 'tile' ? 'tile' : `s${name}`})`
          return getComputedStyle(mark).color.match(/\\d+/g).map(Number)
        })"""
    )
    tile, *series = (luminance(colour) for colour in colours)
    ratios = [(max(tile, each) + 0.05) / (min(tile, each) + 0.05) for each in series]
    assert min(ratios) >= 3


def luminance(colour: list[int]) -> float:
    """Of WCAG 2, from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
