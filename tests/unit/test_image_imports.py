"""What goes into the guest's standard library: all that its code can import, seen by reading, checked by running."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from harness import payload
from harness.image import imports

LIBRARY = Path(sysconfig.get_path("stdlib"))


def host_library() -> tuple[dict[str, bytes], set[str]]:
    names: dict[str, Path] = {}
    for path in LIBRARY.rglob("*"):
        relative = path.relative_to(LIBRARY).as_posix()
        name = imports.module_name(relative)
        if name is not None and not relative.startswith(("site-packages", "test/", "idlelib", "lib2to3")):
            names.setdefault(name, path)
    texts = {name: path.read_bytes() for name, path in names.items() if path.suffix == ".py"}
    return texts, set(names)


def test_names_of_files() -> None:
    assert imports.module_name("json/__init__.py") == "json"
    assert imports.module_name("collections/abc.py") == "collections.abc"
    assert imports.module_name("lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so") == "_ctypes"
    assert imports.module_name("LICENSE.txt") is None


def test_lazy_imports_count_in_our_code_and_not_in_the_library() -> None:
    ours = {
        "guest/__init__.py": b"",
        "guest/a.py": b"from . import b\ndef f():\n    import lazy\nif TYPE_CHECKING:\n    import never\n",
        "guest/b.py": b"from package.module import name\n",
    }
    library = {
        "lazy": b"def f():\n    import unused\nif __name__ == '__main__':\n    import unused\n",
        "package": b"", "package.module": b"from . import sibling\n", "package.sibling": b"import _c\n",
        "never": b"", "unused": b"",
    }  # fmt: skip
    reached = imports.reachable(ours, library, {*library, "_c"})
    assert reached == {"lazy", "package", "package.module", "package.sibling", "_c"}


def test_a_library_this_python_cannot_parse_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second source is ast, on this Python's own library: no import of it may be missed."""
    texts, available = host_library()
    parse = ast.parse

    def newer(text: str | bytes) -> ast.AST:
        if isinstance(text, bytes):
            raise SyntaxError
        return parse(text)

    def imported(name: str) -> set[str]:
        return set(imports._imported(name, texts[name], f"{name}.__init__" in available, lazy=False))

    missed = {}
    for name in sorted(texts)[::5]:
        exact = imported(name)
        with monkeypatch.context() as patch:
            patch.setattr(ast, "parse", newer)
            missed[name] = exact - imported(name)
    assert len(missed) > 50
    assert {name: names for name, names in missed.items() if names} == {}


def test_what_the_guests_code_really_loads_is_in_what_was_read() -> None:
    """The second source is the interpreter: import every guest module and look at sys.modules."""
    texts, available = host_library()
    reached = imports.reachable(payload.sources(), texts, available)
    modules = [name.removesuffix(".py").replace("/", ".") for name in payload.sources() if name.startswith("guest/")]
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(payload.__file__).parent)!r})\n"
        f"for name in {sorted(name for name in modules if not name.endswith('__init__'))!r}:\n"
        "    __import__(name)\n"
        "import traceback\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    if getattr(module, '__file__', None): print(name)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if not name.startswith("guest")} & available
    assert "ctypes" in loaded
    assert loaded <= reached, loaded - reached
    assert len(reached) < 90, "the guest's library has grown: is all of it needed?"
