"""JSON Schemas of PostgreSQL's types, for the OpenAPI document and for the tools of agents."""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

Schema = dict[str, Any]
TEXT, ANYTHING = Schema(type="string"), Schema()
WRITTEN_AS_TEXT = "DEGINRSTV"  # pg_type.typcategory


class Column(Protocol):
    """What a result names its values by."""

    @property
    def name(self) -> str: ...


class Type(Protocol):
    """What is known of a type."""

    @property
    def name(self) -> str: ...
    @property
    def base(self) -> str: ...
    @property
    def is_array(self) -> bool: ...
    @property
    def category(self) -> str: ...
    @property
    def labels(self) -> list[str]: ...


@functools.cache
def type_schemas() -> dict[str, dict[str, Schema]]:
    """What PostgreSQL's types are when sent as a parameter and, where that differs, when row_to_json writes them."""
    return msgspec.json.decode(Path(__file__).with_name("types.json").read_bytes(), type=dict[str, dict[str, Schema]])


def parameter_schema(kind: Type) -> Schema:
    item = TEXT | {"enum": kind.labels} if kind.labels else type_schemas()["sent"].get(kind.base, TEXT)
    return {"type": "array", "items": item} if kind.is_array else item


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]} if schema else {}


def column_schema(kind: Type) -> Schema:
    """Composites, and types that have a cast to JSON, may be anything."""
    known, other = type_schemas(), TEXT if kind.category in WRITTEN_AS_TEXT else ANYTHING
    item = known["written"].get(kind.base, known["sent"].get(kind.base, other))
    if kind.is_array:
        item = {"type": "array", "items": nullable(item)}
    return nullable(item) | {"description": kind.name}


def client_names(ids: Iterable[str]) -> dict[str, str]:
    """What generated clients call each metric: words in lower case, numbered where two ids come to the same."""
    names, taken = dict[str, str](), {"metric"}
    for metric_id in sorted(ids):
        name = re.sub(r"[^a-z0-9]+", "_", metric_id.lower()).strip("_")
        name = f"metric_{name}" if name[0].isdigit() else name
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names[metric_id] = next(name for name in candidates if name.replace("_", "") not in taken)
        taken.add(names[metric_id].replace("_", ""))
    return names


def record_schema(columns: Sequence[Column], kinds: Sequence[Type]) -> Schema:
    properties = {column.name: column_schema(kind) for column, kind in zip(columns, kinds, strict=True)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
