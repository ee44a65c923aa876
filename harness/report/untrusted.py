"""Text that came out of a guest or an object file, made harmless for where it goes.

Names, source lines, verifier logs and console tails are written by whoever wrote the object or runs in the guest: a
terminal escape, a `</script>`, a Markdown table bar or a byte XML forbids must come out as text.
"""

from __future__ import annotations

import html
import re
import unicodedata

from harness import printable

lines, line = printable.lines, printable.line
# Brackets broken, parentheses need no escape; `-` and `+` mean something only where a line begins, which text never
# does.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~<>@&]|(?<=:)/(?=/)|(?<=www)\.)")


def xml(text: str) -> str:
    """For XML 1.0 text and attributes: what XML cannot hold is spelled out, the rest escaped."""
    return html.escape(lines(text), quote=True)


def markup(text: str) -> str:
    """For HTML text and attributes."""
    return html.escape(lines(text), quote=True)


def markdown(text: str) -> str:
    """For GitHub Markdown outside of code: every character that could mean something is escaped; one line."""
    return _MARKDOWN.sub(r"\\\1", line(text)).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def code(text: str) -> str:
    """Code within Markdown, also in a table: HTML and escapes, since no fence holds both bar and backslash."""
    shown = markdown(text.strip())
    return f"<code>{shown}</code>" if shown else ""


def width(text: str) -> int:
    """Columns on a terminal: wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def fit(text: str, columns: int) -> str:
    """`text` cut to at most `columns`, with an ellipsis where something was left out."""
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept + char) > columns - 1:
            break
        kept += char
    return f"{kept}…"
