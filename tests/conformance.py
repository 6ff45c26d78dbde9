"""Hooks for schemathesis: half of what it sends to a route with an id, and half of the SQL, names what exists."""

import os
from typing import Any

import schemathesis

METRICS = os.environ.get("KNOWN_METRICS", "echo").split(",")
QUERIES = (
    "SELECT 1 AS one",
    "SELECT alert_type, COUNT(*) AS alerts FROM metrics GROUP BY alert_type",
    "SELECT :n::int4 AS n",
)


def chosen(text: str, choices: list[str] | tuple[str, ...]) -> str:
    """The text itself, or every second time one of the choices, the same one for the same text."""
    number = sum(text.encode("utf-8", "replace"))
    return choices[number // 2 % len(choices)] if number % 2 else text


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    if isinstance(path_parameters, dict) and isinstance(metric_id := path_parameters.get("id"), str):
        return {**path_parameters, "id": chosen(metric_id, METRICS)}
    return path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(query := body.get("query"), str):
        if (query := chosen(query, QUERIES)) in QUERIES:
            body = {name: value for name, value in body.items() if name != "query_generation_prompt"}
        return {**body, "query": query}
    return body
