"""The parameters of a component, read from its source: `import torch` would cost seconds before the first message.

What belongs to this package is read with `ast` and never imported. That is also the safe way, since configs travel with
models: a path such as `embedtrain.distributed.os.system` names nothing that this package *defines*, so it is refused.
Targets of other packages (torch.optim, the user's own) are imported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
OWN = PACKAGE.name
ALLOWED = (OWN, "torch.optim")


class TargetError(Exception):
    """A `_target_` that does not lead to a class or function that a config may name."""


@dataclass(frozen=True)
class Parameter:
    """One keyword argument. `annotation` is source, where it is known."""

    required: bool
    annotation: ast.expr | None = None


@dataclass(frozen=True)
class Signature:
    """What a component takes."""

    name: str  # of the class or function
    parameters: dict[str, Parameter]
    open: bool = False  # takes any other keyword as well
    aliases: dict[str, ast.expr] | None = None  # names that its annotations may use


def signature(target: str, allow: Sequence[str] = ()) -> Signature:
    """The parameters of `target`, a dotted path to a class or function.

    `allow`: import prefixes that the user permits besides embedtrain and torch.optim. Raises TargetError.
    """
    prefixes = (*ALLOWED, *allow)
    prefix = next((p for p in prefixes if target.startswith(f"{p}.")), None)
    if prefix is None:
        root = target.partition(".")[0]
        raise TargetError(
            f"may only name something of {' or '.join(prefixes)}, got {target!r}. If you trust it: allow_targets=[{root}]"
        )
    return _own(target) if prefix == OWN else _foreign(target, prefix)


# ------------------------------------------------------------------------------------------------- by source


def _own(target: str) -> Signature:
    module, _, name = target.rpartition(".")
    found = _definition(module, name)
    if found is None:
        near = ", ".join(sorted(_public_names(module))) if _tree(module) else ""
        hint = f"{module} defines: {near}" if near else f"there is no module {module}"
        raise TargetError(f"there is no {target!r}; {hint}")
    home, node = found
    return _read(home, node)


@cache
def _tree(module: str) -> ast.Module | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None


def _public_names(module: str) -> list[str]:
    tree = _tree(module)
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"] if tree else []


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Where this package defines `name` as seen from `module`: there, or where that module imports it from."""
    tree = _tree(module)
    for node in tree.body if tree else []:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(OWN):
            for item in node.names:
                if (item.asname or item.name) == name:
                    return _definition(node.module, item.name)
    return None


def _read(module: str, node: ast.ClassDef | ast.FunctionDef) -> Signature:
    function = node if isinstance(node, ast.FunctionDef) else _method(node)
    if function is not None:
        own, aliases = _parameters(function), _aliases(module)
        settings = _unpacked(module, function.args.kwarg)
        if settings is None:
            return Signature(node.name, own, function.args.kwarg is not None, aliases)
        return Signature(node.name, own | _settings(settings[1]), aliases=_aliases(settings[0]) | aliases)
    assert isinstance(node, ast.ClassDef)
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return Signature(node.name, _fields(node), aliases=_aliases(module))
    for base in node.bases:
        inherited = _definition(module, ast.unparse(base))
        if inherited is not None:
            up = _read(*inherited)
            return Signature(node.name, up.parameters, up.open, up.aliases)
    return Signature(node.name, {})


def _method(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)


def _parameters(function: ast.FunctionDef) -> dict[str, Parameter]:
    args = function.args
    plain = [a for a in args.args if a.arg != "self"]
    first_default = len(plain) - len(args.defaults)
    found = {a.arg: Parameter(i < first_default, a.annotation) for i, a in enumerate(plain)}
    for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found[argument.arg] = Parameter(default is None, argument.annotation)
    return found


def _unpacked(module: str, keywords: ast.arg | None) -> tuple[str, ast.ClassDef] | None:
    """Where the settings behind `**common: Unpack[Settings]` (PEP 692) are defined, and as what."""
    match keywords:
        case ast.arg(annotation=ast.Subscript(value=ast.Name(id="Unpack"), slice=ast.Name(id=name))):
            home, node = _definition(module, name) or (module, None)
            assert isinstance(node, ast.ClassDef), f"{module}: {OWN} defines no {name}"
            return home, node
    return None


