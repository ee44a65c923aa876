"""YAML files -> model objects: kernels.yaml here, and the file beside an object for `harness.judge`. The one home of
yaml.

Whatever is wrong in a file is a ConfigError before anything runs: unknown and repeated keys, bad globs, two kernels
of one identity.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with the same key twice (YAML 1.2, section 3.2.1.3: keys are unique)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name in seen:
                problem = f"key {name!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(name))
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """What a YAML file holds. ConfigError with file, line and column when it cannot be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read: {error}"
        raise ConfigError(message) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> Any:
    """The same from text; `file` is what messages call it."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        message = f"{file}{place}: {error.problem or error.context or 'not YAML'}"
        raise ConfigError(message) from error
    except (yaml.YAMLError, RecursionError) as error:
        message = f"{file}: not YAML: {error}"
        raise ConfigError(message) from error
