"""Finding BPF objects in other files, and choosing a sample."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

from elftools.elf.elffile import ELFFile

from tests.corpus.elf_find import find_objects, object_size
from tests.corpus.fetch import CorpusObject
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
