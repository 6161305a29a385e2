"""Griffe extension: the type and default of every documented argument in the API reference.

Griffe alone does not find those of pydantic fields that a class takes as `**fields`, nor of docstring lines that
describe several arguments ("top_p, top_k: ...").
"""

import copy
from typing import Any

from griffe import (
    Attribute,
    Class,
    Docstring,
    DocstringParameter,
    DocstringSectionParameters,
    ExprCall,
    ExprKeyword,
    Extension,
    Function,
    GriffeLoader,
)

_OWN = "Args, beside those of "  # heading of the arguments that a class adds to those of another class


class Fields(Extension):
    """Complete the parsed arguments in the docstrings of classes and functions."""

    def on_class(self, *, cls: Class, loader: GriffeLoader, **kwargs: Any) -> None:
        """Look arguments up among `__init__`'s, then among the fields of the class and its bases."""
        _inherit_constructor(cls)
        _complete(cls, loader)

    def on_function(self, *, func: Function, loader: GriffeLoader, **kwargs: Any) -> None:
        """Look arguments up among the function's own."""
        _complete(func, loader)


def _inherit_constructor(cls: Class) -> None:
    """Show the base class's parameters where the decorator `inherit_constructor` takes them over."""
    own = cls.members.get("__init__")
    if not isinstance(own, Function) or not own.decorators:
        return
    inherited = (base.members.get("__init__") for base in cls.mro())
    found = next((init for init in inherited if isinstance(init, Function) and not init.decorators), None)
    if found is not None:
        own.parameters = found.parameters


def _complete(obj: Class | Function, loader: GriffeLoader) -> None:
    docstring = obj.docstring
    if docstring is None:
        return
    text, own, rest = docstring.value.partition(_OWN)
    if own:
        title, _, arguments = rest.partition(":\n")
        docstring = Docstring(f"{text}Beside the arguments of {title}:\n\nArgs:\n{arguments}", parent=obj)
    sections = docstring.parse(loader.docstring_parser, **(loader.docstring_options or {}))
    for section in sections:
        if isinstance(section, DocstringSectionParameters):
            section.value = [one for several in section.value for one in _each(several, obj)]
    assert obj.docstring is not None
    obj.docstring.__dict__["parsed"] = sections  # where the cached property keeps them


def _each(described: DocstringParameter, obj: Class | Function) -> list[DocstringParameter]:
    found = []
    for name in described.name.split(", "):
        one = copy.copy(described)
        one.name = name
        one.annotation, one.value = _type_and_default(name, obj)
        found.append(one)
    return found


def _type_and_default(name: str, obj: Class | Function) -> tuple[Any, Any]:
    if name in obj.parameters and obj.parameters[name].annotation is not None:
        parameter = obj.parameters[name]
        return parameter.annotation, parameter.default
    if isinstance(obj, Class):
        for owner in (obj, *obj.mro()):
            field = owner.members.get(name)
            if isinstance(field, Attribute):
                return field.annotation, _default(field.value)
    return None, None


def _default(value: Any) -> Any:
    """Return the default in `Field(default=...)`; None if the argument is required."""
    if not isinstance(value, ExprCall) or str(value.function) != "Field":
        return value
    given = {a.name: a.value for a in value.arguments if isinstance(a, ExprKeyword)}
    if "default_factory" in given:
        made = str(given["default_factory"])
        return made.removeprefix("lambda: ") if made.startswith("lambda: ") else {"dict": "{}", "list": "[]"}[made]
    return given.get("default")
