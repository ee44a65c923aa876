"""Facts in, results out: pure functions, tested from recorded facts. See docs/facts.md and docs/expectations.md."""

from harness.judge.classify import classify, lost, not_applicable
from harness.judge.expectations import left_out
from harness.judge.expectations import review as review_rules

__all__ = ["classify", "left_out", "lost", "not_applicable", "review_rules"]
