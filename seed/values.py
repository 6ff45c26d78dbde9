"""What a text must be to be a value of a type of PostgreSQL's, and the one text that all ways to write it come to."""

import functools
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from datetime import time as clock_time
from typing import Protocol

import msgspec

INTEGERS = {"int2": (-(2**15), 2**15 - 1), "int4": (-(2**31), 2**31 - 1), "int8": (-(2**63), 2**63 - 1)}
INTEGERS |= {"oid": (0, 2**32 - 1)}
TEXTS = frozenset({"text", "varchar", "bpchar", "name", "citext", "char"})
INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
DURATION = re.compile(r"[+-]?P(?=.)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+([.,]\d{1,6})?S)?)?", re.ASCII)
DATETIME = re.compile(r"\d{4}-?(\d\d-?\d\d|W\d\d(-?\d)?)([T ].+)?", re.ASCII)
UUID = re.compile(r"[0-9a-fA-F]{8}(-?)([0-9a-fA-F]{4}\1){3}[0-9a-fA-F]{12}", re.ASCII)
BOOLEANS = dict.fromkeys(("true", "t", "1", "yes", "on"), "true")
BOOLEANS |= dict.fromkeys(("false", "f", "0", "no", "off"), "false")
# Behind a time, and so not the blank between a date and a time.
BLANK_OFFSET = dict.fromkeys(("timestamp", "timestamptz"), r"([Tt ]\d\d\S*) (\d\d(?::?\d\d)?)$")
BLANK_OFFSET["timetz"] = r"^(\s*\d\d\S*) (\d\d(?::?\d\d)?)$"
# What a terminal obeys, or shows in another order than it is written in.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ARRAY_ITEM = re.compile(r'\s*+(?:"((?:[^"\\]++|\\.)*+)"\s*+|([^{},"\\]++))(,|$)', re.DOTALL)


def matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError
    return text


def parse_integer(low: int, high: int, text: str) -> str:
    number = int(matching(INTEGER, text))
    if not low <= number <= high:
        raise ValueError
    return str(number)


def parse_datetime(text: str) -> datetime:
    """An offset is taken into account, for a timestamp without one too: the session's time zone is UTC."""
    # Python takes any character between date and time.
    moment = datetime.fromisoformat(matching(DATETIME, text.upper()))
    return moment if moment.tzinfo is None else moment.astimezone(UTC)


# What makes the canonical text of a value, and what the value must be.
PARSERS: dict[str, tuple[Callable[[str], str], str]] = {
    **{
        name: (functools.partial(parse_integer, low, high), f"a whole number from {low} to {high}")
        for name, (low, high) in INTEGERS.items()
    },
    **dict.fromkeys(("numeric", "float4", "float8"), (functools.partial(matching, DECIMAL), "a number such as 12.5")),
    "bool": (lambda text: BOOLEANS[text.lower()], "true or false"),
    "date": (lambda text: date.fromisoformat(text).isoformat(), "a date in ISO 8601, such as 2025-06-30"),
    "timestamp": (lambda text: parse_datetime(text).isoformat(), "a time in ISO 8601, such as 2025-06-30T12:00:00"),
    "timestamptz": (lambda text: parse_datetime(text).isoformat(), "a time in ISO 8601, such as 2025-06-30T12:00:00Z"),
    "time": (lambda text: clock_time.fromisoformat(text).isoformat(), "a time in ISO 8601, such as 12:00:00"),
    "timetz": (lambda text: clock_time.fromisoformat(text).isoformat(), "a time in ISO 8601, such as 12:00:00Z"),
    "interval": (functools.partial(matching, DURATION), "an ISO 8601 duration, such as P7D or PT12H"),
    "uuid": (lambda text: str(uuid.UUID(matching(UUID, text))), "a UUID"),
    **dict.fromkeys(
        ("json", "jsonb"), (lambda text: bytes(msgspec.json.decode(text, type=msgspec.Raw)).decode(), "JSON")
    ),
}


def parse_scalar(text: str, base: str) -> str | None:
    """The canonical text of one value, None for NULL; raises ValueError with what it must be."""
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    if base in TEXTS:
        return text
    parse, wanted = PARSERS.get(base, (str, ""))  # other types are PostgreSQL's to judge
    try:
        return parse(text.strip()) if text.strip() else None
    except (ValueError, LookupError, OverflowError, RecursionError):
        raise ValueError(f"must be {wanted}") from None


def with_plus(text: str, base: str) -> str:
    """A moment from a URL, in which the plus before its offset may have become a blank."""
    return re.sub(BLANK_OFFSET[base], r"\1+\2", text.rstrip()) if base in BLANK_OFFSET else text


class Type(Protocol):
    """The built-in type that values look like."""

    @property
    def base(self) -> str: ...
    @property
    def is_array(self) -> bool: ...


def parse_items(items: Iterable[str | None], kind: Type) -> str | None:
    """The text of a value, which is an array's literal or the only item; raises ValueError with what it must be."""
    values = [item if item is None else parse_scalar(with_plus(item, kind.base), kind.base) for item in items]
    if not kind.is_array:
        return values[0]
    escaped = (value and value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join("NULL" if value is None else f'"{value}"' for value in escaped) + "}"


def sent(texts: list[str], kind: Type) -> str | None:
    """A value from a query string, where an array is its name repeated, or one literal; raises ValueError."""
    if kind.is_array and texts == [""]:
        return None
    if kind.is_array and len(texts) == 1 and texts[0].startswith("{") and texts[0].endswith("}"):
        return parse_items(split_array(texts[0][1:-1]), kind)
    if len(texts) > 1 and not kind.is_array:
        raise ValueError("is given more than once")
    return parse_items(texts, kind)


def split_array(text: str) -> Iterator[str | None]:
    """The items of a one-dimensional array literal without its braces; raises ValueError."""
    position, delimiter = 0, "," if text.strip() else ""
    while delimiter:
        item = ARRAY_ITEM.match(text, position)
        if not item or not (item[1] is not None or item[2].strip()):
            raise ValueError("must be an array such as {a,b}, or its name repeated")
        position, delimiter = item.end(), item[3]
        if item[1] is not None:
            yield re.sub(r"\\(.)", r"\1", item[1], flags=re.DOTALL)
        else:
            yield None if item[2].strip().upper() == "NULL" else item[2].strip()


def split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def printable(text: str) -> str:
    """For a terminal, which half a surrogate pair could not be printed on either."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text).encode(errors="backslashreplace").decode()
