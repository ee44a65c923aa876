"""Fuzzing: `python -m tests.fuzz TARGET -runs=N` is coverage-guided (atheris); tests/unit/test_fuzz.py runs the same
targets for seconds with hypothesis and once over every finding.
"""
