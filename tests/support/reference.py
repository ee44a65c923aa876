"""docs/commands.md, made from the command line's own parsers: `python -m tests.support.reference` writes it.

tests/unit/test_docs.py holds the page against them, so that neither can change alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from harness import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
_HEAD = """\
# Commands

Every verb and every option, as `corematrix VERB --help` has them. This page is made from the program
(`python -m tests.support.reference`); what the verbs are for and how they go together is in the [README](../README.md).
"""


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Each verb's parser, with its options."""
    found = {}
    for name in cli.VERBS:
        parser = argparse.ArgumentParser(prog=f"corematrix {name}", description=cli.VERBS[name])
        cli._module(name).add_arguments(parser)
        found[name] = parser
    return found


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All that can be said to a verb, `--help` and a choice of sub-verbs left out."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        if not isinstance(action, argparse._HelpAction):
            yield action


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A verb's own verbs (`kernels list`)."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def page() -> str:
    """The whole page."""
    lines = [_HEAD]
    for name, parser in verbs().items():
        lines += _section(f"## corematrix {name}", cli.VERBS[name], parser)
        for own, inner in below(parser).items():
            lines += _section(f"### corematrix {name} {own}", inner.description or "", inner)
    lines += ["## Exit status", "", "| | |", "|---|---|"]
    lines += [f"| {number} | {text} |" for number, text in _statuses()]
    return "\n".join(lines) + "\n"


def _section(title: str, what: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (title, "", what[:1].upper() + what[1:] + ".", "") if what else (title, "")
    rows = [f"| {_names(action)} | {_help(action, parser)} |" for action in actions(parser)]
    if rows:
        yield from ("| | |", "|---|---|", *rows, "")


def _names(action: argparse.Action) -> str:
    """`-k GLOB`, `--kernel GLOB`; of a positional its name."""
    shown = argparse.ArgumentParser()._get_formatter()._format_args(action, _metavar(action)) if _takes(action) else ""
    if not action.option_strings:
        return f"`{shown}`"
    return ", ".join(f"`{f'{name} {shown}'.strip()}`" for name in action.option_strings).replace("|", "\\|")


def _takes(action: argparse.Action) -> bool:
    return action.nargs != 0


def _metavar(action: argparse.Action) -> str:
    if action.choices and not action.metavar:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _statuses() -> Iterator[tuple[str, str]]:
    for line in cli._EXIT_STATUSES.splitlines()[1:]:
        number, _, text = line.strip().partition(" ")
        yield number, text.strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
