"""Kernels built from a tree: base configuration, fragments, and BTF (`kind: tree`).

Built with the tree's own make in a directory of ours (`O=`), so the tree stays as it is; a tree that has been built
in place must be cleaned first (make says so). virtme-ng's `vng --build` is make, too, but writes .config and objects
into the tree. What is built is kept by the state of the tree and the configuration that came out of its own
`olddefconfig`; the build directory stays, so that a small change is a short build, and a new variant's begins as a
copy of another's (`build_seed.py`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.apt.repository import AptOptions
from harness.errors import FetchError, InfrastructureError, UsageError
from harness.kernels import build_seed, keep, modules, path_source, unpinned
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock
from harness.model.sources import TreeSource
from harness.store import Store

select = unpinned.select

OnEvent = Callable[[str], None]
_DEFAULT = AptOptions()


@dataclass(frozen=True, kw_only=True)
class _Make:
    """How a tree makes an architecture: its ARCH, the target to make and the file that comes of it, and the prefix of
    the cross compiler (Debian's names).
    """

    arch: str
    target: str
    file: str
    cross: str


_MAKE: Mapping[str, _Make] = {
    "x86_64": _Make(arch="x86", target="bzImage", file="arch/x86/boot/bzImage", cross="x86_64-linux-gnu-"),
    "arm64": _Make(arch="arm64", target="Image", file="arch/arm64/boot/Image", cross="aarch64-linux-gnu-"),
    "riscv64": _Make(arch="riscv", target="Image", file="arch/riscv/boot/Image", cross="riscv64-linux-gnu-"),
    "s390x": _Make(arch="s390", target="bzImage", file="arch/s390/boot/bzImage", cross="s390x-linux-gnu-"),
    "ppc64le": _Make(arch="powerpc", target="vmlinux", file="vmlinux", cross="powerpc64le-linux-gnu-"),
}
_CONFIG_SECONDS, _BUILD_SECONDS, _REPORT_SECONDS = 600.0, 6 * 3600.0, 15.0
_NOT_SOURCE = frozenset({".git", ".cache", "debian"})
_REMEDY = "a tree needs make, gcc, flex, bison, bc, pahole, and the headers of libelf and libssl"


@dataclass(frozen=True, kw_only=True)
class _Build:
    """One row's tree with where it is built."""

    spec: KernelSpec
    source: TreeSource
    out: Path
    on_event: OnEvent

    @property
    def how(self) -> _Make:
        """What this architecture's make wants."""
        return _MAKE[self.spec.arch.name]

    @property
    def log(self) -> Path:
        """All that make said in the last build."""
        return self.out / "corematrix-build.log"

    def make(self, *targets: str) -> list[str]:
        """The command that makes `targets`."""
        own = platform.machine() == self.spec.arch.uname
        cross = [] if own else [f"CROSS_COMPILE={self.how.cross}"]
        return ["make", "-C", str(self.source.tree), f"O={self.out}", f"ARCH={self.how.arch}", *cross, *targets]

    def configure(self) -> bytes:
        """Base and fragments, made whole by the tree: the .config. UsageError when it does not take what a fragment
        says.
        """
        config = self.out / ".config"
        wishes = self.wishes()
        if isinstance(self.source.config, str):
            proc.run(self.make(self.source.config), timeout=_CONFIG_SECONDS, remedy=_REMEDY)
        else:
            config.write_bytes(_read(self.source.config))
        with config.open("a", encoding="utf-8") as file:
            # Of two lines for one switch Kconfig takes the last (confdata.c), and says so.
            file.writelines(f"{line}\n" for line in wishes.values())
        proc.run(self.make("olddefconfig"), timeout=_CONFIG_SECONDS, remedy=_REMEDY)
        text = config.read_bytes()
        self._check(wishes, text.decode("utf-8", "replace"))
        return text

    def wishes(self) -> dict[str, str]:
        """The line of each switch that the fragments set, the last one's for each."""
        return dict(_wishes((*self.source.fragments, self.source.btf_fragment)))

    def _check(self, wishes: Mapping[str, str], config: str) -> None:
        """Every switch a fragment of the user's names must have come out as it says; of ours only BTF itself."""
        asked = {name for name, _ in _wishes(self.source.fragments)} | {"CONFIG_DEBUG_INFO_BTF"}
        have = set(config.splitlines())
        lost = [line for name, line in wishes.items() if name in asked and not _met(name, line, have)]
        if lost:
            message = f"{self.spec.id}: {self.source.tree} does not take {', '.join(lost)}"
            remedy = "the switch is not in this tree, or what it depends on is off: say so in the fragment too"
            raise UsageError(message, remedy=remedy)

    def run(self) -> None:
        """Build, with a line about progress now and then. InfrastructureError with the end of the log."""
        jobs = f"-j{os.cpu_count() or 1}"
        self.on_event(f"{self.spec.id}: building {self.source.tree} (log: {self.log})")
        started = time.monotonic()
        with self.log.open("wb") as log, proc.spawn(
            self.make(jobs, self.how.target, "modules"), stdout=log, stderr=proc.STDOUT, remedy=_REMEDY
        ) as process:  # fmt: skip
            while (status := process.wait(_REPORT_SECONDS)) is None:
                self.on_event(f"{self.spec.id}: building: {self._progress()}")
                if time.monotonic() - started > _BUILD_SECONDS:
                    process.kill()
        if status:
            last = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            message = f"{self.spec.id}: the tree cannot be built (make: status {status}):\n{last}"
            raise InfrastructureError(message, remedy=f"all of it: {self.log}")

    def _progress(self) -> str:
        lines = self.log.read_bytes().decode("utf-8", "replace").splitlines()
        return f"{len(lines)} steps, {lines[-1].strip() if lines else 'starting'}"


def provide(
    spec: KernelSpec,
    source: TreeSource,
    store: Store,
    lock: Lock | None,  # noqa: ARG001 - the tree is the user's
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> Kernel:
    """The kernel built from this row's tree, in the cache when this returns; built now unless it was.

    Raises UsageError (the tree, a fragment), InfrastructureError (make), FetchError (not built yet, and
    `options.offline` says to take what is there), CacheError.
    """
    if not (source.tree / "Kbuild").is_file():
        message = f"{source.tree}: not a kernel tree"
        raise UsageError(message, remedy="correct `tree` in kernels.yaml")
    state = _tree_state(source.tree)
    with store.lock(f"build {spec.id}"):
        build = _Build(spec=spec, source=source, out=_out(spec, source, store), on_event=on_event)
        # The configuration is made by the tree: kept by what goes in, so that a warm cache asks no make.
        wishes = [(path.name, _read(path).decode("utf-8", "replace")) for path in _inputs(source)]
        key = keep.key(spec.arch, state, str(source.config), wishes)
        kept = keep.kept(store, key, lambda: _made(build, store, offline=options.offline))
    base = str(source.config)
    fragments = [path.stem for path in source.fragments]
    facts = {"kind": "tree", "tree": str(source.tree), "config": base, "fragments": fragments, "state": state}
    return kept.kernel(spec, {**facts, "sha256": kept.facts["vmlinuz"], "log": str(build.log)})


def directory_of(arch: str) -> str:
    """The directory below arch/ of an architecture, by our name."""
    return _MAKE[arch].arch


def extra_modules(
    kernel: Kernel,
    names: Sequence[str],
    store: Store,
    on_event: OnEvent,  # noqa: ARG001
    *,
    options: AptOptions = _DEFAULT,  # noqa: ARG001 - for repositories
) -> modules.ModuleFiles:
    """More modules, out of the build directory."""
    source = kernel.spec.source
    assert isinstance(source, TreeSource)
    files, resolved = path_source.in_directory(_out(kernel.spec, source, store), names, b"", kernel.release)
    paths = {name: store.blob(store.put_bytes(data)) for name, data in files.items()}
    return modules.ModuleFiles(
        paths=tuple(path for name in resolved.order if (path := paths[name]) is not None),
        builtin=resolved.builtin, missing=resolved.missing,
    )  # fmt: skip


def _made(build: _Build, store: Store, *, offline: bool) -> keep.Found:
    if offline:
        message = f"{build.spec.id}: not built yet"
        raise FetchError(message, remedy=f"corematrix kernels fetch -k {build.spec.id}")
    build_seed.seed(
        build.out, image=build.how.file, arch=build.how.arch, wishes=build.wishes(), store=store,
        on_event=build.on_event,
    )  # fmt: skip
    config = build.configure()
    build.run()
    vmlinuz = build.out / build.how.file
    return path_source.opened(build.spec, _read(vmlinuz), str(vmlinuz), config=config, directory=build.out)


def _out(spec: KernelSpec, source: TreeSource, store: Store) -> Path:
    """The build directory of a row: in the cache, and not swept with it."""
    name = hashlib.sha256(str(source.tree).encode()).hexdigest()[:12]
    path = store.root / "build" / f"{spec.id}-{name}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _inputs(source: TreeSource) -> tuple[Path, ...]:
    base = () if isinstance(source.config, str) else (source.config,)
    return (*base, *source.fragments, source.btf_fragment)


def _wishes(fragments: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(switch, line) of each setting in the fragments, in order."""
    for path in fragments:
        for line in _read(path).decode("utf-8", "replace").splitlines():
            words = line.split()
            if line.startswith("CONFIG_") and "=" in line:
                yield line.partition("=")[0], line.strip()
            elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
                yield words[1], line.strip()


def _met(name: str, line: str, have: set[str]) -> bool:
    """A switch that is off may also be missing altogether: what it depends on is off."""
    off = line.startswith("#")
    return line in have or (off and not any(other.startswith(f"{name}=") for other in have))


def _tree_state(tree: Path) -> str:
    """A name for the tree as it is: commit and uncommitted changes, or, without git, each file's size and time."""
    if proc.which("git") is not None and (tree / ".git").exists():
        head = proc.run(["git", "-C", tree, "rev-parse", "HEAD"]).text.strip()
        dirty = proc.run(["git", "-C", tree, "diff", "HEAD"], timeout=300).stdout
        return head if not dirty else f"{head}+{hashlib.sha256(dirty).hexdigest()[:12]}"
    digest = hashlib.sha256()
    for directory, names, files in os.walk(tree):
        names[:] = sorted(set(names) - _NOT_SOURCE)
        for name in sorted(files):
            status = Path(directory, name).lstat()
            digest.update(f"{directory}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise UsageError(message, remedy="correct the path in kernels.yaml") from error
