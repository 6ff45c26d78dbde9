"""The built-in mock of a model: reads a prompt and writes the SELECT, without a network."""

import re
import unicodedata
from calendar import month_name, monthrange
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

MONTHS = [name.lower() for name in month_name[1:]]
MONTH = f"(?:{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)}|sept)"
YEAR, DAY = "(?:19|20)[0-9]{2}", "[0-9]{1,2}(?:st|nd|rd|th)?"
POINT = rf"{YEAR}-[0-9]{{1,2}}(?:-[0-9]{{1,2}})?|(?:{DAY} (?:of )?)?{MONTH}(?: {DAY}(?![0-9]))?(?:,? {YEAR})?|{YEAR}"
TO = r"(?: (?:to|and|until|till|through|up to) (?:the )?| ?[-\u2013/] ?|\.\.)"
EDGE = "since|from|starting|until|till|up to|to|after|before"
NAMED_PERIOD = re.compile(
    rf"(?<![\w-])(?:({EDGE}|between|in|for|during|on|of|year) (?:the )?(?:year )?)?({POINT})(?:{TO}({POINT}))?(?![\w-])"
)
# "1 to 15 june" lacks a month, and so does "june 1 to 15".
FIRST_DAY = re.compile(rf"(?<![\w-])({MONTH} )?({DAY})({TO}{DAY} (?:of )?({MONTH}))(?![\w-])")
LAST_DAY = re.compile(rf"(?<![\w-])({MONTH})( {DAY}{TO})({DAY})(?![\w-]| (?:of )?{MONTH})")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)} | {"thirty": 30, "sixty": 60, "ninety": 90}
COUNT = f"[0-9]+|{'|'.join(NUMBERS)}"
RECENT_PERIOD = re.compile(
    rf"\b(last|past|previous|this) (?:({COUNT}) )?(day|week|month|year)s?\b|\b(?:({EDGE}) )?(today|yesterday)\b"
)
UNREAD_PERIOD = re.compile(
    r"\b(?:last|past|previous|next|first|second|third) (?:\w+ )?(?:day|week|month|half)"
    rf"|\b(?:hour|quarter|year|q[1-4]\b|ago\b)|/{YEAR}"
)
UNIT_DAYS, MAX_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}, 36500
LAST_DAYS = "CURRENT_DATE - COALESCE(:day_range, {})"
GIVEN_DAYS = "CURRENT_DATE - CAST(:day_range AS int)"
ANY_START, ANY_END = f"{GIVEN_DAYS}, DATE '-infinity'", "DATE 'infinity'"
GRAMMAR = {
    ("column", "obsolescence_val"): "obsolescence val|obsolescence value",
    ("column", "obsolescence"): "obsolescence|cost avoided|cost avoidance",
    ("column", "parts_flagged"): "parts flagged|flagged parts|parts were flagged",
    ("function", "COUNT"): "how many|count|number of",
    ("function", "AVG"): "average|mean|avg",
    ("function", "MAX"): "maximum|max|highest",
    ("function", "MIN"): "minimum|min|lowest",
    ("function", "SUM"): "sum|total",
    ("alert", ""): "alert",
    ("negation", ""): "not|never|non|except|excluding|without|other than",
    ("by", ""): "by|per|each|every|daily|weekly|monthly",
    ("group", "day"): "day|date|daily",
    ("group", "week"): "week|weekly",
    ("group", "month"): "month|monthly",
    ("group", "alert_type"): "type|alert type",
    ("group", "alert_category"): "category|alert category",
}
MEASURES = {"AVG": "average", "MAX": "maximum", "MIN": "minimum", "SUM": "total"}
GROUPS = {unit: f"CAST(date_trunc('{unit}', date) AS date) AS {unit}" for unit in ("day", "week", "month")}
RECORD_COLUMNS = ["obsolescence_val", "obsolescence", "parts_flagged", "alert_type", "alert_category"]
VALUE_COLUMNS = {"type": "alert_type", "category": "alert_category"}
PARTICLES = frozenset(["a", "an", "and", "for", "in", "is", "of", "on", "or", "the", "then", "to", "with"])
# What a prompt may say without meaning more.
FILLER = re.compile(
    "a|all|an|and|any|are|as|at|be|been|between|by|chart|count|data|did|display|do|during|each|every|for|from"
    "|get|give|had|has|have|i|in|is|it|its|kpi|list|many|me|metric|metrics|number|of|on|or|our|over|please"
    "|record|records|report|see|show|starting|table|that|the|then|there|these|this|those|to|until|up|us|want"
    "|was|we|were|what|which|who|with|within"
)
MAX_PHRASE = 12  # words
MAX_NOTED = 20  # words
UNREADABLE = "The prompt is not read; these are the metric's own records of the last 30 days."
Meaning = tuple[str, str]  # kind and name, a key of GRAMMAR, or column and value


