"""BTF from elsewhere in place of a kernel's: a file, a BTFHub tree, a URL, or made from debug information by pahole.

Any kernel may have one (`btf:` in kernels.yaml), kernels without BTF of their own must, to be judged. What is known
about its being the kernel's goes into the provenance; what is known to be another kernel's is refused (`btf_check`).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import proc
from harness.apt import deb
from harness.errors import FetchError, UsageError
from harness.kernels import btf_check, identify, vmlinux
from harness.kernels.btf_check import Finding
from harness.kernels.decompress import DecompressError, decompress
from harness.kernels.path_source import fetched
from harness.model.kernel import Kernel
from harness.model.sources import BtfSource, DwarfBtf, FileBtf, RemoteBtf, TreeBtf
from harness.store import Store

OnEvent = Callable[[str], None]
# A BTF that was not deduplicated has been seen at 27 MB; no limit of libbpf's is known.
_MAX_BTF = 256 << 20
_PAHOLE_SECONDS = 1800.0
_REMEDY = "give raw BTF, an ELF file with .BTF, or a .btf.tar.xz of BTFHub"
_DEBUG_FILE = deb.glob_filter(("usr/lib/debug/boot/vmlinux-*", "usr/lib/debug/lib/modules/*/vmlinux"))


@dataclass(frozen=True, kw_only=True)
class _Given:
    """BTF as it was found: `name` for messages, what was found out on the way."""

    data: bytes
    name: str
    findings: tuple[Finding, ...] = ()


def attach(kernel: Kernel, source: BtfSource, store: Store, on_event: OnEvent, *, offline: bool = False) -> Kernel:
    """The kernel with this BTF in place of its own. UsageError when it is another kernel's; FetchError (also for what
    is not in the cache, when `offline`), CacheError.
    """
    given = _FINDERS[type(source)](source, kernel, store, None if offline else on_event)
    btf_sha256 = store.put_bytes(given.data)
    findings = [*given.findings, *_compared(kernel, given, store, btf_sha256)]
    provenance = {
        "kind": source.kind, "name": given.name, "sha256": btf_sha256,
        "verified": any(finding.proves for finding in findings),
        "findings": [finding.text for finding in findings],
    }  # fmt: skip
    return replace(
        kernel, btf=store.blob(btf_sha256), btf_sha256=btf_sha256, btf_external=True,
        source={**kernel.source, "btf": provenance},
    )  # fmt: skip


def note(kernel: Kernel, guest_btf: Mapping[str, Any]) -> str | None:
    """What a report should say of a kernel's external BTF, None when it has none. `guest_btf` is what the guest found
    (`guest.btf` of the facts). UsageError when the guest knows it to be another kernel's.
    """
    if not kernel.btf_external:
        return None
    known = kernel.source["btf"]
    counts = guest_btf.get("kallsyms")
    last = None if counts is None else btf_check.by_kallsyms(counts, known["name"])
    texts = [*known["findings"], *([] if last is None else [last.text])]
    verified = known["verified"] or (last is not None and last.proves)
    state = "verified" if verified else "unverified"
    reasons = "; ".join(texts) or "nothing to compare it with"
    return f"external BTF {known['name']}: {state}: {reasons}"


def _compared(kernel: Kernel, given: _Given, store: Store, sha256: str) -> list[Finding]:
    """What the kernel's own BTF says of it. The comparison takes seconds: done once for each pair."""
    arch = kernel.spec.arch
    if kernel.btf is None or kernel.btf_sha256 is None:
        btf_check.open_btf(given.data, given.name, arch.byteorder)
        return []
    if kernel.btf_sha256 == sha256:
        return [Finding(proves=True, text="it is the kernel's own BTF")]
    name = hashlib.sha256(f"{kernel.btf_sha256} {sha256}".encode()).hexdigest()[:32]
    known = store.entry("btf-compared", name)
    if known is None:
        own = btf_check.open_btf(kernel.btf.read_bytes(), "the kernel's own BTF", arch.byteorder)
        opened = btf_check.open_btf(given.data, given.name, arch.byteorder)
        known = {"text": btf_check.by_own_btf(opened, own).text}
        store.put_entry("btf-compared", name, known)
    return [Finding(proves=True, text=str(known["text"]))]


def _from_file(source: FileBtf, kernel: Kernel, _store: Store, _on_event: OnEvent | None) -> _Given:
    return _read(source.file, kernel)


def _from_url(source: RemoteBtf, kernel: Kernel, store: Store, on_event: OnEvent | None) -> _Given:
    url = source.remote.url
    name = url.rpartition("/")[2]
    found = btf_check.by_name(name, kernel.release)
    path = fetched(source.remote, store, on_event or (lambda _line: None), offline=on_event is None)
    data = _raw_btf(path.read_bytes(), name)
    return _Given(data=data, name=url, findings=() if found is None else (found,))


