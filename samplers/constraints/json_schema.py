"""JsonSchema: the JSON texts that a small schema describes, as a regular expression."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, did_you_mean
from .regex import Regex

if TYPE_CHECKING:
    from ..denoiser import TextTokenizer

__all__ = ["JsonSchema"]

CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})'
INTEGER = r"-?(?:0|[1-9][0-9]*)"
NUMBER = INTEGER + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
SEPARATOR, COLON = ", ", ": "  # as json.dumps writes them
IGNORED = {"title", "description", "default", "examples", "$schema", "$id", "$comment"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
}


class JsonSchema(Regex):
    """The JSON texts that a schema describes, in the spaces that json.dumps puts: ", " and ": ", and no others.

    Supported are

    - objects with all their `properties`, in the order in which the schema has them. `required` may be left out, or name them
      all; `additionalProperties` may be false. A nested object or array may stand wherever a value may.
    - strings with `minLength` and `maxLength`, or a `pattern`: the whole string matches it (in JSON Schema: a part), and it may
      not match what JSON writes with a backslash.
    - integers, numbers, booleans and null; arrays with `items`, `minItems` and `maxItems`.
    - `enum` and `const`, of any values; `anyOf` and `oneOf`, which mean the same here: a text of any of the schemas.

    Everything else is an error. Numbers may be written with any count of digits; the row's length bounds it.

    Args:
        schema: the schema, or its JSON text.
        tokenizer, end, given: as of Regex.

    Raises:
        OptionError: the schema has something that is not supported, named by where it stands; or as of Regex.
    """

    def __init__(
        self,
        schema: Mapping[str, Any] | str,
        tokenizer: TextTokenizer | None,
        *,
        end: bool = True,
        given: bool = False,
    ):
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise OptionError(f"JsonSchema: the schema is no JSON text: {error}") from error
        self.schema = schema
        super().__init__(_value(schema, "the schema"), tokenizer, end=end, given=given)

    def __repr__(self) -> str:
        shown = json.dumps(self.schema)
        return f"JsonSchema({shown if len(shown) <= 60 else shown[:57] + '...'})"


def _value(schema: Any, at: str) -> str:
    """The expression of the texts of a schema. at: where it stands, for errors."""
    if not isinstance(schema, Mapping):
        raise OptionError(f"JsonSchema: {at} is {schema!r}; a schema such as {{'type': 'string'}} is needed")
    said = {k: v for k, v in schema.items() if k not in IGNORED}
    if "const" in said or "enum" in said:
        options = [said["const"]] if "const" in said else said["enum"]
        if not isinstance(options, list) or not options:
            raise OptionError(f"JsonSchema: enum of {at} is {options!r}; a list of values is needed")
        _only(said, {"const", "enum", "type"}, at)
        return "(?:" + "|".join(re.escape(json.dumps(option, ensure_ascii=False)) for option in options) + ")"
    for name in ("anyOf", "oneOf"):
        if name in said:
            _only(said, {name}, at)
            if not isinstance(said[name], list) or not said[name]:
                raise OptionError(f"JsonSchema: {name} of {at} is {said[name]!r}; a list of schemas is needed")
            return "(?:" + "|".join(_value(s, f"{name}[{i}] of {at}") for i, s in enumerate(said[name])) + ")"
    kind = said.get("type")
    if kind is None and said:
        raise OptionError(
            f"JsonSchema: {at} has {', '.join(map(repr, said))} and no type; only enum, const, anyOf and oneOf do without one"
        )
    if not isinstance(kind, str) or kind not in KEYWORDS:
        raise OptionError(f"JsonSchema: type of {at} is {kind!r}; one of {', '.join(KEYWORDS)} is needed")
    _only(said, KEYWORDS[kind] | {"type"}, at)
    return _KINDS[kind](said, at)


def _only(said: Mapping[str, Any], known: set[str], at: str) -> None:
    for name in said:
        if name not in known:
            more = did_you_mean(name, known) or "."
            raise OptionError(f"JsonSchema: {name!r} of {at} is not supported{more}")


def _bounds(said: Mapping[str, Any], least: str, most: str, at: str) -> tuple[int, int | None]:
    low, high = said.get(least, 0), said.get(most)
    for name, value in ((least, low), (most, high)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise OptionError(f"JsonSchema: {name} of {at} is {value!r}; a whole number of 0 or more is needed")
    if high is not None and high < low:
        raise OptionError(f"JsonSchema: {at} has {least}={low}, which is more than {most}={high}")
    return low, high


def _object(said: Mapping[str, Any], at: str) -> str:
    properties = said.get("properties")
    if not isinstance(properties, Mapping):
        raise OptionError(f"JsonSchema: {at} is an object without properties; which ones it has must be said")
    if said.get("additionalProperties", False) is not False:
        raise OptionError(f"JsonSchema: additionalProperties of {at} must be false, or left out")
    if set(said.get("required", properties)) != set(properties):
        raise OptionError(
            f"JsonSchema: required of {at} must name all of its properties, or be left out: none is optional"
        )
    parts = [
        re.escape(json.dumps(name, ensure_ascii=False) + COLON) + _value(schema, f"property {name!r} of {at}")
        for name, schema in properties.items()
    ]
    return r"\{" + SEPARATOR.join(parts) + r"\}"


def _array(said: Mapping[str, Any], at: str) -> str:
    if "items" not in said:
        raise OptionError(f"JsonSchema: {at} is an array without items; what is in it must be said")
    low, high = _bounds(said, "minItems", "maxItems", at)
    if high == 0:
        return r"\[\]"
    item = _value(said["items"], f"items of {at}")
    more = f"(?:{SEPARATOR}{item}){{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    return rf"\[{item}{more}\]" if low else rf"\[(?:{item}{more})?\]"


def _string(said: Mapping[str, Any], at: str) -> str:
    if "pattern" in said:
        if "minLength" in said or "maxLength" in said:
            raise OptionError(f"JsonSchema: {at} has a pattern and a length; write the length into the pattern")
        pattern = said["pattern"]
        if not isinstance(pattern, str):
            raise OptionError(f"JsonSchema: pattern of {at} is {pattern!r}; a text is needed")
        return f'"(?:{pattern.removeprefix("^").removesuffix("$")})"'
    low, high = _bounds(said, "minLength", "maxLength", at)
    return f'"{CHARACTER}{{{low},{"" if high is None else high}}}"'


_KINDS: dict[str, Any] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": lambda said, at: INTEGER,
    "number": lambda said, at: NUMBER,
    "boolean": lambda said, at: "(?:true|false)",
    "null": lambda said, at: "null",
}
