"""The JSON Schemas of camera.yaml and model.yaml, for editors and for error messages about expected values."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any, Final, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from vision.config.app import AppConfig
from vision.config.fields import ConfigSection
from vision.config.model_spec import ClassifierSpec, ModelSpec
from vision.config.wording import Loc, one_of

Schema: TypeAlias = Mapping[str, Any]


class _WithoutTitles(GenerateJsonSchema):
    """Generator of schemas that keeps explicit titles, which describe patterns, and does not generate other titles."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of camera.yaml, with a description of every key."""
    return {"$schema": _DRAFT, "title": "camera.yaml", **deepcopy(dict(schema_of(AppConfig)))}


def model_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of model.yaml, for detection models and classifiers."""
    kinds = [deepcopy(dict(schema_of(model))) for model in (ModelSpec, ClassifierSpec)]
    definitions = {name: value for kind in kinds for name, value in kind.pop("$defs").items()}
    return {"$schema": _DRAFT, "title": "model.yaml", "anyOf": kinds, "$defs": definitions}


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """Return the JSON Schema of a section and the sections inside it. Do not change the result, which is cached."""
    schema = model.model_json_schema(schema_generator=_WithoutTitles)
    by_name = {section.__name__: section for section in sections(ConfigSection)}
    for name, definition in [(model.__name__, schema), *schema.get("$defs", {}).items()]:
        definition.pop("title", None)
        for key, text in _descriptions(by_name[name]).items():
            described = {"description": text} | definition["properties"][key]
            definition["properties"][key] = dict(sorted(described.items()))
        for described in (definition, *definition["properties"].values()):
            if "description" in described:
                described["description"] = " ".join(described["description"].split())
    return schema


def sections(base: type[ConfigSection]) -> Iterator[type[ConfigSection]]:
    """Yield all imported subclasses of a section."""
    for section in base.__subclasses__():
        yield section
        yield from sections(section)


def _descriptions(section: type[ConfigSection]) -> dict[str, str]:
    """Return the docstring of each key, without pydantic, which would read the source of all sections at each start."""
    found = {}
    for base in reversed(section.__mro__[: section.__mro__.index(ConfigSection)]):
        for key, text in pairwise(_bodies(base.__module__).get(base.__name__, ())):
            match key, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[section.model_fields[name].alias or name] = words
    return found


@cache
def _bodies(module: str) -> Mapping[str, Sequence[ast.stmt]]:
    """Return the statements of each class of a module, or nothing if the program is installed without its source."""
    try:
        source = inspect.getsource(sys.modules[module])
    except OSError:
        return {}
    return {node.name: node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def schema_at(root: Schema, loc: Loc) -> Schema:
    """Return the part of the schema that describes the value at `loc`, with references resolved.

    If no part describes the value, return an empty schema.
    """
    part_schema = resolve(root, root)
    for part in loc:
        part_schema = resolve(root, _step(root, part_schema, part))
    return part_schema


def resolve(root: Schema, schema: Schema) -> Schema:
    """Return `schema` with its ``$ref`` replaced by the target in `root`.

    Also replace an ``anyOf`` with its first branch that is not null.
    """
    if "anyOf" in schema:
        target = next(branch for branch in schema["anyOf"] if branch.get("type") != "null")
    elif "$ref" in schema:
        target = root["$defs"][schema["$ref"].rpartition("/")[2]]
    else:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "$ref")}
    return resolve(root, {**target, **rest})


def properties_of(root: Schema, schema: Schema) -> Schema:
    """Return the keys of a section, with their schemas. A ``oneOf`` has the keys of its first branch with keys.

    The result is empty if the value is not a section, or has only keys that the user chooses.
    """
    branches = [schema, *(resolve(root, branch) for branch in schema.get("oneOf", ()))]
    return next((dict(branch["properties"]) for branch in branches if "properties" in branch), {})


def _step(root: Schema, schema: Schema, part: int | str) -> Schema:
    if isinstance(part, str):
        properties = properties_of(root, schema)
        return dict(properties[part]) if part in properties else _named_by_user(schema)
    for branch in [schema, *schema.get("oneOf", [])]:
        entries = branch.get("prefixItems", [])
        if part < len(entries):
            return dict(entries[part])
        if "items" in branch:
            return dict(branch["items"])
    return {}


def _named_by_user(schema: Schema) -> Schema:
    """Return the schema of the values of a mapping whose keys the user chooses, such as camera ids.

    Return an empty schema if `schema` does not describe such a mapping.
    """
    free = schema.get("additionalProperties")
    return next(iter(schema.get("patternProperties", {}).values()), free if isinstance(free, Mapping) else {})


def key_paths(root: Schema, schema: Schema | None = None, base: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Yield the path of every key, such as ``analytics.*.lines[].name``, its schema, and True if it is required."""
    schema = resolve(root, root if schema is None else schema)
    for key, value in schema.get("properties", {}).items():
        path = f"{base}.{key}" if base else key
        yield path, value, key in schema.get("required", ())
        yield from key_paths(root, value, path)
    if named := _named_by_user(schema):
        yield from key_paths(root, named, f"{base}.*")
    if isinstance(schema.get("items"), Mapping):
        yield from key_paths(root, schema["items"], f"{base}[]")


# --- descriptions of values -------------------------------------------------------------------------------------------


def expectation(root: Schema, schema: Schema) -> str:
    """Return a description of the valid values, such as ``a whole number from 1 to 256``."""
    schema = resolve(root, schema)
    if "oneOf" in schema:
        return " or ".join(expectation(root, branch) for branch in schema["oneOf"])
    if "const" in schema or "enum" in schema:
        return one_of([f"'{choice}'" for choice in schema.get("enum", [schema.get("const")])])
    kind = schema.get("type")
    if kind == "array":
        return _list_expectation(root, schema)
    if kind == "string":
        return str(schema.get("title", "text"))
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(schema)
    return {"boolean": "true or false", "object": "keys and values"}.get(str(kind), "nothing")


def _bounds(schema: Schema) -> str:
    low, above, high = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
    text = f" from {low:.15g}" if low is not None else f" above {above:.15g}" if above is not None else ""
    if high is not None:
        text += f" to {high:.15g}" if low is not None else f" up to {high:.15g}"
    return text


def _list_expectation(root: Schema, schema: Schema) -> str:
    low, high = schema.get("minItems"), schema.get("maxItems")
    if low is not None and high is not None:
        count = f"{low} " if low == high else f"{low} to {high} "
    else:
        count = f"at least {low} " if low is not None else f"at most {high} " if high is not None else ""
    entry = resolve(root, next(iter(schema.get("prefixItems", [])), schema.get("items", {})))
    return f"a list of {count}{_entries(root, entry, plural=not count.endswith(' 1 '))}"


def _entries(root: Schema, entry: Schema, *, plural: bool) -> str:
    if entry.get("type") in ("integer", "number"):
        return expectation(root, entry).removeprefix("a ").replace("number", "numbers", 1)
    if entry.get("type") == "string":
        return "names" if plural else "name"
    return str(entry.get("title") or ("entries" if plural else "entry"))
