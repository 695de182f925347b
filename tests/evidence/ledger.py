"""The ledger of readings held against the typed parameters it names, so that the two cannot disagree unnoticed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from repro.evidence.readings import Reading, option_name

_MISSING = object()


def drift(reading: Reading) -> list[str]:
    """What the ledger says and the code does not, as sentences; empty if they agree or nothing is switchable.

    A `Literal` or bool parameter must offer exactly the ledger's options; others are held to the default.
    """
    if reading.parameter is None:
        return []
    try:
        annotation, default = parameter_type(reading.parameter)
    except LookupError as error:
        return [f"{reading.id}: {error.args[0]}"]
    problems = []
    choices = _choices(annotation)
    if choices is not None and choices != reading.option_names():
        ours = sorted(reading.option_names())
        problems.append(f"{reading.id}: {reading.parameter} offers {sorted(choices)}, the ledger {ours}")
    if default is not _MISSING and option_name(default) != option_name(reading.default):
        problems.append(
            f"{reading.id}: default of {reading.parameter} is {option_name(default)}, "
            f"the ledger says {option_name(reading.default)}"
        )
    return problems


def unlisted_fields(readings: list[Reading]) -> list[str]:
    """Fields of the ledger's `…Readings` classes without an entry; such a class holds only readings."""
    listed = {reading.parameter for reading in readings if reading.parameter}
    owners = {path.rpartition(".")[0] for path in listed if not _is_absent(path)}
    return sorted(
        f"{owner}.{name}"
        for owner in owners
        if owner.endswith("Readings")
        for name in _parameters(_resolve(owner))
        if f"{owner}.{name}" not in listed
    )


def parameter_type(path: str) -> tuple[Any, object]:
    """Annotation and default of a dotted field, argument or type alias (which has no default).

    Raises:
        LookupError: if nothing lies at the path.
    """
    owner_path, _, name = path.rpartition(".")
    owner = _resolve(owner_path)
    parameters = _parameters(owner)
    if name in parameters:
        return parameters[name]
    alias = getattr(owner, name, None)
    if _choices(alias) is None:
        raise LookupError(f"{path} does not exist; {owner_path} has {', '.join(parameters) or 'no parameters'}")
    return alias, _MISSING


def _is_absent(path: str) -> bool:
    """Whether nothing lies at a path; `drift` says so in words."""
    try:
        parameter_type(path)
    except LookupError:
        return True
    return False


def _resolve(path: str) -> Any:
    """The module, class or function at a dotted path; the longest importable prefix is the module."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                raise LookupError(f"{path} does not exist: {found.__name__} has no {attribute}")
            found = getattr(found, attribute)
        return found
    raise LookupError(f"{path} does not exist: no module of that name")


def _parameters(owner: Any) -> Mapping[str, tuple[Any, object]]:
    """Name → (annotation, default) of the fields of a typed record or the arguments of a callable."""
    if inspect.ismodule(owner):
        return {}
    if inspect.isclass(owner) and issubclass(owner, BaseModel):
        hints = get_type_hints(owner)
        fields = owner.model_fields.items()
        return {
            name: (
                hints[name],
                _MISSING if field.is_required() else field.get_default(call_default_factory=True),
            )
            for name, field in fields
        }
    if inspect.isclass(owner) and dataclasses.is_dataclass(owner):
        hints = get_type_hints(owner)
        return {f.name: (hints[f.name], _default_of(f)) for f in dataclasses.fields(owner)}
    if dataclasses.is_dataclass(owner):
        return {name: (hint, getattr(owner, name)) for name, hint in get_type_hints(type(owner)).items()}
    function = owner.__init__ if inspect.isclass(owner) else owner
    hints = get_type_hints(function)
    arguments = inspect.signature(function).parameters.values()
    return {a.name: (hints.get(a.name), _MISSING if a.default is a.empty else a.default) for a in arguments}


def _default_of(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _MISSING if field.default is dataclasses.MISSING else field.default


def _choices(annotation: Any) -> set[str] | None:
    """The finite set of options a type allows, or None if it is not finite."""
    if annotation is bool:
        return {"true", "false"}
    if annotation is type(None):
        return {"none"}
    if get_origin(annotation) is Literal:
        return {option_name(value) for value in get_args(annotation)}
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_choices(part) for part in get_args(annotation)]
        return None if None in parts else set().union(*(part for part in parts if part is not None))
    return None
