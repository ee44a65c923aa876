"""`corematrix inspect`: the verb's doors; the work is harness.inspection's."""

from __future__ import annotations

from harness.inspection import add_arguments, run

__all__ = ["add_arguments", "run"]
