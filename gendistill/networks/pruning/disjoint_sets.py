"""Elements in sets that are merged (union-find, Tarjan 1975)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Element = TypeVar("Element", bound=Hashable)


class DisjointSets(Generic[Element]):
    """Each element is in one set, at first alone. `sets[element]` is the same for all elements of one set."""

    def __init__(self, elements: Iterable[Element] = ()) -> None:
        self._parents = {element: element for element in elements}

    def __contains__(self, element: object) -> bool:
        return element in self._parents

    def __iter__(self) -> Iterator[Element]:
        return iter(self._parents)

    def __getitem__(self, element: Element) -> Element:
        parents = self._parents
        while (parent := parents[element]) != element:
            parents[element] = element = parents[parent]  # halves the path for the next search
        return element

    def add(self, element: Element) -> None:
        self._parents.setdefault(element, element)

    def merge(self, a: Element, b: Element) -> None:
        self._parents[self[b]] = self[a]

    def subsets(self) -> list[set[Element]]:
        found: dict[Element, set[Element]] = {}
        for element in self._parents:
            found.setdefault(self[element], set()).add(element)
        return list(found.values())