def _settings(node: ast.ClassDef) -> dict[str, Parameter]:
    """Of a TypedDict with total=False: each may be left out."""
    return {name: Parameter(False, field.annotation) for name, field in _fields(node).items()}


def _fields(node: ast.ClassDef) -> dict[str, Parameter]:
    entries = [e for e in node.body if isinstance(e, ast.AnnAssign) and isinstance(e.target, ast.Name)]
    return {e.target.id: Parameter(e.value is None, e.annotation) for e in entries if isinstance(e.target, ast.Name)}


@cache
def _aliases(module: str) -> dict[str, ast.expr]:
    """Module-level names such as `Kernel = Literal["auto", "ragged"]`, imported ones of this package included."""
    names: set[str] = set()
    for node in _body(module):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.add(node.targets[0].id)
        elif isinstance(node, ast.ImportFrom):
            names |= {item.asname or item.name for item in node.names}
    found = {name: _alias(module, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _body(module: str) -> list[ast.stmt]:
    tree = _tree(module)
    return tree.body if tree else []


def _alias(module: str, name: str) -> ast.expr | None:
    """What `name` is short for in `module`. Name by name, since whole modules may import each other."""
    for node in _body(module):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return node.value
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(OWN):
            for item in node.names:
                if (item.asname or item.name) == name:
                    return _alias(node.module, item.name)
    return None


# ------------------------------------------------------------------------------------------------- by import


def _foreign(target: str, prefix: str) -> Signature:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise TargetError(f"{target!r} cannot be imported: {error}") from None
    except AttributeError:
        raise TargetError(f"there is no {name!r} in {module}") from None
    if not callable(found):
        raise TargetError(f"{target!r} is a {type(found).__name__}; expected a class or a function")
    home = getattr(found, "__module__", "") or ""
    if home != prefix and not home.startswith(f"{prefix}."):
        raise TargetError(f"{target!r} is really {home}.{name}, which is not part of {prefix}")
    parameters = inspect.signature(found).parameters.values()
    named = {
        p.name: Parameter(p.default is p.empty)
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return Signature(name, named, any(p.kind is p.VAR_KEYWORD for p in parameters))


# ------------------------------------------------------------------------------------------------- values


def fits(value: Any, annotation: ast.expr | None, aliases: dict[str, ast.expr]) -> bool:
    """Whether a value from YAML may stand where `annotation` is asked for. What it cannot judge, it lets pass."""
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as source):
            return fits(value, ast.parse(source, mode="eval").body, aliases)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            return fits(value, left, aliases) or fits(value, right, aliases)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="str" | "Path"):
            return isinstance(value, str)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id=name) if name in aliases:
            return fits(value, aliases[name], aliases)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            return value in ast.literal_eval(
                options if isinstance(options, ast.Tuple) else ast.Tuple([options], ast.Load())
            )
        case ast.Subscript(value=ast.Name(id="list" | "Sequence" | "tuple" | "Iterable"), slice=item):
            inner = item.elts[0] if isinstance(item, ast.Tuple) else item
            return isinstance(value, list) and all(fits(one, inner, aliases) for one in value)
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, inner])):
            return isinstance(value, dict) and all(fits(one, inner, aliases) for one in value.values())
        case _:
            return True


def words(annotation: ast.expr | None, aliases: dict[str, ast.expr]) -> str:
    """An annotation for people: "a number or null", "one of 'in_batch', 'hard_only'"."""
    plain = {"float": "a number", "int": "a whole number", "str": "text", "Path": "a path", "bool": "true or false"}
    match annotation:
        case ast.Constant(value=None):
            return "null"
        case ast.BinOp(left=left, right=right):
            return f"{words(left, aliases)} or {words(right, aliases)}"
        case ast.Name(id=name) if name in plain:
            return plain[name]
        case ast.Name(id=name) if name in aliases:
            return words(aliases[name], aliases)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            return f"one of {ast.unparse(options).strip('()')}"
        case ast.Subscript(value=ast.Name(id="list" | "Sequence" | "tuple" | "Iterable"), slice=item):
            inner = item.elts[0] if isinstance(item, ast.Tuple) else item
            return f"a list (each {words(inner, aliases)})"
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, inner])):
            return f"a mapping (each value {words(inner, aliases)})"
        case None:
            return "a value"
        case _:
            return ast.unparse(annotation)