class Written(NamedTuple):
    """The SELECT, and what of the prompt it does not heed."""

    sql: str
    notes: list[str]


def days_of(point: str, year: int) -> tuple[date, date]:
    """First and last day of a year, a month or a day, in figures or words; raises ValueError."""
    numbers = [int(number) for number in re.findall("[0-9]+", point)]
    year = next((number for number in numbers if number > 99), year)
    parts = [number for number in numbers if number <= 99]
    if name := re.search("[a-z]{3}", point):
        parts.insert(0, [month[:3] for month in MONTHS].index(name[0]) + 1)
    if not parts:
        return date(year, 1, 1), date(year, 12, 31)
    first, last = (parts[1], parts[1]) if len(parts) > 1 else (1, monthrange(year, parts[0])[1])
    return date(year, parts[0], first), date(year, parts[0], last)


def bounded(word: str, start: str, end: str) -> tuple[str, str]:
    """From the day start to the day end, or what a word such as since or before makes of them."""
    if word in ("until", "till", "up to", "to", "before"):
        return ANY_START, f"{start} - 1" if word == "before" else end
    if word in ("since", "from", "starting", "after"):
        return f"{end} + 1" if word == "after" else start, ANY_END
    return start, end


def named_period(word: str, first: str, last: str) -> tuple[str, str]:
    today = datetime.now(UTC).date()
    years = [int(year) for year in re.findall(YEAR, f"{first} {last}")]
    # A month without a year is the latest one that has begun.
    year = years[-1] if years else today.year - (days_of(first, today.year)[0] > today)
    start, end = days_of(first, year)[0], days_of(last or first, year)[1]
    if start > end and len(years) < 2:  # over the turn of the year
        start, end = days_of(first, year - bool(years))[0], days_of(last, year + (not years))[1]
    if start > end:
        raise ValueError("the period ends before it starts")
    return bounded("" if last else word, f"DATE '{start}'", f"DATE '{end}'")


