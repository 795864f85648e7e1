"""Content of docs/messages.md: programs, an example, and the tables generated from `vision.messaging.schema`.

python -m tests.messages.documents    updates the tables and docs/schemas/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec

from tests.messages.processes import REPOSITORY
from vision.messaging.replay_schema import ReplayReply, ReplayRequest
from vision.messaging.schema import AnyMessage, schema_of

PAGE = REPOSITORY / "docs" / "messages.md"
SCHEMAS = REPOSITORY / "docs" / "schemas"

_BLOCK = r"<!-- {mark} -->\n```\w+\n(?P<code>.*?)^```$"
_FIELDS = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- end -->)", re.DOTALL)
_REPLAY = re.compile(r"(?<=<!-- requests -->\n).*?(?=<!-- end of requests -->)", re.DOTALL)
_HEAD = ("schema", "node", "instance", "boot", "seq")


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every message, by file name in docs/schemas/."""
    messages = (*get_args(AnyMessage), ReplayRequest, ReplayReply)
    return {
        f"{schema_of(message).removeprefix('vision.').replace('/', '-')}.json": msgspec.json.schema(message)
        for message in messages
    }


def program(name: str) -> str:
    """Return the code block that docs/messages.md marks with `name`."""
    return _code(f"program: {re.escape(name)}")


def example() -> Any:
    """Return the message that docs/messages.md shows."""
    return json.loads(_code("example"))


def _code(mark: str) -> str:
    match = re.search(_BLOCK.format(mark=mark), PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert match is not None, f"docs/messages.md has no block marked {mark!r}"
    return match["code"]


def fields_on_page() -> str:
    """Return the field tables of docs/messages.md."""
    match = _FIELDS.search(PAGE.read_text())
    assert match is not None, "docs/messages.md has no marks for the tables"
    return match[0]


def fields_expected() -> str:
    """Return the field tables that docs/messages.md must contain: one for each message and type of nested object."""
    schemas = {name: schema["$defs"] for name, schema in json_schemas().items()}
    detections, events = schemas["detections-1.json"], schemas["events-1.json"]
    camera, node = schemas["camera-status-1.json"], schemas["node-status-1.json"]
    counts, objects = schemas["counts-1.json"], schemas["objects-1.json"]
    schema = {"type": "string", "description": "kind and version of the message"}
    properties = detections["DetectionsMessage"]["properties"] | {"schema": schema}
    head = {"properties": {name: properties[name] for name in _HEAD}, "required": list(_HEAD)}
    tables = {
        "Every message": head,
        "`detections/<camera>`": detections["DetectionsMessage"],
        "Each of its `objects`": detections["DetectedObject"],
        "Each of their `attributes`": detections["AttributeOfObject"],
        "Their `mask`": detections["MaskOfObject"],
        "Its `timing_ms`": detections["StageTimes"],
        "`events/<camera>`": events["EventMessage"],
        "`counts/<camera>`": counts["CountsMessage"],
        "Each of its `lines`": counts["LineCounts"],
        "Each of its `zones`": counts["ZoneCounts"],
        "`objects/<camera>`": objects["ObjectMessage"],
        "Each of its `lines`, the crossings of one object": objects["LineCrossing"],
        "Each of its `zones`, the stays of one object": objects["ZoneVisit"],
        "`status/<camera>`": camera["CameraStatusMessage"],
        "`status/node`": node["NodeStatusMessage"],
        "Each of its `latency_ms`, and `latency_ms` of a camera": node["LatencyPercentiles"],
        "Its `detector`": node["DetectorStatus"],
        "Each of its `sinks`": node["SinkStatus"],
        "Each of its `disks`": node["DiskStatus"],
    }
    return "\n".join(_table(title, schema, () if schema is head else _HEAD) for title, schema in tables.items()) + "\n"


def replay_on_page() -> str:
    """Return the tables of the replay protocol in docs/messages.md."""
    match = _REPLAY.search(PAGE.read_text())
    assert match is not None, "docs/messages.md has no marks for the tables of requests and answers"
    return match[0]


def replay_expected() -> str:
    """Return the tables of the replay protocol that docs/messages.md must contain."""
    schemas = {name: schema["$defs"] for name, schema in json_schemas().items()}
    tables = {
        "Request": schemas["replay-request-1.json"]["ReplayRequest"],
        "First part of the reply": schemas["replay-reply-1.json"]["ReplayReply"],
    }
    return "\n".join(_table(title, schema, ("schema",)) for title, schema in tables.items()) + "\n"


def _table(title: str, schema: Mapping[str, Any], left_out: Sequence[str]) -> str:
    rows = [f"\n**{title}**\n", "| field | type | meaning |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        if name not in left_out:
            optional = "" if name in schema.get("required", ()) else ", optional"
            rows.append(f"| `{name}` | {_type(field)}{optional} | {field['description']} |")
    return "\n".join(rows)


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} numbers"
    if field.get("type") == "array":
        return f"list of {_several(field['items'])}"
    inner = field.get("additionalProperties", {})
    return f"object of {_type(inner)}s" if inner else field.get("type", "object")


def _several(items: Mapping[str, Any]) -> str:
    """Return the type of the items of a list as a word in the plural."""
    if "$ref" in items:
        return "objects"
    inner = _type(items)
    return inner.replace("list ", "lists ", 1) if inner.startswith("list ") else f"{inner}s"


def write() -> None:
    """Update the tables and the schemas from `vision.messaging.schema`."""
    page = _FIELDS.sub(lambda _: fields_expected(), PAGE.read_text())
    PAGE.write_text(_REPLAY.sub(lambda _: replay_expected(), page))
    SCHEMAS.mkdir(exist_ok=True)
    for name, schema in json_schemas().items():
        (SCHEMAS / name).write_text(schema_text(schema))


def schema_text(schema: Mapping[str, Any]) -> str:
    """Return the text of a file in docs/schemas/."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write()
