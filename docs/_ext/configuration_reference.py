"""Writes the reference of the training configuration from the classes that check it, so that the two cannot part."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.nodes import nested_parse_with_titles


def attribute_notes(doc: str) -> dict[str, str]:
    """What a NumPy docstring says of each attribute; ``a, b`` share one text."""
    notes: dict[str, str] = {}
    _, found, rest = doc.partition("Attributes\n----------\n")
    names: list[str] = []
    for line in rest.splitlines() if found else []:
        if line.strip() and not line.startswith(" "):
            names = [name.strip() for name in line.split(",")]
            notes.update(dict.fromkeys(names, ""))
        else:
            for name in names:
                notes[name] = f"{notes[name]} {line.strip()}".strip()
    return notes


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_of(part)]


def shown_type(annotation: Any) -> str:
    """A type as a user reads it."""
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(f"``{value}``" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (tuple, list):
        inner = [part for part in typing.get_args(annotation) if part is not Ellipsis]
        return "list of " + shown_type(inner[0])
    if typing.get_origin(annotation) is dict:
        key, value = typing.get_args(annotation)
        return f"mapping {shown_type(key)} → {shown_type(value)}"
    if typing.get_origin(annotation) is typing.Annotated:
        return shown_type(typing.get_args(annotation)[0])
    if typing.get_args(annotation):
        return " | ".join(shown_type(part) for part in typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f":ref:`{annotation.__name__} <configuration-{annotation.__name__.lower()}>`"
    words = {"str": "text", "int": "integer", "float": "number", "bool": "true | false"}
    return words.get(getattr(annotation, "__name__", ""), str(annotation).replace("typing.", ""))


def shown_default(field: Any) -> str:
    """A default as YAML would have it."""
    if field.is_required():
        return "**required**"
    value = field.default
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel)):
        return "see there"
    if value is None:
        return "null"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f"``{list(value) if isinstance(value, tuple) else value}``"


def section(model: type[BaseModel], written: set[type[BaseModel]]) -> list[str]:
    """Restructured text of one class and of those inside it."""
    written.add(model)
    doc = inspect.getdoc(model) or ""
    notes = attribute_notes(doc)
    title = model.__name__
    lines = [f".. _configuration-{title.lower()}:", "", title, "-" * len(title), ""]
    lines += [re.split(r"\n[A-Z]\w+\n-{3,}\n", doc)[0].strip(), ""]
    lines += [".. list-table::", "   :header-rows: 1", "   :widths: 18 26 14 42", ""]
    rows = [("Key", "Value", "Default", "Meaning")]
    for name, field in model.model_fields.items():
        rows.append((f"``{name}``", shown_type(field.annotation), shown_default(field), notes.get(name, "")))
    for row in rows:
        lines += [f"   {'*' if index == 0 else ' '} - {cell}" for index, cell in enumerate(row)]
    lines.append("")
    for field in model.model_fields.values():
        for inner in models_of(field.annotation):
            if inner not in written:
                lines += section(inner, written)
    return lines


class ConfigurationReference(Directive):
    """``.. configuration-reference::`` puts the tables of `TrainingConfig` and its parts here."""

    def run(self) -> list[nodes.Node]:
        from farfield.training.config import TrainingConfig

        node = nodes.section()
        node.document = self.state.document
        lines = [part for line in section(TrainingConfig, set()) for part in line.splitlines() or [""]]
        nested_parse_with_titles(self.state, StringList(lines, source="configuration-reference"), node)
        return node.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("configuration-reference", ConfigurationReference)
    return {"parallel_read_safe": True}
