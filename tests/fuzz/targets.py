"""The fuzz targets: functions of bytes that must return, or raise one of our own errors, within their limits.

`TARGETS` maps a name to its function; `check` runs one and raises `Finding` for everything else.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from harness.guest import btf_load, kconfig, settings, struct_ops, verifier_log
from harness.guest.bpf_object import BpfObject
from harness.guest.btf import KIND_NAMES, Btf
from harness.guest.btf_ext import BtfExt
from harness.guest.core_relo import Targets, relocate
from harness.guest.elf import SHT_REL, Elf
from harness.guest.errors import GuestError
from harness.guest.externs import Externs
from harness.guest.linking import InfoRecords, Linker
from harness.guest.maps import read_maps
from harness.guest.names import essential_name
from harness.guest.prog_types import parse_section
from harness.guest.wire import Decoder, WireError
from tests.fuzz import seeds
from tests.fuzz.patch import patched

# CPU seconds for one small input; the slowest honest one takes a fiftieth of it. Under the fuzzer's own
# instrumentation and a busy machine a factor of ten is left.
MOST_SECONDS = 2.0


_NO_FEATURES = {feature: False for feature, _, _ in btf_load._SANITISE}


class Finding(AssertionError):  # noqa: N818 - what fuzzers call it
    """An input did what no input may do."""


def check(name: str, data: bytes) -> None:
    """Run a target. Raises Finding for any error but ours, and for one that takes too long."""
    started = time.process_time()
    try:
        TARGETS[name](data)
    except (GuestError, WireError):
        pass
    except Exception as error:
        message = f"{name}: {type(error).__name__}: {error}"
        raise Finding(message) from error
    seconds = time.process_time() - started
    if seconds > MOST_SECONDS:
        message = f"{name}: {seconds:.1f} s for {len(data)} bytes"
        raise Finding(message)


def elf(data: bytes) -> None:
    """Everything an ELF holds."""
    found = Elf(data)
    for section in found.sections[:64]:
        with suppress(GuestError):
            found.content(section)
        if section.type == SHT_REL:
            with suppress(GuestError):
                found.relocs(section)
    assert all(symbol.index < len(found.symbols) for symbol in found.symbols)


def opened(data: bytes) -> BpfObject:
    """An object opened and read as far as no kernel is needed: the guest's road up to the first system call."""
    obj = BpfObject(data, "x", None)
    places = btf_load.variable_places(obj)
    externs = Externs(obj)
    maps = read_maps(obj, "x", places)
    struct_ops.StructOps(obj, places)
    settings.apply(obj, maps, places, {})
    if externs.kconfig:
        with suppress(GuestError):
            kconfig.read_text(externs.kconfig, "CONFIG_HZ=250\nCONFIG_BPF=y\nCONFIG_X=\"s\"\n", "little")
        kconfig.map_value(externs.kconfig)
    for prog in obj.entry_progs:
        parse_section(prog.section)
        prog.autoload = True
    _link(obj, maps, externs)
    if obj.btf is not None:
        image = btf_load.BtfImage(obj.btf)
        btf_load.complete(image, obj)
        btf_load.complete_kconfig(image, {extern.name: extern.data_off for extern in externs.kconfig}, 8)
        btf_load.complete_ksyms(image)
        btf_load.sanitise(image, _NO_FEATURES)
    return obj


def _link(obj: BpfObject, maps: list, externs: Externs) -> None:  # type: ignore[type-arg]
    linker = Linker(obj, maps, externs.all)
    infos = InfoRecords(obj) if obj.btf is not None else None
    for prog in obj.entry_progs[:16]:
        with suppress(GuestError):
            linked = linker.link(prog)
            if infos is not None:
                infos.of(linked)


def object_(data: bytes) -> None:
    """Bytes as an object."""
    obj = opened(data)
    if obj.btf is not None:
        relocate(obj, Targets(obj.btf))


def patched_object(recipe: bytes) -> None:
    """A real object with a few places changed."""
    object_(patched(recipe, seeds.objects()))