def recent_period(word: str, count: str, unit: str, edge: str, day: str) -> tuple[str, str]:
    if day:
        at = "CURRENT_DATE" if day == "today" else "CURRENT_DATE - 1"
        return bounded(edge, at, at)
    if not count and (word == "this" or (word != "past" and unit in ("month", "year"))):
        first, after = (0, 1) if word == "this" else (-1, 0)
        start = f"CAST(date_trunc('{unit}', CURRENT_DATE) + INTERVAL '{{}} {unit}' AS date)"
        return start.format(first), start.format(after) + " - 1"
    number = min(NUMBERS.get(count) or int(count[:9] or 1), MAX_DAYS // UNIT_DAYS[unit])
    if unit in ("day", "week"):
        return LAST_DAYS.format(number * UNIT_DAYS[unit]), ANY_END
    return f"{GIVEN_DAYS}, CAST(CURRENT_DATE - INTERVAL '{number} {unit}' AS date)", ANY_END


def next_period(text: str) -> tuple[tuple[str, str], str] | None:
    for found in NAMED_PERIOD.finditer(text):
        word, first, last = found.groups(default="")
        if word or last or re.search(f"[a-z].*{YEAR}|{YEAR}-", first):
            return named_period(word, first, last), text[: found.start()] + text[found.end() :]
    if recent := RECENT_PERIOD.search(text):
        return recent_period(*recent.groups(default="")), text[: recent.start()] + text[recent.end() :]
    return None


def split_period(text: str) -> tuple[tuple[str, str] | None, str]:
    """The first and last day as SQL, if the text names a period, and the text without it.

    Raises ValueError for a period that is not read: better the records than a wrong figure.
    """
    text = FIRST_DAY.sub(lambda found: found[0] if found[1] else f"{found[2]} {found[4]}{found[3]}", text)
    text = LAST_DAY.sub(r"\1\2\1 \3", text)
    starts: list[str] = []
    ends: list[str] = []
    while (found := next_period(text)) and len(starts + ends) < 3:
        (start, end), text = found
        starts += [start] if start != ANY_START else []
        ends += [end] if end != ANY_END else []
    if len(starts) > 1 or len(ends) > 1 or UNREAD_PERIOD.search(text):
        raise ValueError("the period is not read")
    return ((starts or [ANY_START])[0], (ends or [ANY_END])[0]) if starts or ends else None, text


def plain(text: str) -> str:
    return re.sub("n['\u2019]t\\b", " not", " ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+|[+#%]", text)


def stem(word: str) -> str:
    """The word without its inflection: 'needing' and 'needs' are 'need', 'categories' is as 'category'."""
    if re.search("(?:[^aeiou]y|ies|ied)$", word):
        return re.sub("(?:y|ies|ied)$", "i", word)
    return re.sub(r"(?<=\w{3})(?:ings?|ed|es|(?<!s)s|e)$", "", word)


def lexicon(types: Sequence[str], categories: Sequence[str]) -> dict[tuple[str, ...], list[Meaning]]:
    phrases = [(meaning, phrase) for meaning, spoken in GRAMMAR.items() for phrase in spoken.split("|")]
    for column, values in (("alert_type", types), ("alert_category", categories)):
        phrases += [((column, value), plain(value)) for value in values]
    known = defaultdict(list)
    for meaning, phrase in phrases:
        known[tuple(map(stem, words_of(phrase)))].append(meaning)
    return known


def meant(meanings: list[Meaning], said: list[str], before: str) -> list[Meaning]:
    """Right after 'type' or 'category' a value of the data; elsewhere grammar first, and no particles."""
    grammar = [meaning for meaning in meanings if meaning in GRAMMAR]
    values = [meaning for meaning in meanings if meaning not in GRAMMAR]
    if not values or (before not in VALUE_COLUMNS and (grammar or PARTICLES.issuperset(said))):
        return grammar
    values = [meaning for meaning in values if meaning[0] == VALUE_COLUMNS.get(before)] or values
    values = [meaning for meaning in values if words_of(plain(meaning[1])) == said] or values
    return [meaning for meaning in values if meaning[0] == values[0][0]]


def read_words(words: list[str], known: dict[tuple[str, ...], list[Meaning]]) -> tuple[dict[str, list[str]], list[str]]:
    """What the words name, by kind: columns, functions, groups and values of the data; and those that name nothing."""
    named: dict[str, list[str]] = defaultdict(list)
    unread: list[str] = []
    stems, at, before, grouping = [stem(word) for word in words], 0, "", False
    while at < len(words):
        size = next((size for size in range(MAX_PHRASE, 0, -1) if tuple(stems[at : at + size]) in known), 0)
        said = words[at : at + (size or 1)]
        meanings = meant(known[tuple(stems[at : at + size])], said, before) if size else []
        kind = meanings[0][0] if meanings else ""
        grouping = kind == "by" or (grouping and (kind == "group" or said[0] in ("and", "then", "the")))
        for name, value in meanings if grouping or kind != "group" else []:
            named[name].append(value)
        if not meanings or kind == "negation" or (kind == "group" and not grouping and said[-1] not in VALUE_COLUMNS):
            unread += said
        at, before = at + len(said), said[-1]
    return {kind: list(dict.fromkeys(values)) for kind, values in named.items()}, unread


def quoted(value: str) -> str:
    """A literal that reads the same whether or not standard_conforming_strings is on."""
    text = value.replace("'", "''")
    return "E'" + text.replace("\\", "\\\\") + "'" if "\\" in text else f"'{text}'"


def measures(named: dict[str, list[str]]) -> list[str]:
    functions, groups, columns = (named.get(kind, []) for kind in ("function", "group", "column"))
    if columns:
        chosen = [function for function in functions if function != "COUNT"] or ["SUM"] * bool(functions or groups)
        return [f"{function}({column}) AS {MEASURES[function]}_{column}" for column in columns for function in chosen]
    if functions or groups or "alert" in named:
        counted = "alerts" if named.keys() & {"alert", "alert_type", "alert_category"} else "records"
        return [f"COUNT(*) AS total_{counted}"]
    return []


def conditions(named: dict[str, list[str]]) -> list[str]:
    listed = {column: ", ".join(map(quoted, named[column])) for column in VALUE_COLUMNS.values() if column in named}
    filters = [f"{column} IN ({values})" for column, values in listed.items()]
    columns, groups = named.get("column", []), named.get("group", [])
    grouped = [name for name in groups if name.startswith("alert_") and name not in listed]
    if "alert" in named and not (columns or filters or grouped):
        grouped = ["alert_type"]
    if columns and not measures(named):
        filled = " OR ".join(f"{column} IS NOT NULL" for column in columns)
        filters.append(f"({filled})" if len(columns) > 1 else filled)
    return filters + [f"{name} IS NOT NULL" for name in grouped]


def readable(named: dict[str, list[str]], dated: bool) -> bool:
    """An average of nothing, or of all but something, is not read: better the records than a wrong figure."""
    filtered, functions = named.keys() & {"alert_type", "alert_category"}, set(named.get("function", []))
    if ("negation" in named and filtered) or ("column" not in named and functions - {"COUNT", "SUM"}):
        return False
    return bool(dated or filtered or "COUNT" in functions or named.keys() & {"column", "group", "alert"})


def unused(words: list[str]) -> list[str]:
    """What a note says of words that had no effect; none when they are such as say nothing."""
    named = [word for word in dict.fromkeys(words) if not FILLER.fullmatch(word)]
    more = f" and {len(named) - MAX_NOTED} more" if len(named) > MAX_NOTED else ""
    return [f"Not used: {', '.join(word[:40] for word in named[:MAX_NOTED])}{more}."] if named else []


def mock_sql(prompt: str, metric_id: str, types: Sequence[str], categories: Sequence[str]) -> Written:
    """The SELECT for a prompt; nothing of its text gets in but values that the data have, dates and numbers of days."""
    try:
        period, text = split_period(plain(prompt))
    except ValueError:
        period, text = None, ""
    named, unread = read_words(words_of(text), lexicon(types, categories))
    where, notes = conditions(named), unused(unread)
    if not readable(named, dated=period is not None):
        named, period, where = {}, (LAST_DAYS.format(30), ANY_END), [f"id = {quoted(metric_id)}"]
        notes = [UNREADABLE, *unused(words_of(plain(prompt)))]
    start, end = period or (ANY_START, ANY_END)
    where += [f"date >= COALESCE(:start_date, {start})", f"date < COALESCE(:end_date, {end}) + 1"]
    groups, measured = named.get("group", []), measures(named)
    if measured:
        selected = [GROUPS.get(name, name) for name in groups] + measured
    else:
        selected = ["date", *named["column"]] if "column" in named else RECORD_COLUMNS
    columns, filters, grouped = ",\n    ".join(selected), "\nAND ".join(where), ", ".join(groups)
    sql = f"SELECT\n    {columns}\nFROM metrics\nWHERE {filters}"
    if groups:
        sql = f"{sql}\nGROUP BY {grouped}\nORDER BY {grouped}"
    elif not measured:
        sql = f"{sql}\nORDER BY date, id, metric_id"
    return Written(sql, notes)
