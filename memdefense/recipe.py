"""What identifies a piece of work: the code it runs and the things it is made from.

A *recipe* is machine-independent: specs, versions, seeds and the syntax tree of the code, docstrings and comments
out. A *key* is a digest of a recipe, of the content of the inputs, and of what the numbers depend on beside them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType

Parts = Mapping[str, object]
"""What a key is made of, by name: JSON values only."""


def digest(parts: object) -> str:
    """The digest of JSON values, the same for equal values in any order of their names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def code_of(thing: object) -> str:
    """A digest of the code behind an object: its module and all it imports from its own distribution.

    Args:
        thing: a class, a function, an instance, or a module's name.
    """
    if isinstance(thing, str):
        return _closure_digest(thing)
    owner = thing if isinstance(thing, type | FunctionType) else type(thing)
    parts = getattr(thing, "parts", ())
    whole = [_code_of_owner(owner), *(code_of(part) for part in parts)] if parts else [_code_of_owner(owner)]
    return whole[0] if len(whole) == 1 else digest(whole)


def versions() -> dict[str, str]:
    """The libraries whose version a number may depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "tokenizers")}


def _code_of_owner(owner: type | FunctionType) -> str:
    module = sys.modules.get(owner.__module__)
    if module is not None and getattr(module, "__file__", None):
        return _closure_digest(owner.__module__)
    try:  # a class typed into an interpreter or a notebook
        return digest(_normal(inspect.cleandoc(inspect.getsource(owner))))
    except (OSError, TypeError, SyntaxError):
        functions = (
            [owner]
            if isinstance(owner, FunctionType)
            else [v for v in vars(owner).values() if isinstance(v, FunctionType)]
        )
        return digest([_bytecode(function.__code__) for function in functions])


def _bytecode(code: CodeType) -> list[object]:
    constants = [_bytecode(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return [code.co_name, code.co_code.hex(), constants, list(code.co_names)]


@functools.cache
def _closure_digest(module: str) -> str:
    trees = {name: _normal(path.read_text(encoding="utf-8")) for name, path in sorted(_closure(module).items())}
    # The script being run is called __main__ wherever it lies.
    return digest(trees)


def _closure(module: str) -> dict[str, Path]:
    """Every module of the same distribution that ``module`` needs, itself included."""
    top = module.partition(".")[0]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting.extend(needed for needed in _imports(name, path) if needed.partition(".")[0] == top)
    return found


def _source(name: str) -> Path | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) if module else None
    if file is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec else None
    return Path(file) if file and file.endswith(".py") else None


def _imports(name: str, path: Path) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _running(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*parent, *([module] if module else [])])
            yield from (_home(module, alias.name) for alias in node.names)


def _running(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``, which never run."""
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        yield from ast.walk(statement)


def _home(module: str, name: str) -> str:
    """The module in which a name imported from ``module`` is defined: public names live deeper than they look."""
    if _source(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    try:
        owner = getattr(getattr(importlib.import_module(module), name, None), "__module__", None)
    except ImportError:
        return module
    return owner if isinstance(owner, str) and owner.partition(".")[0] == module.partition(".")[0] else module


def _normal(source: str) -> str:
    """Source as a syntax tree without docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree, annotate_fields=False)