def core_relo(recipe: bytes) -> None:
    """A damaged object relocated against a damaged kernel: byte 0 says how much of the recipe is the kernel's."""
    cut = 1 + (recipe[0] if recipe else 0) % 32 * 8
    target = Btf(patched(b"\0" + recipe[1:cut], (seeds.target_btf(),)), "target", pointer_size=8)
    obj = BpfObject(patched(recipe[cut:], seeds.objects()), "x", None)
    run = relocate(obj, Targets(target))
    for relo in run.relos:
        relo.as_dict()


def walk(found: Btf) -> None:
    """Everything a BTF holds."""
    for id_ in range(found.start_id, min(found.count, found.start_id + 4096)):
        with suppress(GuestError):
            t = found.type(id_)
            _details(found, t.id)
            found.ids_by_essential_name(essential_name(t.name))
            found.find(t.name, t.kind)
        for question in (found.resolve_size, found.skip_mods, found.skip_mods_and_typedefs):
            with suppress(GuestError):
                question(id_)


def _details(found: Btf, id_: int) -> None:
    t = found.type(id_)
    readers = {
        "int": found.int_data, "array": found.array, "struct": found.members, "union": found.members,
        "enum": found.enumerators, "enum64": found.enumerators, "func_proto": found.params, "datasec": found.datasec,
        "var": found.linkage, "func": found.linkage, "decl_tag": found.component,
    }  # fmt: skip
    reader = readers.get(KIND_NAMES[t.kind])
    if reader is not None:
        reader(t)


def btf(data: bytes) -> None:
    """Bytes as a BTF, and as a module's on top of a kernel's."""
    with suppress(GuestError):
        walk(Btf(data))
    walk(Btf(data, base=_kernel_btf()))


@functools.cache
def _kernel_btf() -> Btf:
    return Btf(seeds.target_btf())


def patched_btf(recipe: bytes) -> None:
    """A real BTF with a few places changed."""
    btf(patched(recipe, (seeds.target_btf(), *seeds.sections(".BTF"))))


def btf_ext(data: bytes) -> None:
    """Bytes as .BTF.ext."""
    found = BtfExt(data)
    size = sum(len(info.records) for infos in (found.func_info, found.line_info, found.core_relos) for info in infos)
    assert size <= len(data) // 8 * 3  # the three subsections may overlap


def patched_btf_ext(recipe: bytes) -> None:
    """A real .BTF.ext with a few places changed."""
    btf_ext(patched(recipe, seeds.sections(".BTF.ext")))


@functools.cache
def _kconfig_externs() -> list[kconfig.Extern]:
    """Of the first object that has any."""
    return next(found for data in seeds.objects() if (found := Externs(BpfObject(data, "x", None)).kconfig))


def kconfig_text(data: bytes) -> None:
    """Bytes as Kconfig text, release and number."""
    text = data.decode("utf-8", "surrogateescape")
    externs = [copy.copy(extern) for extern in _kconfig_externs()]
    kconfig.parse_u64(text)
    number = kconfig.kernel_version(text, f"#1 SMP Debian {text}", text)
    assert 0 <= number <= 0xFFFFFFFF
    kconfig.read_text(externs, text, "little")
    kconfig.map_value(externs)


def log(data: bytes) -> None:
    """Bytes as a verifier log."""
    text = data.decode("utf-8", "replace")
    found = verifier_log.figures(text)
    assert found is None or all(value is None or value >= 0 for value in found.values())
    numbers = verifier_log.visited(data)
    assert len(verifier_log.ranges(numbers)) <= len(numbers) <= len(data)
    last = verifier_log.last_insn(data)
    assert last is None or last in numbers
    verifier_log.is_poison_message(verifier_log.reason(text))


def wire(data: bytes) -> None:
    """Bytes as frames."""
    decoder = Decoder(1 << 20)
    for at in range(0, len(data), 97):
        decoder.feed(data[at : at + 97])
        while decoder.take() is not None:
            pass


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "elf": elf,
    "object": object_,
    "patched_object": patched_object,
    "core_relo": core_relo,
    "btf": btf,
    "patched_btf": patched_btf,
    "btf_ext": btf_ext,
    "patched_btf_ext": patched_btf_ext,
    "kconfig": kconfig_text,
    "verifier_log": log,
    "wire": wire,
}
# Targets whose input is a recipe of tests/fuzz/patch.py
RECIPES = ("patched_object", "core_relo", "patched_btf", "patched_btf_ext")
