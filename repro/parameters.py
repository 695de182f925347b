"""Typed notebook parameters: read from the notebook itself, checked before a kernel starts.

The cell tagged `parameters` is the single source: its annotations are the types, its values the smoke preset, its
comments the help. Annotations may be `int`, `float`, `bool`, `str`, `list[...]`, `dict[str, ...]`, `Literal[...]`,
`X | None`, pydantic's `PositiveInt`, `NonNegativeInt`, `PositiveFloat`, `NonNegativeFloat`, and the names of
`repro.vocabulary`.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
)

from repro.catalogue import Table, nearest
from repro.files import content_hash
from repro.project import UserError
from repro.vocabulary import (
    ArchitectureName,
    CAMMethod,
    CAMNetworkName,
    DatasetName,
    DFGTarget,
    EGAReading,
    Gate,
    Preset,
    ThresholdName,
)

_NAMES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "dict": dict,
    "Literal": Literal,
    "PositiveInt": PositiveInt,
    "NonNegativeInt": NonNegativeInt,
    "PositiveFloat": PositiveFloat,
    "NonNegativeFloat": NonNegativeFloat,
    "Preset": Preset,
    "DatasetName": DatasetName,
    "ArchitectureName": ArchitectureName,
    "Gate": Gate,
    "CAMMethod": CAMMethod,
    "CAMNetworkName": CAMNetworkName,
    "EGAReading": EGAReading,
    "DFGTarget": DFGTarget,
    "ThresholdName": ThresholdName,
}
# PyYAML lets the errors of its converters through: `!!timestamp x`, `2026-13-45`, `!!bool x`, `!!int x`, deep nesting.
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


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
    fields: dict[str, Any] = {}
    for parameter in parameters:
        # The annotation is code of this repository, evaluated with type names only.
        annotation = eval(parameter.annotation, {"__builtins__": {}}, _NAMES)
        fields[parameter.name] = (annotation, ...)
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model("Parameters", __config__=config, **fields)


def check_values(parameters: list[Parameter], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values` in the notebook's order once they are complete and well typed.

    Raises:
        UserError: one line per unknown, missing or mistyped parameter, with the nearest name or the allowed values.
    """
    names = [parameter.name for parameter in parameters]
    problems = [f"unknown parameter '{name}': {nearest(str(name), names)}" for name in values if name not in names]
    known = {name: value for name, value in values.items() if name in names}
    try:
        checked = parameter_model(parameters).model_validate(known).model_dump()
    except ValidationError as error:
        by_name = {parameter.name: parameter for parameter in parameters}
        problems += list(dict.fromkeys(_explain(by_name[str(item["loc"][0])], known, item) for item in error.errors()))
        checked = {}
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))
    return {name: checked[name] for name in names}


def _explain(parameter: Parameter, values: Mapping[str, Any], item: Any) -> str:
    if parameter.name not in values:
        return f"missing parameter '{parameter.name}' ({parameter.annotation}): {parameter.help}"
    given = values[parameter.name]
    hint = ""
    annotation = eval(parameter.annotation, {"__builtins__": {}}, _NAMES)
    options = [str(option) for option in getattr(annotation, "__args__", ()) if isinstance(option, str)]
    if options:
        hint = f"; {nearest(str(given), options)}"
        hint += f" (allowed: {', '.join(options)})" if "did you mean" in hint else ""
    elif isinstance(given, str) and _is_number(given):
        hint = "; YAML reads this as text: write a plain number such as 1.0e-4, without quotes"
    return f"parameter '{parameter.name}' = {given!r}: expected {parameter.annotation}; {item['msg']}{hint}"


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
        UserError: see `check_values`; also for a missing or unreadable preset file.
    """
    parameters = read_parameters(table)
    path = table.parameter_file(preset)
    values = {p.name: p.default for p in parameters} if path is None else read_yaml(path)
    where = table.id if path is None else f"params/{preset}/{table.id}.yaml"
    if path is not None:
        values = check_values(parameters, values, where)
    return check_values(parameters, {**values, **(overrides or {})}, where)


def read_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML mapping.

    Raises:
        UserError: the file is absent, is not YAML, or is not a mapping with string keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no parameter file {path}; every preset has one per notebook") from None
    except _NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: expected lines 'name: value'")
    return values


def parse_assignment(text: str) -> tuple[str, Any]:
    """`k=v` of the command line as a name and a YAML value.

    Raises:
        UserError: there is no '=' or the value is not valid YAML.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UserError(f"--set {text}: expected name=value")
    try:
        return name.strip(), yaml.safe_load(value)
    except _NOT_YAML:
        raise UserError(f"--set {text}: '{value}' is not a YAML value") from None


def parameters_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a set of parameter values, independent of their order."""
    return content_hash(dict(values))
