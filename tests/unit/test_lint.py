"""The rules of the house, as tests: style, types, direction of imports, one door each, and a guest that runs alone."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "harness"

# Each of these has one home; a new user of one of them is a second door to guard.
HOMES = {
    "subprocess": {"harness/proc.py"},
    "paramiko": {"harness/ssh.py"},
    "urllib.request": {"harness/fetch.py"},
    "http.client": {"harness/fetch.py"},
    "yaml": {"harness/config.py"},
    "distributed": {"harness/executor/cluster_client.py"},
    "pytest": {"harness/pytest_plugin.py"},
}
LONGEST_MODULE, LONGEST_FUNCTION = 500, 60


def modules(below: Path = HARNESS) -> list[Path]:
    return sorted(below.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Absolute names a file imports, those under TYPE_CHECKING left out."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(path)):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def check(*command: str) -> None:
    """Run a tool of this virtual environment on the whole project; its complaints are the failure's text."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    check("ruff", "check", "--no-cache", ".")


def test_mypy_strict() -> None:
    check("mypy")


def test_import_contracts() -> None:
    # import-linter cannot be run with `-m`.
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("package", sorted(HOMES))
def test_every_door_has_one_home(package: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in modules()
        if any(name == package or name.startswith(f"{package}.") for name in imports(path))
    }
    assert users <= HOMES[package]


def _exits(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise):
        return node.exc is not None and ast.unparse(node.exc).startswith("SystemExit")
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.exit", "os._exit"}


def test_only_the_exit_door_exits() -> None:
    """Besides a module that is run by itself (`if __name__ == "__main__"`), and the guest."""
    users = {
        path.name
        for path in modules()
        if HARNESS / "guest" not in path.parents
        for node in tree(path).body
        if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)) and any(map(_exits, ast.walk(node)))
    }
    assert not users


def test_no_room_grows_past_what_we_argue_about() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_MODULE
    ]
    too_long += [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not too_long


# --- the guest runs alone


def guest_modules() -> list[Path]:
    return modules(HARNESS / "guest")


def test_the_guest_imports_the_standard_library_and_itself_only() -> None:
    foreign = {
        f"{path.name}: {name}"
        for path in guest_modules()
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


def interpreters() -> dict[str, str]:
    """The oldest and the newest Python at hand, 3.9 and up: those on PATH and those of pyenv."""
    names = [f"python3.{minor}" for minor in range(9, 20)]
    found = {shutil.which(name) for name in names} | {sys.executable}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path("~/.pyenv").expanduser())) / "versions"
    found |= {str(path) for path in pyenv.glob("3.*/bin/python3") if path.is_file()}
    versions = {version_of(path): path for path in found if path}
    usable = sorted(version for version in versions if version >= (3, 9))
    return {"oldest": versions[usable[0]], "newest": versions[usable[-1]]}


def version_of(interpreter: str) -> tuple[int, ...]:
    text = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([interpreter, "-I", "-S", "-c", text], capture_output=True, text=True, check=False)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else (0, 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest as a zip and nothing else, away from this source tree."""
    path = tmp_path_factory.mktemp("guest") / "guest.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for module in guest_modules():
            archive.write(module, f"guest/{module.relative_to(HARNESS / 'guest')}")
    return path


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_every_guest_module_imports_alone(which: str, bundle: Path) -> None:
    interpreter = interpreters()[which]
    names = [f"guest.{path.stem}" for path in guest_modules() if path.stem not in {"__init__", "__main__"}]
    script = f"import sys; sys.path.insert(0, {str(bundle)!r})\nfor name in {names}: __import__(name)"
    command = [interpreter, "-I", "-S", "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=bundle.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_oldest_python_is_really_old_enough() -> None:
    """The floor is 3.9. Where no such interpreter is at hand, the grammar at least must be its own."""
    for path in guest_modules():
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


# --- the lock files


@pytest.mark.parametrize(("lock", "extras"), [("requirements.lock", ()), ("requirements-dev.lock", ("dev",))])
def test_locks_pin_every_dependency_by_hash(lock: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(item for extra in extras for item in project["optional-dependencies"][extra])]
    names = {re.split(r"[<>=!~\[; ]", item)[0].lower() for item in wanted}
    pins = re.findall(r"^([\w.-]+)==\S+ \\\n {4}--hash=sha256:", (ROOT / lock).read_text(), re.MULTILINE)
    assert names <= {pin.lower() for pin in pins}


def test_the_layers_of_the_architecture_page_are_those_that_are_held() -> None:
    def layers(text: str) -> list[set[str]]:
        return [set(re.findall(r"(?:harness\.)?(\w+)", line)) for line in text.splitlines()]

    held = re.search(r"(?<=\nlayers =\n)(?:    .*\n)+", (ROOT / ".importlinter").read_text())
    page = re.search(r"(?<=as a test\):\n\n)(?:    .*\n)+", (ROOT / "docs/architecture.md").read_text())
    assert held and page and layers(page.group()) == layers(held.group())
