"""Which modules a set of sources can ever import, read from the sources themselves (`ast`), nothing run.

In our own sources every `import` counts, also one inside a function: the guest must never find a module missing in
the middle of a verdict. In the standard library only those that run on import count: its lazy imports serve features
the guest does not use (os.popen, argparse's colours), and following them ends at half the library. A test runs the
guest's code against the result.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set

# What the interpreter imports at start with `-I -S`, or by name from C (Modules/_json.c, Python/traceback.c). Frozen
# modules (importlib, zipimport, os, ...) need no file but import others.
_STARTUP = (
    "encodings", "encodings.aliases", "encodings.utf_8", "encodings.ascii", "encodings.latin_1", "os", "io", "abc",
    "codecs", "warnings", "json.decoder", "zipimport",
)  # fmt: skip

# Edges of the standard library that are not followed: for other systems, or for a module's own use as a command.
_CUT = frozenset({
    ("encodings", "encodings.mbcs"),
    ("zipimport", "importlib.readers"),
    ("ctypes", "ctypes._aix"),
})  # fmt: skip

# A line that starts a function or is an import (which may go on in parentheses).
_STATEMENT = re.compile(
    r"^(?P<indent>[ \t]*)(?:(?P<def>(?:async[ ]+)?def[ ])|(?P<import>from[ ]+[\w.]+[ ]+import[ ]+"
    r"(?:\([^)]*\)|(?:[\w., *]|\\\n)+)|import[ ]+(?:[\w., ]|\\\n)+)|(?=[^\s#)\]}]))",
    re.MULTILINE,
)


def module_name(path: str) -> str | None:
    """`json/__init__.py` -> `json`, `lib-dynload/_ctypes.cpython-311-x.so` -> `_ctypes`; None for what is no module."""
    if path.startswith("lib-dynload/") and path.endswith(".so"):
        return path.removeprefix("lib-dynload/").split(".")[0]
    if not path.endswith(".py") or "-" in path:
        return None
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or None


def reachable(sources: Mapping[str, bytes], library: Mapping[str, bytes], available: Set[str]) -> set[str]:
    """Modules of `library` (name -> text) and of `available` (these and extension modules) that can be imported,
    starting from `sources` (path in the bundle -> text) and from what the interpreter needs to start.
    """
    own = {name for path in sources if (name := module_name(path)) is not None}
    todo = list(_STARTUP)
    for path, text in sources.items():
        todo += _imported(module_name(path) or "", text, path.endswith("__init__.py"))
    packages = {name.rpartition(".")[0] for name in library if "." in name}
    reached: set[str] = set()
    while todo:
        name = _existing(todo.pop(), available, own)
        if name is None or name in reached:
            continue
        reached.add(name)
        parent = name.rpartition(".")[0]
        todo += [parent] if parent else []
        if name in library:
            found = _imported(name, library[name], name in packages, lazy=False)
            todo += [target for target in found if (name, target) not in _CUT]
    return reached


def _existing(name: str, available: Set[str], own: Set[str]) -> str | None:
    """`from a import b` names either module a.b or something in module a: the longest that is a module."""
    while name:
        if name in own:
            return None
        if name in available:
            return name
        name = name.rpartition(".")[0]
    return None


def _imported(module: str, text: bytes, is_package: bool, *, lazy: bool = True) -> Iterator[str]:
    """Absolute names in the import statements of `text`, `from a import b` as `a.b`; with `lazy` also those inside
    functions.
    """
    package = module if is_package else module.rpartition(".")[0]
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the library of a Python newer than ours: f-strings have nested quotes since 3.12 (PEP 701)
        tree = ast.parse(_import_lines(text.decode("utf-8", "replace")))
    for node in _run_time(tree, lazy=lazy):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _import_lines(text: str) -> str:
    """The import statements that are outside functions, one a line, for what this Python cannot parse. Too many do no
    harm: what does not exist is passed over, what does is carried along.
    """
    found = []
    function: int | None = None  # how deep the function is indented that we are in
    for match in _STATEMENT.finditer(text):
        depth = len(match["indent"])
        if function is not None and depth > function:
            continue
        function = depth if match["def"] else None
        if match["import"]:
            found.append(match["import"])
    return "\n".join(found)


def _absolute(package: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _run_time(tree: ast.AST, *, lazy: bool) -> Iterator[ast.AST]:
    """The nodes that can run in the guest: not what stands under TYPE_CHECKING or `if __name__ == "__main__"`."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and _never(node.test):
            todo.extend(node.orelse)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


def _never(test: ast.expr) -> bool:
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    return bool(names & {"TYPE_CHECKING", "__name__"})
