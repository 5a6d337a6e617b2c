"""Every line that the relay's own code may log, read from its source. Runs nothing."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "relay"
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_LOGGERS = frozenset({"log", "_log"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Unclear(AssertionError):
    """An event or a level that cannot be told from the source: nobody could document it."""


@dataclass(slots=True, kw_only=True)
class Logged:
    """What one event may look like: every level and field of every place that logs it."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def logged(package: Path = PACKAGE) -> dict[str, Logged]:
    """All of them, by event. Raises Unclear."""
    found: dict[str, Logged] = {}
    for path, tree in _trees(package).items():
        places = sum(_add(found, tree, function) for function in ast.walk(tree) if isinstance(function, Function))
        if places != sum(isinstance(node, ast.expr) and bool(_level(node)) for node in ast.walk(tree)):
            raise Unclear(f"{path.name}: a line is logged where this does not look")
    return found


@functools.cache
def _trees(package: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


@functools.cache
def _method_calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]


def _add(found: dict[str, Logged], tree: ast.Module, function: Function) -> int:
    """What one function logs; returns how many methods of a logger it names."""
    aliases = _aliases(function)
    places = 0
    for call in _own(function):
        levels = _levels(call, aliases) if isinstance(call, ast.Call) else set()
        if not isinstance(call, ast.Call) or not levels:
            continue
        if not call.args or any(keyword.arg is None for keyword in call.keywords):
            raise Unclear(f"line {call.lineno}: {ast.unparse(call)}")
        places += len(levels)
        for event in _events(call.args[0], tree, function):
            one = found.setdefault(event, Logged())
            one.levels |= levels
            one.fields |= {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    return places


def _own(function: Function) -> Iterator[ast.AST]:
    """What is in a function, and not in a function of its own within."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, Function)]


def _aliases(function: Function) -> dict[str, set[str]]:
    """`write = log.warning if … else log.debug`: the levels behind each such name."""
    found: dict[str, set[str]] = {}
    for node in _own(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.IfExp):
            levels = {level for branch in (node.value.body, node.value.orelse) if (level := _level(branch))}
            if levels:
                found[node.targets[0].id] = levels
    return found


def _levels(call: ast.Call, aliases: dict[str, set[str]]) -> set[str]:
    if isinstance(call.func, ast.Name):
        return aliases.get(call.func.id, set())
    level = _level(call.func)
    return {level} if level else set()


def _level(node: ast.expr) -> str:
    """`log.info`, `self._log.info`, `structlog.get_logger().info`: info."""
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return ""
    of = node.value.func if isinstance(node.value, ast.Call) else node.value
    name = of.id if isinstance(of, ast.Name) else of.attr if isinstance(of, ast.Attribute) else ""
    return node.attr if name in _LOGGERS or name == "get_logger" else ""


def _events(node: ast.expr, tree: ast.Module, function: Function) -> set[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    names = [argument.arg for argument in function.args.args]
    if isinstance(node, ast.Name) and node.id in names:
        return _given(tree, function, names.index(node.id))
    raise Unclear(f"line {node.lineno}: {ast.unparse(node)}")


def _given(tree: ast.Module, function: Function, place: int) -> set[str]:
    """What a method is given as this argument, in its own module and in others."""
    found = set()
    for call in [*_method_calls(tree), *(call for one in _trees(PACKAGE).values() for call in _method_calls(one))]:
        if call.func.attr == function.name:  # type: ignore[attr-defined]  # it is one of a method
            given = call.args[place - 1 :]  # less `self`
            if not given or not isinstance(given[0], ast.Constant) or not isinstance(given[0].value, str):
                raise Unclear(f"line {call.lineno}: {ast.unparse(call)}")
            found.add(given[0].value)
    return found
