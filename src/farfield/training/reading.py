"""Reading configurations: YAML, overrides, and errors that name the key and what is allowed."""

from __future__ import annotations

import contextlib
import copy
import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from farfield.training.config import ConfigError, TrainingConfig


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """Find the configuration classes inside a type such as ``tuple[StageConfig, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in _models_of(part)]
    return []


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed where an unknown key stands."""
    model: type[BaseModel] = TrainingConfig
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _models_of(field.annotation) if field is not None else []
        if inner:
            model = inner[0]
    return sorted(model.model_fields)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known words nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = _allowed_keys(problem["loc"])
            hint = did_you_mean(str(problem["loc"][-1]), allowed)
            lines.append(f"{key}: unknown key.{hint} Allowed here: {', '.join(allowed)}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing, but required")
        else:
            value = problem.get("input")
            hint = ""
            expected = problem.get("ctx", {}).get("expected")
            if isinstance(value, str) and isinstance(expected, str):
                hint = did_you_mean(value, expected.replace(" or ", ", ").replace("'", "").split(", "))
            message = problem["msg"].removeprefix("Value error, ").rstrip(".")
            given = f" (is {value!r})" if isinstance(value, str | int | float | bool | type(None)) else ""
            lines.append(f"{key or 'configuration'}{given}: {message}.{hint}")
    return "\n".join(lines)


def parse_config(values: dict[str, Any], source: str = "configuration") -> TrainingConfig:
    """Check a configuration given as a mapping.

    Raises
    ------
    ConfigError
        If anything is wrong: every offending key is named, with what is allowed.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must be a mapping of keys to values, but is {type(values).__name__}")
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source} is not valid:\n{_explain(error)}") from error


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set keys of a nested mapping from strings such as ``optimizer.learning_rate=0.01``; values are YAML.

    Raises
    ------
    ConfigError
        If an override is not of the form ``key=value``, or goes through something that is no mapping.
    """
    values = copy.deepcopy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"the override {override!r} must have the form key=value, for example epochs=10")
        *path, leaf = key.strip().split(".")
        node: Any = values
        for part in path:
            if isinstance(node, list):
                if not part.isdigit() or int(part) >= len(node):
                    raise ConfigError(f"the override {override!r}: {part!r} is not an index below {len(node)}")
                node = node[int(part)]
                continue
            node[part] = {} if node.get(part) is None else node[part]
            node = node[part]
            if not isinstance(node, dict | list):
                raise ConfigError(f"the override {override!r} goes through {part!r}, which is no mapping")
        value = yaml.safe_load(text)
        # YAML 1.1 reads "1e-3" as a string: numbers are what is meant.
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(node, list):
            if not leaf.isdigit() or int(leaf) >= len(node):
                raise ConfigError(f"the override {override!r}: {leaf!r} is not an index below {len(node)}")
            node[int(leaf)] = value
        else:
            node[leaf] = value
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; lists and plain values are replaced."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _read_mapping(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file, laid over the one that its key ``extends`` names (relative to the file)."""
    if not path.is_file():
        by = f", which {str(seen[-1])!r} extends" if seen else ""
        raise FileNotFoundError(f"there is no configuration {str(path)!r}{by}")
    if path.resolve() in seen:
        raise ConfigError(f"{str(path)!r} extends itself, by way of {', '.join(str(item) for item in seen)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{str(path)!r} must be a mapping of keys to values, but is {type(values).__name__}")
    base = values.pop("extends", None)
    if base is None:
        return values
    return _merged(_read_mapping(path.parent / str(base), (*seen, path.resolve())), values)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a YAML configuration; ``overrides`` such as ``epochs=10`` are applied before it is checked.

    A file may name another one under ``extends`` (relative to itself): it then says only what differs.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConfigError
        If it is not YAML, or not a valid configuration.
    """
    return parse_config(apply_overrides(_read_mapping(Path(path)), overrides), str(path))
