"""The smallest set of kernels that shows everything: set cover, exactly where that can be done in time. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

_MOST_NODES = 200_000
Element = Hashable


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """`chosen` in the order given; `minimal` when nothing smaller covers, else no less than `at_least` do."""

    chosen: tuple[str, ...]
    minimal: bool
    at_least: int


def smallest(
    shown: Mapping[str, frozenset[Element]], costs: Mapping[str, float], *, most_nodes: int = _MOST_NODES
) -> Smallest:
    """Fewest of `shown`'s names that together show all that any of them shows; of equally few, the cheapest found.

    Branch and bound: the element that the fewest names show is covered by each of them in turn; a branch ends where
    elements that no two names share already ask for as many as the best cover has. After `most_nodes` branches the
    best so far is taken.
    """
    search = _Search(_undominated(shown, costs), costs, most_nodes)
    search.run()
    order = {name: number for number, name in enumerate(shown)}
    finished = search.nodes <= most_nodes
    at_least = len(search.best) if finished else search.bound
    chosen = tuple(sorted(search.best, key=order.__getitem__))
    return Smallest(chosen=chosen, minimal=at_least == len(search.best), at_least=at_least)


def _undominated(
    shown: Mapping[str, frozenset[Element]], costs: Mapping[str, float]
) -> dict[str, frozenset[Element]]:
    """Without names that show no more than another does; of equal ones the cheaper stays, then the first."""
    ranked = sorted(shown, key=lambda name: (-len(shown[name]), costs[name]))
    kept: dict[str, frozenset[Element]] = {}
    for name in ranked:
        if shown[name] and not any(shown[name] <= elements for elements in kept.values()):
            kept[name] = shown[name]
    return kept


class _Search:
    def __init__(
        self, shown: Mapping[str, frozenset[Element]], costs: Mapping[str, float], most_nodes: int
    ) -> None:
        self._shown = shown
        self._costs = costs
        self._most_nodes = most_nodes
        self._by_element: dict[Element, list[str]] = {}
        for name, elements in shown.items():
            for element in elements:
                self._by_element.setdefault(element, []).append(name)
        self.nodes = 0
        self.best: tuple[str, ...] = self._greedy()
        self.bound = self._independent(set(self._by_element))

    def run(self) -> None:
        self._branch((), set(self._by_element))

    def _greedy(self) -> tuple[str, ...]:
        left, chosen = set(self._by_element), []
        while left:
            name = max(self._shown, key=lambda name: (len(self._shown[name] & left), -self._costs[name]))
            chosen.append(name)
            left -= self._shown[name]
        return tuple(chosen)

    def _rank(self, chosen: Sequence[str]) -> tuple[int, float]:
        return len(chosen), sum(self._costs[name] for name in chosen)

    def _independent(self, left: set[Element]) -> int:
        """How many of these elements no two of which any name shows: each of them needs a name of its own."""
        count, taken = 0, set[str]()
        for element in sorted(left, key=lambda element: len(self._by_element[element])):
            names = self._by_element[element]
            if taken.isdisjoint(names):
                count += 1
                taken.update(names)
        return count

    def _branch(self, chosen: tuple[str, ...], left: set[Element]) -> None:
        self.nodes += 1
        if self.nodes > self._most_nodes:
            return
        if not left:
            if self._rank(chosen) < self._rank(self.best):
                self.best = chosen
            return
        if len(chosen) + self._independent(left) > len(self.best):
            return
        hardest = min(left, key=lambda element: len(self._by_element[element]))
        for name in sorted(self._by_element[hardest], key=lambda name: (-len(self._shown[name] & left), name)):
            self._branch((*chosen, name), left - self._shown[name])
