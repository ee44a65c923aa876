"""README, docs/ and the rest of the prose against the program: options, verbs, formats, files and links exist, drawings
of seams are those of the code, words are those of the schema.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from harness import config, machine_config, report
from harness.model import verdict
from harness.model.expectation import expectations_from
from tests.support import reference

ROOT = Path(__file__).resolve().parents[2]
_PLACES = ("*.md", "docs/*.md", "programs/*.md", "tests/**/*.md")
PAGES = sorted(path for place in _PLACES for path in ROOT.glob(place) if ".venv" not in path.parts)
# Lines about other programs, and options of theirs that stand in our sentences.
FOREIGN_COMMANDS = re.compile(
    r"^\s*(?:\.venv/bin/)?(?:pip|pip-compile|pytest|python3?|dask|make|qemu|vng|clang|bpftool|tests?/|ci/|git|apt)\b"
)
FOREIGN = {
    "--once", "--dist", "--disable-kvm", "--version", "--help", "--nthreads", "--memory-limit", "--name", "--junitxml",
}  # fmt: skip
PROSE = {"that"}  # `it has no corematrix that answers`
# Benches, the corpus and the fuzzers have command lines of their own.
_TOOLS = [path.read_text() for room in ("bench", "corpus", "fuzz") for path in ROOT.glob(f"tests/{room}/*.py")]
FOREIGN |= {option for text in _TOOLS for option in re.findall(r'"(--[a-z-]+)"', text)}
PLUGIN = set(re.findall(r"--corematrix-[a-z-]+", (ROOT / "harness/pytest_plugin.py").read_text()))
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@cache
def options() -> dict[str, set[str]]:
    """What each verb takes, its own verbs' options included."""
    found = {}
    for name, parser in reference.verbs().items():
        parsers = (parser, *reference.below(parser).values())
        found[name] = {word for one in parsers for action in reference.actions(one) for word in action.option_strings}
        found[name] |= {"-h", "--help"}
    return found


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        f"{name} {action.option_strings or action.dest}" for name, parser in reference.verbs().items()
        for one in (parser, *reference.below(parser).values()) for action in reference.actions(one) if not action.help
    ]  # fmt: skip
    assert silent == []


def test_the_reference_is_what_the_program_says() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `python -m tests.support.reference`"


