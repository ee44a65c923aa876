"""A badge for a README: one small SVG without fonts or links, the cells that passed out of those that were judged."""

from __future__ import annotations

from harness.model.result import RunResult
from harness.model.verdict import CellStatus
from harness.report.view import TROUBLE

_LABEL = "CO-RE"
_GREEN, _RED, _ORANGE, _GREY = "#2da44e", "#cf222e", "#bf8700", "#6e7781"
_CHAR, _PAD, _HEIGHT = 7, 6, 20


def render(run: RunResult) -> str:
    """Green only when every cell that applies was judged and passed."""
    text, colour = _says(run)
    left, right = (len(words) * _CHAR + 2 * _PAD for words in (_LABEL, text))
    style = 'font-family="DejaVu Sans,Verdana,sans-serif" font-size="11" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{_HEIGHT}" role="img" '
        f'aria-label="{_LABEL}: {text}"><title>{_LABEL}: {text}</title>'
        f'<rect width="{left}" height="{_HEIGHT}" fill="#424a53"/>'
        f'<rect x="{left}" width="{right}" height="{_HEIGHT}" fill="{colour}"/>'
        f'<g {style}><text x="{left / 2}" y="14">{_LABEL}</text>'
        f'<text x="{left + right / 2}" y="14">{text}</text></g></svg>\n'
    )


def _says(run: RunResult) -> tuple[str, str]:
    counts = run.count()
    passed, failed = counts[CellStatus.PASSED], counts[CellStatus.FAILED]
    trouble = sum(counts[status] for status in TROUBLE)
    judged = passed + failed + trouble
    if not judged:
        return "nothing judged", _GREY
    colour = _RED if failed else _ORANGE if trouble else _GREEN
    return f"{passed}/{judged} cells", colour
