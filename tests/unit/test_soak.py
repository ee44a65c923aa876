"""The soak's scales: what grew is said, what settles is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak.restored_cells import MOST_KIB, Weight, growth

FLAT = Weight(
    cells=100, seconds=80.0, rss_kib=85_000, descriptors=6, threads=1, children=0, cache_files=1784, cache_mib=8163,
    temporary=0,
)  # fmt: skip


def test_what_settles_in_the_first_hundred_cells_is_no_growth() -> None:
    weights = [replace(FLAT, cells=20, rss_kib=50_000, descriptors=3), FLAT, replace(FLAT, cells=500)]
    assert growth(weights) == []
    assert growth([FLAT, replace(FLAT, cells=500, rss_kib=FLAT.rss_kib + MOST_KIB)]) == []


@pytest.mark.parametrize("name", ["descriptors", "threads", "children", "cache_files", "temporary"])
def test_one_more_of_anything_is_growth(name: str) -> None:
    was = getattr(FLAT, name)
    assert growth([FLAT, replace(FLAT, cells=500, **{name: was + 1})]) == [f"{name}: {was} -> {was + 1}"]
    assert growth([FLAT, replace(FLAT, cells=500, rss_kib=FLAT.rss_kib + MOST_KIB + 1)])