def _from_tree(source: TreeBtf, kernel: Kernel, _store: Store, _on_event: OnEvent | None) -> _Given:
    """BTFHub's names: distro/version/arch/RELEASE.btf.tar.xz, the architecture as `uname -m` has it, or Debian."""
    arch = kernel.spec.arch
    names = (f"{kernel.release}.btf.tar.xz", f"{kernel.release}.btf")
    places = [
        path
        for word in dict.fromkeys((arch.uname, arch.name, arch.debian))
        for name in names
        for path in sorted(source.tree.glob(f"{source.distro}/{source.version}/{word}/{name}"))
    ]
    where = f"{source.tree}/{source.distro}/{source.version}/{arch.uname}/{names[0]}"
    if not places:
        message = f"{kernel.spec.id}: no BTF of {kernel.release} in the tree ({where})"
        raise UsageError(message, remedy="make it from the kernel's debug package with `btf: {dwarf: ...}`")
    if len(places) > 1:
        message = f"{kernel.spec.id}: several BTF of {kernel.release}: {', '.join(map(str, places))}"
        raise UsageError(message, remedy="choose with `distro` and `version`")
    return _read(places[0], kernel)


def _from_dwarf(source: DwarfBtf, kernel: Kernel, store: Store, on_event: OnEvent | None) -> _Given:
    """pahole's BTF of a vmlinux; kept by the file's hash and pahole's version."""
    path = source.dwarf
    remedy = "give a vmlinux with DWARF, or the debug package that holds it; pahole is in Debian's package of that name"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    version = proc.run(["pahole", "--version"], remedy=remedy).text.strip()
    name = hashlib.sha256(f"{digest} {version}".encode()).hexdigest()[:32]
    known = store.entry("pahole", name)
    made = store.blob(str(known["sha256"])) if known else None
    if known is None or made is None:
        if on_event is None:
            message = f"{kernel.spec.id}: no BTF has been made of {path} yet"
            raise FetchError(message, remedy=f"corematrix kernels fetch -k {kernel.spec.id}")
        on_event(f"{kernel.spec.id}: pahole makes BTF from {path.name}")
        known = _run_pahole(path, store, remedy)
        store.put_entry("pahole", name, known)
        made = store.blob(known["sha256"])
    assert made is not None
    assert kernel.vmlinuz is not None
    ours = identify.build_id(vmlinux.unwrap(kernel.vmlinuz.read_bytes(), str(kernel.vmlinuz)))
    findings = (
        btf_check.by_name(path.name, kernel.release) if known["build_id"] is None else None,
        btf_check.by_build_id(known["build_id"], ours, str(path)),
    )
    kept = tuple(finding for finding in findings if finding is not None)
    return _Given(data=made.read_bytes(), name=f"{path} ({version})", findings=kept)


def _run_pahole(path: Path, store: Store, remedy: str) -> dict[str, Any]:
    with store.scratch() as directory:
        debug_file = path
        if path.suffix in (".deb", ".ddeb"):
            debug_file = directory / "vmlinux"
            debug_file.write_bytes(_from_package(path))
        out = directory / "vmlinux.btf"
        proc.run(
            ["pahole", f"--btf_encode_detached={out}", debug_file], timeout=_PAHOLE_SECONDS, remedy=remedy
        )
        build_id = identify.build_id(debug_file.read_bytes())
        if not out.is_file():
            message = f"{path}: pahole made no BTF of it"
            raise UsageError(message, remedy=remedy)
        return {"sha256": store.put_file(out), "build_id": build_id}


def _from_package(path: Path) -> bytes:
    found = [member for member in deb.scan(path, _DEBUG_FILE).values() if member.data is not None]
    if len(found) != 1 or found[0].data is None:
        message = f"{path}: {len(found)} vmlinux in this package, one was expected"
        raise UsageError(message, remedy="give the package with the kernel's debug information (linux-image-...-dbg)")
    return found[0].data


def _read(path: Path, kernel: Kernel) -> _Given:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    found = btf_check.by_name(path.name, kernel.release)
    return _Given(data=_raw_btf(data, str(path)), name=str(path), findings=() if found is None else (found,))


def _raw_btf(data: bytes, name: str) -> bytes:
    """Raw BTF out of what a file may hold. UsageError."""
    if data.startswith(b"\xfd7zXZ\x00"):
        data = _unpacked(data, name)
    if data.startswith(b"\x7fELF"):
        section = vmlinux.elf_section(data, ".BTF")
        if section is None:
            message = f"{name}: an ELF file without .BTF"
            raise UsageError(message, remedy="if it has DWARF, say `btf: {dwarf: ...}`")
        return section
    return data


def _unpacked(data: bytes, name: str) -> bytes:
    """The one file in a .tar.xz."""
    try:
        with tarfile.open(fileobj=io.BytesIO(decompress(data))) as archive:
            members = [member for member in archive if member.isfile()]
            file = archive.extractfile(members[0]) if len(members) == 1 and members[0].size <= _MAX_BTF else None
            if file is not None:
                return file.read()
    except (tarfile.TarError, DecompressError, EOFError, OSError) as error:
        message = f"{name}: not a readable archive: {error}"
        raise UsageError(message, remedy=_REMEDY) from error
    message = f"{name}: expected an archive of one BTF file, found {len(members)}"
    raise UsageError(message, remedy=_REMEDY)


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be read: {error.strerror}", remedy="correct `btf` in kernels.yaml")


# None in place of who hears of downloads and of pahole: neither may happen.
_FINDERS: Mapping[type, Callable[[Any, Kernel, Store, OnEvent | None], _Given]] = {
    FileBtf: _from_file, TreeBtf: _from_tree, DwarfBtf: _from_dwarf, RemoteBtf: _from_url,
}  # fmt: skip
