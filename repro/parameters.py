"""Typed notebook parameters: read from the notebook itself, checked before a kernel starts.

The cell tagged `parameters` is the single source: its annotations are the types, its values the smoke preset, its
comments the help. Annotations may be `int`, `float`, `bool`, `str`, `list[...]`, `dict[str, ...]`, pydantic's
`PositiveInt`, `NonNegativeInt`, `PositiveFloat`, `NonNegativeFloat`, and the names of `repro.vocabulary`: what
papermill can read as well.
"""

from __future__ import annotations

import ast
import io
import re
import reprlib
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, ValidationError, create_model

from repro import vocabulary
from repro.catalogue import Table, nearest
from repro.files import content_hash
from repro.project import UserError
from repro.vocabulary import Preset

# Every type that a parameters cell may name.
_NAMES: dict[str, Any] = {
    **{name: value for name, value in vars(vocabulary).items() if name[0].isupper()},
    **{kind.__name__: kind for kind in (int, float, bool, str, list, dict)},
    "PositiveFloat": PositiveFloat,
    "NonNegativeInt": NonNegativeInt,
}
MAX_BYTES = 2**20
MAX_DEPTH = 5
MAX_WHOLE = 10**12


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    annotation: str
    default: Any
    help: str


def read_parameters(table: Table) -> list[Parameter]:
    """The parameters of a notebook, in order.

    Raises:
        UserError: there is not exactly one cell tagged `parameters`, or a line of it is not `name: type = literal`.
    """
    tagged = [cell for cell in table.read().cells if cell.cell_type == "code" and "parameters" in cell.tags]
    if len(tagged) != 1:
        raise UserError(f"{table.id}: expected one cell tagged 'parameters', found {len(tagged)}")
    return parse_parameters(tagged[0].source, table.id)


def parse_parameters(source: str, where: str = "parameters") -> list[Parameter]:
    """Parse the source of a parameters cell (see `read_parameters`)."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = []
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise UserError(f"{where}, line {node.lineno}: expected 'name: type = value'")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise UserError(f"{where}, line {node.lineno}: '{node.target.id}' must be a plain literal") from None
        help_text = comments.get(node.end_lineno or node.lineno, "")
        found.append(Parameter(node.target.id, ast.unparse(node.annotation), default, help_text))
    return found


def parameter_model(parameters: list[Parameter]) -> type[BaseModel]:
    """A strict pydantic model of a parameters cell: no unknown names, no silent conversions."""
    fields: dict[str, Any] = {parameter.name: (_type(parameter), ...) for parameter in parameters}
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model("Parameters", __config__=config, **fields)


def _type(parameter: Parameter) -> Any:
    # The annotation is code of this repository, evaluated with type names only.
    return eval(parameter.annotation, {"__builtins__": {}}, _NAMES)


def check_values(parameters: list[Parameter], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values` in the notebook's order once they are complete and well typed.

    Raises:
        UserError: one line per unknown, missing or mistyped parameter, with the nearest name or the allowed values.
    """
    names = [parameter.name for parameter in parameters]
    problems = [unknown_name(str(name), names) for name in values if name not in names]
    known = {name: value for name, value in values.items() if name in names}
    try:
        checked = parameter_model(parameters).model_validate(known).model_dump()
    except ValidationError as error:
        by_name = {parameter.name: parameter for parameter in parameters}
        problems += list(dict.fromkeys(_explain(by_name[str(item["loc"][0])], known, item) for item in error.errors()))
        checked = {}
    problems += [f"parameter '{name}': {problem}" for name, value in known.items() if (problem := _too_much(value))]
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems[:20]))
    return {name: checked[name] for name in names}


def unknown_name(given: str, names: Sequence[str]) -> str:
    """What is said of a parameter that the notebook does not declare."""
    return f"unknown parameter '{given[:60]}': {nearest(given[:60], names)}"


