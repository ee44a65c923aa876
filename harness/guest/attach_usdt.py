"""USDT probes: places in a binary that its notes name (`.note.stapsdt`), each attached to as a uprobe.

As libbpf's usdt.c reads them: a note gives the probe's address, the address its base had when the note was written
(prelink moves a binary, and `.stapsdt.base` tells by how much), and a semaphore that the kernel counts up while
somebody is attached (the uprobe PMU's ref_ctr_offset, 4.20). What a program reads of its arguments comes from a map
that libbpf fills when it attaches; without that map libbpf does not, and so it is said here.
"""

from __future__ import annotations

import struct

from .attach_perf import has_semaphores, uprobe_event
from .attach_uprobe import find_binary, stand_in
from .attempt import Gone, NotAttempted
from .elf import SHT_NOBITS, Elf
from .errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .attempt import Attempt

_NT_STAPSDT, _OWNER = 3, b"stapsdt\0"
_MAPS = frozenset({"__bpf_usdt_specs", "__bpf_usdt_ip_to_spec_id"})  # usdt.bpf.h's
_NO_MAPS = "the object has no maps for USDT (bpf/usdt.bpf.h): libbpf attaches nothing of it"


class Probe:
    """One place: `offset` in the file, `semaphore` its counter's offset there, or 0."""

    __slots__ = ("offset", "semaphore")

    def __init__(self, offset: int, semaphore: int) -> None:
        self.offset = offset
        self.semaphore = semaphore


def usdt(attempt: Attempt) -> Callable[[], None]:
    """Attach at each place of the probe `usdt/BINARY:PROVIDER:NAME` names. Raises Gone, NotAttempted, OSError."""
    if _MAPS - attempt.maps:
        raise Gone(_NO_MAPS)
    binary, _, rest = attempt.wanted().partition(":")
    provider, colon, name = rest.partition(":")
    if not colon:
        raise NotAttempted("the section names no probe (usdt/BINARY:PROVIDER:NAME)")
    path = find_binary(binary)
    if path is None:
        path, offsets = stand_in(attempt, "%s is not here" % binary)
        return uprobe_event(attempt.fd, path, offsets[0], False)
    found = _found(path, provider, name)
    if any(probe.semaphore for probe in found) and not has_semaphores():
        raise Gone("probe %s:%s has a semaphore, and this kernel counts none (4.20)" % (provider, name))
    return _attached(attempt.fd, path, found)


def _found(path: str, provider: str, name: str) -> list[Probe]:
    try:
        with open(path, "rb") as file:
            found = list(probes(file.read(), provider, name))
    except GuestError as error:
        raise Gone("%s is no ELF file whose notes can be read: %s" % (path, error)) from None
    if not found:
        raise Gone("probe gone: the notes of %s have no %s:%s" % (path, provider, name))
    return found


def _attached(prog: int, path: str, found: list[Probe]) -> Callable[[], None]:
    """All of them or none."""
    done: list[Callable[[], None]] = []

    def detach() -> None:
        for undo in reversed(done):
            undo()

    try:
        for probe in found:
            detach_one = uprobe_event(prog, path, probe.offset, False, probe.semaphore)
            done.append(detach_one)
    except OSError:
        detach()
        raise
    return detach


def probes(data: bytes, provider: str, name: str) -> Iterator[Probe]:
    """The places of one probe in a binary's bytes. Raises GuestError for what is no ELF file, or a broken one."""
    elf = Elf(data, "the binary")
    notes, base = elf.section(".note.stapsdt"), elf.section(".stapsdt.base")
    if notes is None:
        return
    order, word = ("<" if elf.byteorder == "little" else ">"), ("Q" if elf.is64 else "I")
    addresses = struct.Struct(order + 3 * word)
    for kind, owner, desc in _notes(elf.content(notes), order):
        if kind != _NT_STAPSDT or owner != _OWNER or len(desc) < addresses.size:
            continue
        place, then, semaphore = addresses.unpack_from(desc)
        if desc[addresses.size :].split(b"\0")[:2] != [provider.encode(), name.encode()]:
            continue
        moved = base.addr - then if base is not None and then else 0
        yield Probe(_in_file(elf, place + moved), _in_file(elf, semaphore + moved) if semaphore else 0)


def _notes(data: bytes, order: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Type, owner with its NUL, and content of each note; lengths are padded to 4."""
    at = 0
    while at + 12 <= len(data):
        owner, desc, kind = struct.unpack_from(order + "III", data, at)
        start = at + 12 + (owner + 3 & ~3)
        yield kind, data[at + 12 : at + 12 + owner], data[start : start + desc]
        at = start + (desc + 3 & ~3)


def _in_file(elf: Elf, address: int) -> int:
    """Where in the file an address lies."""
    for section in elf.sections:
        if section.addr and section.type != SHT_NOBITS and 0 <= address - section.addr < section.size:
            return address - section.addr + section.offset
    raise Gone("its notes name an address (0x%x) that is in no section of it" % address)
