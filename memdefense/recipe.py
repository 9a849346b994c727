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
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType

from memdefense.unscored import running, unscored

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


def code_of_run(measure: object) -> str:
    """A digest of the code behind an attack's or a utility's outcomes: as `code_of`, without what only scores them.

    Outcomes outlive a change of the statistics that are made from them.

    Args:
        measure: an instance or a class.
    """
    owner = measure if isinstance(measure, type) else type(measure)
    nested = "." in owner.__qualname__
    return _code_of_owner(owner) if nested or _source(owner.__module__) is None else _run_digest(owner)


def forget() -> None:
    """Forgets the source that was read: for whoever edits modules and has the same ones named anew in one process."""
    for read in (_needs_at, _normal_at, _closure_digest, _run_digest, _home_folder):
        read.cache_clear()


def versions() -> dict[str, str]:
    """The libraries whose version a number may depend on."""
    return {name: _version(name) for name in ("torch", "transformers", "peft", "tokenizers")}


_version = functools.cache(importlib.metadata.version)  # reads and parses a file each time


def _code_of_owner(owner: type | FunctionType) -> str:
    if _source(owner.__module__) is not None:
        return _closure_digest(owner.__module__)
    typed: dict[str, object] = {}
    _gather(owner, owner.__module__, typed)
    return digest(typed)


def _gather(thing: object, module: str, found: dict[str, object]) -> None:
    """The compiled code of what was typed into an interpreter or a notebook, and of what it uses from there."""
    if isinstance(thing, property | classmethod | staticmethod):
        thing = thing.fget if isinstance(thing, property) else thing.__func__
    name = getattr(thing, "__qualname__", "")
    if not isinstance(thing, type | FunctionType) or thing.__module__ != module or name in found:
        return
    if isinstance(thing, FunctionType):
        found[name] = _bytecode(thing.__code__)
        for used in _names(thing.__code__):
            _gather(thing.__globals__.get(used), module, found)
        return
    found[name] = {
        key: repr(value) for key, value in vars(thing).items() if isinstance(value, _PLAIN) and not key.startswith("__")
    }
    for inner in (*vars(thing).values(), *thing.__bases__):
        _gather(inner, module, found)


_PLAIN = (bool, int, float, str, tuple, type(None))


def _names(code: CodeType) -> set[str]:
    inner = [_names(value) for value in code.co_consts if isinstance(value, CodeType)]
    return set(code.co_names).union(*inner)


def _bytecode(code: CodeType) -> list[object]:
    constants = [_constant(value) for value in code.co_consts]
    return [code.co_name, code.co_code.hex(), constants, list(code.co_names)]


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _bytecode(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set's own order is random


@functools.cache
def _closure_digest(module: str) -> str:
    trees = {name: _normal(path) for name, path in sorted(_closure(module).items())}
    # The script being run is called __main__ wherever it lies.
    return digest(trees)


@functools.cache
def _run_digest(owner: type) -> str:
    module = owner.__module__
    path = _source(module)
    assert path is not None
    known = {module, *_MEASURES}
    others = {base.__module__: _source(base.__module__) for base in owner.__mro__ if base.__module__ not in known}
    bases = [ast.parse(_text(source)) for source in others.values() if source]
    body = unscored(ast.parse(_text(path)).body, owner.__name__, bases)
    trees = {name: _normal(path) for name, path in sorted(_closure(module, body).items())}
    return digest({**trees, module: _dumped(ast.Module(body, []))})


# They call no method of a measure but to score it.
_MEASURES = ("memdefense.attack", "memdefense.plugin", "builtins", "abc", "typing")


def _closure(module: str, body: list[ast.stmt] | None = None) -> dict[str, Path]:
    """Every module of the same distribution that ``module`` needs, itself included.

    Of one distribution are the modules of one top-level package, and loose ones that lie side by side in a folder
    that is nobody's installation: a script and the files it imports.

    Args:
        module: its name.
        body: what counts of it; the whole without.
    """
    top = module.partition(".")[0]
    home = _home_folder(top)
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in found or path is None:
            continue
        found[name] = path
        for needed in _imports(name, path, body) if body is not None and name == module else _needs(name, path):
            other = needed.partition(".")[0]
            if other == top or (home is not None and _home_folder(other) == home):
                waiting.append(needed)
    return found


@functools.cache
def _home_folder(top: str) -> Path | None:
    """Where a top-level module lies; None where others are installed beside it."""
    if top in sys.stdlib_module_names:
        return None
    path = _source(top)
    if path is None:
        return None
    folder = path.parent.parent if path.name == "__init__.py" else path.parent
    return None if {"site-packages", "dist-packages"} & set(folder.parts) else folder.resolve()


def _source(name: str) -> Path | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) if module else None
    if file is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec else None
    script = name == "__main__" and file is not None and Path(file).is_file()
    return Path(file) if file and (file.endswith(".py") or script) else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _needs(name: str, path: Path) -> tuple[str, ...]:
    return _needs_at(name, path, _stamp(path))


@functools.cache
def _needs_at(name: str, path: Path, _at: tuple[int, int]) -> tuple[str, ...]:
    return tuple(_imports(name, path, ast.parse(_text(path)).body))


def _stamp(path: Path) -> tuple[int, int]:
    """What tells an edited file: of modules that are loaded anew in one process."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _imports(name: str, path: Path, body: list[ast.stmt]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in (node for statement in running(body) for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*parent, *([module] if module else [])])
            for alias in node.names:
                yield from _homes(module, alias.name)


def _homes(module: str, name: str) -> Iterator[str]:
    """The modules behind a name imported from ``module``: public names are defined deeper than they look."""
    if _source(f"{module}.{name}") is not None:
        yield f"{module}.{name}"
        return
    try:
        thing = getattr(importlib.import_module(module), name, None)
    except ImportError:
        thing = None
    owner = getattr(thing, "__module__", None)
    known = isinstance(owner, str) and owner.partition(".")[0] == module.partition(".")[0]
    # An object says where its class is from, and not who made it: both count.
    if not known or not isinstance(thing, type | FunctionType):
        yield module
    if known:
        yield str(owner)


def _normal(path: Path) -> str:
    """Source as a syntax tree without docstrings, comments and layout."""
    return _normal_at(path, _stamp(path))


@functools.cache
def _normal_at(path: Path, _at: tuple[int, int]) -> str:
    return _dumped(ast.parse(_text(path)))


def _dumped(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return _spelled(tree)


def _spelled(part: object) -> str:
    """A syntax tree as text, empty fields left out: newer versions of Python have fields that older ones have not."""
    if isinstance(part, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(part) if value is not None and value != [])
        return f"{type(part).__name__}({', '.join(f'{name}={_spelled(value)}' for name, value in fields)})"
    if isinstance(part, list):
        return f"[{', '.join(map(_spelled, part))}]"
    return repr(part)