def _too_much(value: Any, room: int = MAX_DEPTH) -> str:
    """Why a value is beyond anything that a parameter can mean; empty where it is not."""
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        return f"{reprlib.repr(value)} is larger than {MAX_WHOLE:.0e}"
    if not isinstance(value, dict | list):
        return ""
    if not room:
        return f"nested deeper than {MAX_DEPTH} levels"
    items = value.values() if isinstance(value, dict) else value
    return next((problem for item in items if (problem := _too_much(item, room - 1))), "")


def _explain(parameter: Parameter, values: Mapping[str, Any], item: Any) -> str:
    if parameter.name not in values:
        return f"missing parameter '{parameter.name}' ({parameter.annotation}): {parameter.help}"
    given = values[parameter.name]
    hint = ""
    options = [option for option in _options(_type(parameter)) if isinstance(option, str)]
    if options:
        hint = f"; {nearest(str(given)[:80], options)}"
        hint += f" (allowed: {', '.join(options)})" if "did you mean" in hint else ""
    elif isinstance(given, str) and _is_number(given):
        hint = "; in quotes it is text: write the plain number"
    message = f"expected {parameter.annotation}; {item['msg'][:200]}{hint}"
    return f"parameter '{parameter.name}' = {reprlib.repr(given)}: {message}"


def _options(annotation: Any) -> list[Any]:
    """The values that a choice, a list of choices or an optional choice names."""
    arguments = getattr(annotation, "__args__", ())
    return list(arguments) if get_origin(annotation) is Literal else [o for inner in arguments for o in _options(inner)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def preset_values(table: Table, preset: Preset, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The checked parameters of one table under one preset, with single values replaced by `overrides`.

    A preset file must name every parameter, so that a paper run never falls back to a smoke value unnoticed.

    Raises:
        UserError: see `check_values`; also for a missing or unreadable preset file, one that names another preset
            than its folder, and for an override of the preset.
    """
    parameters = read_parameters(table)
    path = table.parameter_file(preset)
    where = table.id if path is None else f"params/{preset}/{table.id}.yaml"
    given = {p.name: p.default for p in parameters} if path is None else read_yaml(path)
    values = check_values(parameters, given, where)
    if values.get("preset") != preset:
        raise UserError(f"{where}: preset = {values.get('preset')!r}, expected '{preset}', which these values are")
    if overrides and "preset" in overrides:
        raise UserError("--set preset: values belong to their preset; choose it with --preset")
    return check_values(parameters, {**values, **(overrides or {})}, where)


def is_trial(table: Table, values: Mapping[str, Any]) -> bool:
    """Whether checked parameter values are anything but exactly those of the preset they name.

    A preset that cannot be read has no values, so nothing can pass for it.
    """
    try:
        return preset_values(table, values["preset"]) != values
    except UserError:
        return True


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 core schema: `010` is ten, `1:30`, `yes` and dates are text; unique string keys; no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise yaml.YAMLError("a key occurs twice")
        return found

    def construct_yaml_int(self, node: Any) -> int:
        text = node.value
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_StrictLoader.yaml_implicit_resolvers = {}
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _first)


def strict_yaml(text: str) -> Any:
    """The value of a YAML 1.2 document of at most 1 MiB.

    Raises:
        ValueError: it is not YAML, too large, nested too deeply, has a key twice or an alias; the message is short.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} characters")
        return yaml.load(text, _StrictLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        # PyYAML lets the errors of its converters through: `!!timestamp x`, `!!bool x`, `!!int x`.
        raise ValueError(" ".join(str(error).split())[:300]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML mapping.

    Raises:
        UserError: the file is absent, is not YAML, or is not a mapping with string keys.
    """
    try:
        values = strict_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no parameter file {path}; every preset has one per notebook") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: expected lines 'name: value'")
    return values


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """The `k=v` of the command line as names and YAML values.

    Raises:
        UserError: there is no '=', the value is not valid YAML, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name:
            raise UserError(f"--set {text[:80]}: expected name=value")
        if name in found:
            raise UserError(f"--set {name[:80]}: given twice")
        try:
            found[name] = strict_yaml(value)
        except ValueError as error:
            raise UserError(f"--set {name[:80]}: not a YAML value: {error}") from None
    return found


def parameters_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a set of parameter values, independent of their order."""
    return content_hash(dict(values))
