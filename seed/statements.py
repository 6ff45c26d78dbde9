"""The lexer of SQL: statements with :named parameters, for whoever reads SQL that a person wrote."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from seed.values import split_names

# What a parameter's name must not be looked for in: strings, quoted identifiers, dollar quotes, comments. As for
# PostgreSQL, what is not ASCII is a letter, a carriage return ends a comment, and a string may go on in the next line.
# A colon right behind a value is a slice's or, as in JSON_OBJECT('key':value), a key's.
TOKEN = re.compile(
    r"""
      \b[eE]'(?:[^'\\]++|\\.|'')*+'
      (?:(?:[ \t\f\v]++|--[^\r\n]*+)*+[\r\n](?:[ \t\f\v\r\n]++|--[^\r\n]*+[\r\n])*+'(?:[^'\\]++|\\.|'')*+')*+
    | '[^']*' | (?:[uU]&)?"(?:[^"]|"")*+"
    | (?P<dollars>\$(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*+)?\$).*?(?:(?P=dollars)|\Z)
    | --[^\r\n]*
    | (?P<comment>/\*)
    | [A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*
    | ::|:=
    | (?<![\w\])"'$]):(?P<name>[^\W\d]\w*)
    | (?P<number>\$\d+)
    | \S
    """,
    re.VERBOSE | re.DOTALL,
)
NO_OPERATOR = re.compile(r"[^-+*/<>=~!@#%^&|`?]+")
MAX_COMMENTS = 1000
COMMENT_EDGE = re.compile(r"/\*|\*/")
CHARTS = ("number", "line", "bar", "stacked", "hbar", "table")
HEADER_LINE = re.compile(r"(?i)--[ \t]*(title|description|unit|chart|ttl|roles|tables|param|claim)\b[ \t]*(.*)")


class BadStatement(Exception):
    """SQL that PostgreSQL or this service does not accept; line and column are 1-based."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}" if self.line else self.message


class Statement(NamedTuple):
    """SQL in parts, each with the number of the parameter that it is, from 1 on, or 0; and the parameters' names."""

    parts: tuple[tuple[str, int], ...]
    names: tuple[str, ...]

    def fill(self, write: Callable[[int], str]) -> str:
        """With what is written for the number of each parameter."""
        return "".join(write(number) if number else text for text, number in self.parts)

    def words(self) -> dict[str, str]:
        """What may be a name, as PostgreSQL compares it, or a run of operators, each with how it is written."""
        texts = [text for text, _ in self.parts]
        runs = NO_OPERATOR.split("".join(text if len(text) == 1 else " " for text in texts))
        words = {text.strip('"').replace('""', '"').lower(): text for text in texts if text.strip()}
        words |= {run: run for run in runs if run}
        # Of a name it reads the first 63 bytes.
        return {word.encode()[:63].decode(errors="ignore"): text for word, text in words.items()}

    def place_of(self, number: int) -> tuple[int, int]:
        """The author's line and column of the first place of a parameter."""
        before = "".join(text for text, _ in itertools.takewhile(lambda part: part[1] != number, self.parts))
        return line_and_column(before, len(before))

    def place(self, offset: int) -> tuple[int, int]:
        """The author's line and column of what lies at an offset of the statement with $1, $2 for its parameters."""
        before = 0
        for text, number in self.parts:
            length = len(f"${number}") if number else len(text)
            if offset < length:
                break
            before, offset = before + len(text), offset - length
        return line_and_column("".join(text for text, _ in self.parts), before + offset)


def parse_statement(sql: str) -> Statement:
    """Find the named parameters and drop a trailing semicolon; raises BadStatement."""
    # PostgreSQL would look for the ends of nested ones for seconds, and heed no limit meanwhile.
    if sql.count("/*") > MAX_COMMENTS:
        raise BadStatement(f"more than {MAX_COMMENTS} block comments begin in it")
    parts: list[tuple[str, int]] = []
    names: dict[str, int] = {}
    position = 0
    for token, end in tokens(sql):
        start = token.start()
        if token["number"]:
            raise BadStatement(f"{token[0]} has no name; write :name for a parameter", *line_and_column(sql, start))
        number = names.setdefault(token["name"], len(names) + 1) if token["name"] else 0
        if position < start:
            parts.append((sql[position:start], 0))
        parts.append((sql[start:end], number))
        position = end
    for i in reversed(range(len(parts))):
        text = parts[i][0]
        if text == ";":
            parts[i] = (" ", 0)
        elif text.strip() and not text.startswith(("--", "/*")):
            break
    if (";", 0) in parts:
        before = sum(len(text) for text, _ in parts[: parts.index((";", 0))])
        raise BadStatement("a statement ends here; a metric is one SELECT and no more", *line_and_column(sql, before))
    return Statement((*parts, (sql[position:], 0)), tuple(names))


def tokens(sql: str) -> Iterator[tuple[re.Match[str], int]]:
    """Each token, and where it ends, which of a block comment is found by counting, for PostgreSQL's nest."""
    position = 0
    while token := TOKEN.search(sql, position):
        position, depth = token.end(), 1 if token["comment"] else 0
        while depth and (edge := COMMENT_EDGE.search(sql, position)):
            position = edge.end()
            depth += 1 if edge[0] == "/*" else -1
        position = len(sql) if depth else position
        yield token, position


def first_line(sql: str) -> int:
    """Where the statement begins, after its header."""
    start = next((token.start() for token, _ in tokens(sql) if not token[0].startswith(("--", "/*"))), 0)
    return line_and_column(sql, start)[0]


def line_and_column(sql: str, offset: int) -> tuple[int, int]:
    return sql.count("\n", 0, offset) + 1, offset - sql.rfind("\n", 0, offset)


def read_header(sql: str) -> tuple[dict[str, Any], list[str]]:
    """What the comments before the first line of SQL say of a metric, as its fields, and what is wrong with them."""
    fields: dict[str, Any] = {"claims": {}, "descriptions": {}, "required": frozenset()}
    warnings: list[str] = []
    for token, _ in tokens(sql):
        if not token[0].startswith(("--", "/*")):
            break
        if line := HEADER_LINE.match(token[0]):
            warnings += read_header_line(fields, line[1].lower(), line[2].strip())
    return fields, warnings


def read_header_line(fields: dict[str, Any], key: str, rest: str) -> Iterator[str]:
    """Take one line into the fields and yield what is wrong with it."""
    subject, _, value = (part.strip() for part in rest.partition(":"))
    match key:
        case "param":
            name = subject.removesuffix("(required)").strip()
            fields["descriptions"][name] = value
            fields["required"] |= {name} if name != subject else set()
        case "claim":
            fields["claims"][subject] = value
        case _ if subject:
            return
        case "roles":
            fields["roles"] = frozenset(split_names(value))
        case "tables":
            fields["reads"] = tuple(split_names(value))
        case "ttl" if not re.fullmatch(r"\d{1,8}", value):
            yield f"ttl must be a number of seconds, not {value!r}"
        case "ttl":
            fields["ttl"] = float(value)
        case "chart" if value not in CHARTS:
            yield f"chart must be one of {', '.join(CHARTS)}, not {value!r}"
        case _:
            fields[key] = value
