"""README, docs/ and the rest of the prose against the program: options, verbs, formats, files and links exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from harness import report
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
