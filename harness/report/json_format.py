"""`run --json`, as docs/contract.md has it. Its JSON Schema is `schema.json` beside this file, and shipped."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from harness import ci_log
from harness.model.plain_json import to_json
from harness.model.result import RunResult


def render(run: RunResult) -> str:
    """The run as JSON text, one final newline. Lone surrogates and controls stay `\\u` escapes: the text is pure
    ASCII.
    """
    data = to_json(run)
    cells = data.pop("cells")
    head = json.dumps(data, allow_nan=False).removesuffix("}")
    # A line for each cell: greppable, and many times faster than indenting (40 kernels x 200 programs make 100 MB).
    body = ",\n".join(json.dumps(cell, allow_nan=False) for cell in cells)
    return ci_log.json(f'{head}, "cells": [\n{body}\n]}}\n')


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of what `render` writes."""
    text = files("harness.report").joinpath("schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]
