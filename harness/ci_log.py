"""Text for the log of a CI server, which reads what a job prints and takes some of it for commands.

GitHub's runner takes a line that starts with `::`, after blanks, and `##[` anywhere in a line (actions/runner,
ActionCommand.cs); Azure Pipelines takes `##vso[` and TeamCity `##teamcity[`. GitLab's section markers need a carriage
return and an escape, which `harness.report.untrusted` spells out with all other controls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TextIO

# Colour before the colons counts as blank: whoever strips it first would see a command.
_AT_LINE_START = re.compile(r"^((?:\s|\x1b\[[\d;]*m)*):(?=(?:\x1b\[[\d;]*m)*:)", re.MULTILINE)
_ANYWHERE = re.compile(r"#(?=#(?:vso|teamcity)?\[)", re.IGNORECASE)


def plain(text: str) -> str:
    """For people: the first character of what would be a command is spelled out, `\\x3a:error`, `\\x23#[error]`."""
    return spelled(text, colon=r"\x3a", hash_=r"\x23")


def spelled(text: str, *, colon: str, hash_: str) -> str:
    """The same with the escapes of a format, so that who parses it gets the character back."""
    text = _AT_LINE_START.sub(lambda match: match[1] + colon, text)
    return _ANYWHERE.sub(lambda _: hash_, text)


def json(text: str) -> str:
    """A JSON document; `#` stands in strings only, and no line of a document starts with a colon."""
    return _ANYWHERE.sub(r"\\u0023", text) if "##" in text else text


def xml(text: str) -> str:
    """An XML document without comments and CDATA sections: references do wherever these characters may stand."""
    return spelled(text, colon="&#58;", hash_="&#35;")


class SafeStream:
    """A text stream whose every write is `plain`: whatever a command prints, not only its reports."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Each write is taken for the start of a line, which it nearly always is."""
        return self._stream.write(plain(text))

    def writelines(self, texts: Iterable[str]) -> None:
        """One write each."""
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