def test_the_reference_has_every_verb_and_every_format() -> None:
    text = reference.PAGE.read_text()
    assert all(f"## corematrix {name}\n" in text for name in options())
    assert all(re.search(rf"[{{,]{name}[,}}]", text) for name in report.FORMATS)
    assert text.count("| `") >= 60  # and it is not empty


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_shown_are_commands_there_are(page: Path) -> None:
    """`corematrix VERB ... --option`: the verb exists and takes the option."""
    wrong = []
    for number, line in enumerate(_lines(page), 1):
        for verb, rest in re.findall(r"(?<![/\w-])corematrix ([a-z]+)\b([^`|\n]*)", _commands(line)):
            if verb not in options() and verb not in PROSE:
                wrong.append(f"{number}: no verb {verb}")
            if verb not in options():
                continue
            own = rest.partition("#")[0].partition(" -- ")[0].partition("; ")[0]
            unknown = set(re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", own)) - options()[verb]
            wrong += [f"{number}: {verb} takes no {word}" for word in sorted(unknown)]
    assert wrong == []


def _lines(page: Path) -> list[str]:
    """Lines, one for a command that goes on behind a backslash."""
    return page.read_text().replace("\\\n", " ").splitlines()


def _commands(line: str) -> str:
    """Only what is shown as a command: an indented line, or code between backticks."""
    return line if line.startswith("    ") else "\n".join(re.findall(r"`([^`]*)`", line))


# What stands below tests/ speaks of the options of benches and fuzzers.
@pytest.mark.parametrize("page", [page for page in PAGES if ROOT / "tests" not in page.parents],
                         ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_no_option_is_made_up(page: Path) -> None:
    known = set().union(*options().values()) | FOREIGN | PLUGIN
    wrong = [
        f"{number}: {word}" for number, line in enumerate(_lines(page), 1)
        if not any(FOREIGN_COMMANDS.match(part) for part in (line, *re.findall(r"`([^`]*)`", line)))
        for word in _OPTION.findall(line) if word not in known
    ]  # fmt: skip
    assert wrong == []


def test_the_plugins_options_are_all_told() -> None:
    assert len(PLUGIN) >= 3
    text = (ROOT / "docs" / "pytest.md").read_text()
    assert {name for name in PLUGIN if name not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in links if not (page.parent / target).exists()] == []
    paths = re.findall(r"`((?:harness|tests|programs|ci|docs)/[\w./-]+?)/?`", text)
    built = ("programs/build", "programs/NAME")
    assert [path for path in paths if not path.startswith(built) and not (ROOT / path).exists()] == []


# Made by the program, another project's, or beside the checkout and read by a test that is skipped without it.
_NOT_OURS = {
    "kernel-versions.md", "old_kernels.md", "report.md", "summary.md", "COMPATIBILITY.md", "lz4_Block_format.md",
}  # fmt: skip


def test_every_page_that_is_named_is_there() -> None:
    """Also by comments and docstrings: a source of a rule that nobody can open is none."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [name for name in tracked.stdout.split("\0") if (ROOT / name).is_file()]
    pages = [name for name in files if name.endswith(".md")]
    kinds = (".py", ".md", ".yaml", ".yml", ".toml", ".config", ".c", ".h")
    wrong = [
        f"{name}: {word}" for name in files if name.endswith(kinds)
        for word in re.findall(r"[\w./-]*\w\.md\b", (ROOT / name).read_text(encoding="utf-8", errors="replace"))
        if word.rpartition("/")[2] not in _NOT_OURS
        and not any(f"/{page}".endswith(f"/{word.removeprefix('../').removeprefix('../')}") for page in pages)
    ]  # fmt: skip
    assert wrong == []


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
        new |= {(page.parent / target).resolve() for target in targets if "://" not in target} - reached
    assert {page for page in (ROOT / "docs").glob("*.md") if page not in reached} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_replace_has_run_wild(page: Path) -> None:
    """It would put one text at the head of many lines. Tables and pasted reports align; prose and drawings vary."""
    heads = Counter(line[:32] for line in page.read_text().splitlines() if not re.match(r"\||[ ]{4,}|- ", line))
    assert [head for head, count in heads.items() if count > 3 and head.strip()] == []


@cache
def _parameters(module: str) -> dict[str, set[str]]:
    """Of each function and method of a module, or of a package's modules: its parameters, by its name."""
    path = ROOT / module
    found: dict[str, set[str]] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                found.setdefault(node.name, set()).update(one.arg for one in names)
                found[node.name] |= {"**"} if node.args.kwarg else set()
            elif isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set())
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.setdefault(node.targets[0].id, {"**"})  # another name of something
            elif isinstance(node, ast.ImportFrom):
                found.update({one.asname: {"**"} for one in node.names if one.asname})
    return found


def test_the_seams_that_are_drawn_are_those_of_the_code() -> None:
    text = (ROOT / "docs/architecture.md").read_text().partition("## The seams")[2]
    module, drawn, wrong = "", 0, []
    for line in text.splitlines():
        if place := re.match(r"    # (harness/[\w/.]+)", line):
            module = place[1]
        for name, inside in re.findall(r"(?:def |^    )((?:\w+\.)?\w+)\(([^#]*?)\)(?: ->|$|\s{2,})", line):
            known = _parameters(module).get(name.rpartition(".")[2])
            names = set(re.findall(r"(?:^|, )(\w+)(?=[:=,]|$)", inside)) - {"self", "cls"}
            drawn += 1
            if known is None or not (names <= known or "**" in known):
                wrong.append(f"{module}: {name}: {sorted(names - (known or set()))}")
        if (found := re.match(r"    class (?:\w+\.)?(\w+)", line)) and found[1] not in _parameters(module):
            wrong.append(f"{module}: no class {found[1]}")
    assert wrong == []
    assert drawn >= 15  # and the drawing is there


def _contract(heading: str) -> str:
    text = (ROOT / "docs/contract.md").read_text()
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a cell's `status`", verdict.CellStatus), ("a program's `verdict`", verdict.Verdict),
        ("its `stage`", verdict.Stage), ("a relocation's `outcome`", verdict.Outcome),
        ("its `liveness`", verdict.Liveness), ("`evidence`", verdict.Evidence), ("`start`", verdict.Start),
    ],
)  # fmt: skip
def test_the_contract_has_the_programs_words(row: str, words: type[verdict.Verdict]) -> None:
    line = next(line for line in _contract("Words").splitlines() if line.startswith(f"| {row}"))
    assert set(words) <= set(re.findall(r"`(\w+)`", line))


