"""A sample of Debian's own BPF objects through both loaders on this machine's kernel; the whole corpus runs on demand
(docs/corpus.md).
"""

from __future__ import annotations

import pytest

from harness.errors import CorematrixError
from harness.store import Store
from tests.corpus.fetch import fetch_all
from tests.corpus.run import choose, run_local
from tests.support.real_libbpf import needs_bpf

SAMPLE = 24
AT_LEAST = 130


@needs_bpf
@pytest.mark.network
def test_both_loaders_agree_on_a_sample_of_debians_objects() -> None:
    with Store.default() as store:
        try:
            objects = fetch_all(store)
        except CorematrixError as error:
            pytest.skip(f"the corpus cannot be fetched: {error.message}")
        assert len(objects) >= AT_LEAST
        chosen = [(f"{one.name}@{one.sha256[:8]}", store.blob(one.sha256)) for one in choose(objects, SAMPLE, [])]
        compared = list(run_local([(name, path) for name, path in chosen if path is not None], None))
    assert len(compared) == SAMPLE
    assert {one.name: one.trouble for one in compared if one.trouble} == {}
    assert {one.name: one.rows for one in compared if one.rows} == {}
    assert sum(one.relocations for one in compared) > 0, "a sample without relocations would prove nothing"
