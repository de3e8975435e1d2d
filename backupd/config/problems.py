"""What is wrong with a configuration, in words of the one who wrote it: a place, what, and the nearest known key.

Values are never repeated, only their kind is told: a password written where it does not belong is still a password.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from backupd.errors import ConfigError
from backupd.redact import printable, scrub

_KINDS: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number with a fraction",
    dict: "a table",
    list: "a list",
}
_EXPECTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (`sources.clinic.totp[0].column`), what, and what to do about it if that is not plain."""

    where: str
    what: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


_EVERY_KEY = "docs/configuration.md has every table and key"


class InvalidConfig(ConfigError):
    """Everything that is wrong with a file: the message tells what is, or how much; `problems` tells all, one by one."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        if len(problems) == 1:
            super().__init__(f"{path}: {problems[0]}", problems[0].hint or _EVERY_KEY)
        else:
            super().__init__(f"{path} has {len(problems)} problems", _EVERY_KEY)
        self.problems = tuple(problems)


class Hinted(ValueError):
    """What a check of our own found, with the hint that belongs to it, and the key if the check was of a whole table."""

    def __init__(self, what: str, hint: str | None = None, *, key: str | None = None) -> None:
        super().__init__(what)
        self.hint, self.key = hint, key


def explain(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """The problems in pydantic's error, in the order of the file's tables."""
    return [
        _explain(each["type"], each["loc"], each.get("input"), each.get("ctx", {}), root)
        for each in error.errors(include_url=False)
    ]


def _explain(
    kind: str, loc: tuple[int | str, ...], value: object, context: Mapping[str, object], root: type[BaseModel]
) -> Problem:
    where, own = _place(loc), context.get("error")
    if isinstance(own, Hinted):
        return Problem(_place(loc if own.key is None else (*loc, own.key)), str(own), own.hint)
    if kind == "missing":
        return Problem(where, "is missing")
    if kind == "extra_forbidden":
        return Problem(where, *_unknown(str(loc[-1]), _keys(root, loc[:-1])))
    if kind in _EXPECTED:
        return Problem(where, f"expected {_EXPECTED[kind]}, not {_KINDS.get(type(value), 'a date or time')}")
    if kind == "literal_error":
        return Problem(where, f"expected one of {str(context['expected']).replace(chr(39), '').replace(' or ', ', ')}")
    if kind in ("greater_than_equal", "less_than_equal"):
        bound, word = (context["ge"], "least") if kind == "greater_than_equal" else (context["le"], "most")
        return Problem(where, f"must be at {word} {bound}")
    if kind == "string_too_short":
        return Problem(where, "must not be empty")
    return Problem(where, "cannot be used here")


def _place(loc: tuple[int | str, ...]) -> str:
    """`sources.clinic.totp[0].column`, as one writes it in TOML."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step != "[key]":
            name = step if re.fullmatch("[A-Za-z0-9_-]+", step) else f'"{printable(step)}"'
            text += f".{scrub(name)}" if text else scrub(name)
    return text


def _unknown(key: str, known: Sequence[str]) -> tuple[str, str | None]:
    near = difflib.get_close_matches(key.lower().replace("-", "_"), known, 1, 0.6)
    if near:
        return f"unknown key, did you mean {near[0]}?", None
    return f"unknown key; known here: {', '.join(known)}" if known else "unknown key", None


def _keys(root: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that a table at `loc` may have: the way there, through lists and named tables, follows the types."""
    found: object = root
    for step in loc:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(step))
            found = field.annotation if field else None
        else:  # an index of a list, or a name in a table of tables
            found = next((each for each in reversed(typing.get_args(found)) if each is not Ellipsis), None)
        found = _without_none(found)
    return list(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def _without_none(annotation: object) -> object:
    while type(None) in (arguments := typing.get_args(annotation)) or typing.get_origin(annotation) is typing.Annotated:
        annotation = next(each for each in arguments if each is not type(None))
    return annotation
