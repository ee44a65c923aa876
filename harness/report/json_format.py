"""`run --json`: contract.md's JSON. Its JSON Schema is `schema.json` beside this file, shipped with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from harness.model.result import RunResult, to_json


def render(run: RunResult) -> str:
    """The run as JSON text, one final newline. Lone surrogates and controls stay `\\u` escapes: the text is pure
    ASCII.
    """
    return json.dumps(to_json(run), indent=1, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of what `render` writes."""
    text = files("harness.report").joinpath("schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]
