"""A module without what only scores: what is left of it once an attack's scoring methods are taken out."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

SCORING = frozenset({"score", "terms", "cost"})
"""The methods of a measure that are pure functions of its outcomes."""

_LOOK_UP = frozenset({"eval", "exec", "globals", "locals", "vars", "methodcaller"})
_PLAIN_DECORATORS = frozenset({"dataclass", "cache", "lru_cache", "property", "cached_property", "staticmethod"})
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def running(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those under ``if TYPE_CHECKING`` left out, which never run."""
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from running(statement.orelse)
        else:
            yield statement


def unscored(body: list[ast.stmt], owner: str, bases: Sequence[ast.AST] = ()) -> list[ast.stmt]:
    """The statements of a module that the class ``owner`` needs without its scoring methods.

    Left out are those methods, and private methods, definitions, constants and imports that nothing else names. A
    name stands for whatever has it, and where there is ``getattr`` so does a text; so rather too much is kept. All of
    it is, where names are put together or looked up at run time.

    Args:
        body: of the module; not changed.
        owner: a class in it.
        bases: code of other modules that may call the class's own methods.
    """
    methods, others, fresh = _pieces(list(running(body)), owner)
    named = {owner}
    called = set[str]().union(*map(_attributes, bases))
    while fresh:
        for piece in fresh:
            if _looks_up(piece):
                return body
            named |= _names(piece)
            called |= _attributes(piece)
        fresh = [p for p in methods if _makes(p) & called] + [p for p in others if _makes(p) & named]
        methods, others = ([p for p in pieces if p not in fresh] for pieces in (methods, others))
    left_out = {id(piece) for piece in (*methods, *others)}
    return [found for statement in running(body) for found in _pruned(statement, left_out)]


def _pieces(body: list[ast.stmt], owner: str) -> tuple[list[ast.AST], list[ast.AST], list[ast.AST]]:
    """The owner's methods that may be left out, what else of the module may, and what may not."""
    methods: list[ast.AST] = []
    others: list[ast.AST] = []
    fixed: list[ast.AST] = []
    for statement in body:
        if isinstance(statement, ast.ClassDef) and statement.name == owner:
            fixed += [*statement.bases, *statement.keywords, *statement.decorator_list]
            for member in statement.body:
                hidden = isinstance(member, _FUNCTION) and _makes(member) and _may_be_left_out(member.name)
                (methods if hidden else fixed).append(member)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                (fixed if alias.name == "*" else others).append(alias)
        else:
            (others if _makes(statement) else fixed).append(statement)
    return methods, others, fixed


def _may_be_left_out(method: str) -> bool:
    return method in SCORING or (method.startswith("_") and not method.endswith("__"))


def _makes(piece: ast.AST) -> set[str]:
    """The names that a piece does nothing but make; none of one that may do more, as a decorator that registers."""
    if isinstance(piece, ast.alias):
        return {piece.asname or piece.name.partition(".")[0]}
    if isinstance(piece, _FUNCTION):
        return {piece.name} if piece.name in SCORING or not _registers(piece.decorator_list) else set()
    if isinstance(piece, ast.ClassDef):
        return set() if piece.keywords or _registers(piece.decorator_list) else {piece.name}
    targets = piece.targets if isinstance(piece, ast.Assign) else []
    targets = [piece.target] if isinstance(piece, ast.AnnAssign) else targets
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return names if len(names) == len(targets) else set()


def _registers(decorators: Sequence[ast.expr]) -> bool:
    return any(not (_names(decorator) | _attributes(decorator)) & _PLAIN_DECORATORS for decorator in decorators)


def _names(piece: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(piece) if isinstance(node, ast.Name)}


def _attributes(piece: ast.AST) -> set[str]:
    """What is asked of objects; every text too, where ``getattr`` may be given it from anywhere in the piece."""
    found = {node.attr for node in ast.walk(piece) if isinstance(node, ast.Attribute)}
    if {"getattr", "attrgetter"} & (found | _names(piece)):
        found |= {n.value for n in ast.walk(piece) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return found


def _looks_up(piece: ast.AST) -> bool:
    """Whether a piece may reach what it does not name."""
    for node in ast.walk(piece):
        if isinstance(node, ast.Name | ast.Attribute):
            if (node.id if isinstance(node, ast.Name) else node.attr) in _LOOK_UP:
                return True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            asked = node.args[1:2]
            if asked and not isinstance(asked[0], ast.Name | ast.Constant | ast.Attribute):
                return True
    return False


def _pruned(statement: ast.stmt, left_out: set[int]) -> Iterator[ast.stmt]:
    if id(statement) in left_out:
        return
    if isinstance(statement, ast.Import):
        names = [alias for alias in statement.names if id(alias) not in left_out]
        if names:
            yield ast.Import(names)
    elif isinstance(statement, ast.ImportFrom):
        names = [alias for alias in statement.names if id(alias) not in left_out]
        if names:
            yield ast.ImportFrom(statement.module, names, statement.level)
    elif isinstance(statement, ast.ClassDef) and any(id(member) in left_out for member in statement.body):
        members = [member for member in statement.body if id(member) not in left_out]
        pruned = {name: getattr(statement, name) for name in statement._fields} | {"body": members or [ast.Pass()]}
        yield ast.ClassDef(**pruned)
    else:
        yield statement