def test_the_contract_shows_every_name_of_the_schema_and_no_other() -> None:
    schema = json.loads((ROOT / "harness/report/schema.json").read_text())
    shown = set(re.findall(r'"(\w+)":', _contract("`run --json`") + _contract("`inspect --format jsonl`")))
    parts = [schema, *(schema["$defs"][name] for name in (
        "cell", "kernel", "object", "extern", "prog", "verifier", "core_relo", "candidate", "source"
    ))]  # fmt: skip
    names = {name for part in parts for name in part["properties"]}
    assert names - shown == set()
    # Of a line of `inspect`, and of the two sides of a field.
    assert shown - names == {"type", "ok", "core_relos", "skipped", "size", "signed"} - names


def test_the_matrix_explains_each_of_its_keys() -> None:
    head = (ROOT / "kernels.yaml").read_text().partition("\nrepositories:")[0]
    keys = {*config._KERNEL_KEYS, *machine_config._KEYS, *config._GUEST_KEYS, *config._REPOSITORY_KEYS, "exclude"}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", head)] == []


def test_figures_of_the_readme_are_the_benchmarks() -> None:
    """The README's table of speeds repeats tests/bench/README.md: one of the two must not go on alone."""
    readme = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    bench = (ROOT / "tests/bench/README.md").read_text()
    figures = set(re.findall(r"\b\d+\.\d+\b", readme))
    assert len(figures) >= 6
    assert {figure for figure in figures if figure not in bench} == set()


def test_what_the_readme_counts_is_so() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    kernels = config.load_matrix(ROOT / "kernels.yaml").kernels
    tagged = {tag: sum(tag in kernel.tags for kernel in kernels) for tag in ("gate", "full")}
    assert f"names {tagged['full']} Debian kernels" in readme and f"{tagged['gate']} tagged `gate`" in readme
    objects = len(list((ROOT / "programs").glob("*.bpf.c")))
    assert f"{tagged['gate']} kernels × {objects} objects" in readme


def _shown(page: str, first: str) -> str:
    """The indented block of a page whose first line begins so, without its indentation."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"    {first}"))
    block = list(itertools.takewhile(lambda line: not line or line.startswith("    "), lines[start:]))
    return "\n".join(line[4:] for line in block) + "\n"


@pytest.mark.parametrize(
    ("page", "first"),
    [
        ("README.md", "rules:"),
        ("docs/expectations.md", "arches: [x86_64] "),
        ("docs/look-inside.md", "# my.yaml, beside my.bpf.o"),
    ],
)  # fmt: skip
def test_expectations_that_are_shown_are_taken(page: str, first: str) -> None:
    found = expectations_from(config.parse_yaml(_shown(page, first), page), page)
    assert found.rules or found.tests


@pytest.mark.parametrize(
    ("page", "first", "ids"),
    [
        ("docs/backends.md", "kernels:", {"generic-in-vng", "here", "build-host"}),
        ("docs/kernels.md", "- id: ubuntu-4.15", {"ubuntu-4.15"}),
        ("docs/kernels.md", "- id: mainline-6.12", {"mainline-6.12"}),
        ("docs/kernels.md", "- id: mine-no-ioac", {"mine-no-ioac"}),
        ("docs/old-kernels.md", "- id: ubuntu-4.4", {"ubuntu-4.4"}),
    ],
)
def test_kernels_that_are_shown_are_rows(page: str, first: str, ids: set[str], tmp_path: Path) -> None:
    rows = _shown(page, first)
    head = (ROOT / "kernels.yaml").read_text().partition("\nkernels:\n")[0]
    path = tmp_path / "kernels.yaml"
    path.write_text(f"{head}\n{rows if rows.startswith('kernels:') else f'kernels:{chr(10)}{rows}'}")
    assert {kernel.id for kernel in config.load_matrix(path).kernels} == ids
