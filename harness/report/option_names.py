"""How close a config option's name is to the names a relocation is about. No more than a hint, and called one.

Words are weighed by how rare they are among the options compared: that both hold NUMA says much, that both hold NET
little. `cgrp` and CGROUP, `stats` and STATISTICS count in part. An option is close when most of its words are in the
names, or when it is by far the closest of all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

# Held against what the kernel's own source says by tests/unit/test_config_suspects.py.
CLOSE, CLEARLY_CLOSEST, _MARGIN = 0.5, 0.3, 1.5
_WORD = re.compile(r"[a-z]+|\d+")
_LEAST_PREFIX = 4
_TYPES_COUNT = 0.75  # a type both kernels have says less than the member one of them lacks
# Words that say how an option is meant, not what it is about.
_USUAL = frozenset(
    {"x86", "arm64", "arm", "arch", "have", "has", "enable", "enabled", "support", "supports", "generic", "default",
     "core", "common"}
)  # fmt: skip
_USUAL_COUNT = 0.25


class OptionNames:
    """The options to choose from, `CONFIG_...` each."""

    def __init__(self, options: Collection[str]) -> None:
        self._words = {option: _named(option) for option in options}
        counts = Counter(word for parts in self._words.values() for word in set(parts))
        self._weight = {
            word: math.log(1 + len(options) / count) * (_USUAL_COUNT if word in _USUAL else 1.0)
            for word, count in counts.items()
        }

    def close(self, members: Collection[str], types: Collection[str] = ()) -> list[str]:
        """The options that are close to the names of `members` and of the `types` that hold them, the closest first."""
        scored = self.scored(members, types)
        best = scored[0][0] if scored else 0.0
        # NUMA_BALANCING_DEFAULT_ENABLED is no rival of NUMA_BALANCING: it cannot be on without it.
        rivals = (score for score, option in scored[1:] if not option.startswith(f"{scored[0][1]}_"))
        next_best = next(rivals, 0.0)
        clear = best >= CLEARLY_CLOSEST and best >= _MARGIN * next_best
        return [option for score, option in scored if score >= CLOSE or (clear and score == best)]

    def scored(self, members: Collection[str], types: Collection[str]) -> list[tuple[float, str]]:
        """(closeness, option), 0 to 1, the closest first; those with nothing in common left out."""
        names = [(words(name), 1.0) for name in members] + [(words(name), _TYPES_COUNT) for name in types]
        found = ((self._closeness(parts, names), option) for option, parts in self._words.items())
        return sorted(((score, option) for score, option in found if score), key=lambda item: (-item[0], item[1]))

    def _closeness(self, own: Sequence[str], names: Sequence[tuple[Sequence[str], float]]) -> float:
        """The share of the option's words that the names hold, less when the names are about much else."""
        total = sum(self._weight[word] for word in own)
        covered = sum(
            self._weight[word] * max((count * likeness(word, other) for parts, count in names for other in parts),
                                     default=0.0)
            for word in own
        )  # fmt: skip
        if not covered:
            return 0.0
        best = max(
            (count * sum(max(likeness(word, other) for word in own) for other in parts) / len(parts)
             for parts, count in names if parts),
            default=0.0,
        )  # fmt: skip
        return covered / total * (0.5 + 0.5 * best)


def _named(option: str) -> list[str]:
    parts = option.removeprefix("CONFIG_").lower().split("_")
    return [word for part in parts for word in ([part] if part in _USUAL else words(part))]


def words(name: str) -> list[str]:
    """`numa_group2` -> numa, group, 2."""
    return _WORD.findall(name.lower())


def likeness(one: str, other: str) -> float:
    """1 for the same word, also as plural; less for a beginning (`stat`, `statistics`) or an abbreviation (`cgrp`)."""
    if one == other or one.rstrip("s") == other.rstrip("s"):
        return 1.0
    short, long = sorted((one, other), key=len)
    if long.startswith(short):
        return 0.7 if len(short) >= _LEAST_PREFIX else 0.0
    if len(short) < _LEAST_PREFIX - 1 or short[0] != long[0] or len(long) > 2 * len(short):
        return 0.0
    letters = iter(long)
    return 0.6 if all(letter in letters for letter in short) else 0.0
