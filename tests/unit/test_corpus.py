"""Finding BPF objects in other files, and choosing a sample."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

from elftools.elf.elffile import ELFFile

from tests.corpus.campaign import Campaign, read, table
from tests.corpus.compared import Compared, summary
from tests.corpus.elf_find import find_objects, object_size
from tests.corpus.fetch import CorpusObject
from tests.corpus.guests import short_of_memory
from tests.corpus.run import choose
from tests.support.clang import compile_bpf

ONE = 'SEC("xdp") int one(void *ctx) { return 2; }'
TWO = 'static volatile int x; SEC("tc") int two(void *ctx) { return x; }'


def test_objects_are_found_whole_wherever_they_lie() -> None:
    one, two = compile_bpf(ONE), compile_bpf(TWO)
    blob = b"\x7fELF" + b"\0" * 77 + one + b"\x7fELF junk" + b"\xff" * 13 + two + b"\0" * 5
    found = list(find_objects(blob))
    assert [len(data) for data in found] == [object_size(one, 0), object_size(two, 0)]
    for data, whole in zip(found, (one, two), strict=True):
        assert whole.startswith(data)
        names = [section.name for section in ELFFile(io.BytesIO(data)).iter_sections()]
        assert names == [section.name for section in ELFFile(io.BytesIO(whole)).iter_sections()]
        for section in ELFFile(io.BytesIO(data)).iter_sections():
            assert section["sh_type"] == "SHT_NOBITS" or section["sh_offset"] + section["sh_size"] <= len(data)


def test_a_cut_object_and_another_machine_are_not_objects() -> None:
    one = compile_bpf(ONE)
    assert list(find_objects(one[: object_size(one, 0) - 1])) == []
    assert list(find_objects(one[:18] + b"\x3e\x00" + one[20:])) == []  # EM_X86_64
    assert list(find_objects(b"\x7fELF")) == []


def test_the_other_byte_order_is_found_too() -> None:
    big = compile_bpf(ONE, target="bpfeb")
    assert len(list(find_objects(b"x" * 9 + big))) == 1


def test_a_sample_spreads_over_the_whole_list() -> None:
    first = CorpusObject(
        name="0", sha256=hashlib.sha256(b"").hexdigest(), size=0, package="p", version="1", suite="sid", file="f"
    )
    objects = [replace(first, name=str(number)) for number in range(100)]
    assert [one.name for one in choose(objects, 4, [])] == ["0", "25", "50", "75"]
    assert len(choose(objects, 400, [])) == 100
    assert [one.name for one in choose(objects, None, ["9?"])] == [str(number) for number in range(90, 100)]


def test_a_long_comparison_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    good = Compared(
        name="one", kernel="k", relocations=3, outcomes={"poisoned": 1, "resolved": 2}, judge="libbpf 1.1.2"
    )
    bad = Compared(name="two", kernel="k", rows=[{"what": "prog"}])
    first = Campaign(path)
    assert first.wanted("k", "one")
    for one in (good, bad):
        first.add(one)
    with path.open("a") as out:
        out.write('{"name": "three", "ker')  # killed while it wrote
    second = Campaign(path)
    assert [second.wanted("k", name) for name in ("one", "two", "three")] == [False, False, True]
    assert second.wanted("another", "one")
    second.add(replace(good, name="three"))
    assert read(path) == [good, bad, replace(good, name="three")]
    assert [Campaign(path, again=True).wanted("k", name) for name in ("one", "two")] == [False, True]
    assert not Campaign(path, seconds=0).wanted("k", "four")


def test_the_newest_answer_counts_and_the_table_says_what_came_of_all(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    campaign = Campaign(path)
    campaign.add(Compared(name="one", kernel="k", rows=[{"what": "prog"}]))
    campaign.add(Compared(name="two", kernel="k", trouble="lost"))
    campaign.add(Compared(name="one", kernel="k", memory_mb=1536, relocations=2, outcomes={"poisoned": 2}))
    cells = table(Campaign(path).results()).splitlines()[-1].strip("| ").split(" | ")
    assert cells[3:9] == ["2", "1", "0", "1", "1", "2 (2)"]


def test_what_was_foretold_wrongly_is_asked_for_again_and_told(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    row = {"prog": "p", "field": "task_struct.state", "kernel": "live", "predicted": "eliminated"}
    wrong = Compared(name="one", kernel="k", liveness={"live": 3}, foretold=3, foretold_wrongly=[row])
    Campaign(path).add(wrong)
    assert Campaign(path, again=True).wanted("k", "one")
    assert table([wrong]).splitlines()[-1].endswith("| 3 (1) |")
    assert "one: foretold wrongly: " in summary([wrong])
    assert "foretold: 3, wrongly: 1" in summary([wrong])


def test_short_memory_is_named() -> None:
    maps = [{"name": "good", "errno": None}, {"name": "large", "errno": 12}]
    facts = {"loader": "libbpf", "maps": maps, "progs": [{"name": "p", "errno": 22}], "object_error": None}
    assert short_of_memory(facts) == "libbpf: map large: ENOMEM"
    assert short_of_memory({**facts, "maps": maps[:1]}) is None
    assert (
        short_of_memory({**facts, "maps": [], "object_error": {"errno": 12, "message": "no room"}}) == "libbpf: no room"
    )
