"""`corematrix run` whose guests are real, but for one byte of what libbpf is heard to say: `python -m
tests.support.tampered_run run ...`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from harness import cli
from harness.session import JudgeRequest, Session
from tests.support.both import other_byte

_judge = Session.judge


def _tampered(
    self: Session, request: JudgeRequest, data: bytes, on_progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    facts = _judge(self, request, data, on_progress)
    if request.loader == "libbpf":
        other_byte(facts)
    return facts


if __name__ == "__main__":
    Session.judge = _tampered  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
