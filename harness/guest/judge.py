"""What a kernel makes of an object: facts, exactly as docs/facts.md has them.

`Machine` is what stays the same between objects (BTF, probes, Kconfig); `judge` answers one request.
"""

from __future__ import annotations

import os
import sys
from time import monotonic, sleep

from . import btf as B
from . import evidence, probe
from .errors import GuestError
from .externs import KernelSymbols
from .kconfig import kernel_version, reads_debian_version
from .modules import ModuleBtf, load_all
from .syscall import MAP_GET_NEXT_ID, PROG_GET_NEXT_ID, Bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KERNEL_BTF = "/sys/kernel/btf/vmlinux"
_GONE_SECONDS = 5.0
# What BPF programs look into most: their members are read before a guest is saved.
_COMMON = (
    "task_struct", "mm_struct", "vm_area_struct", "signal_struct", "thread_struct", "pt_regs", "cred", "pid",
    "nsproxy", "css_set", "cgroup", "kernfs_node", "file", "path", "dentry", "qstr", "inode", "super_block",
    "linux_binprm", "bio", "request", "sock", "sock_common", "inet_sock", "tcp_sock", "sk_buff", "net_device",
)  # fmt: skip


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.strip().lstrip("-").isdigit() else None


class Machine:
    """One kernel and what was found out about it. Build it with `survey`; it holds file descriptors until the process
    ends.

    `bpf` makes the calls, `features` are the probes' answers, `btf` the target of relocation (None: there is none),
    `symbols` what externs ask for. `btf_override` and `kconfig_override` are the files given to `survey`, None for the
    kernel's own.
    """

    def __init__(self, bpf: Bpf, btf_path: str | None = None, kconfig_path: str | None = None) -> None:
        self.bpf = bpf
        self.btf_override = btf_path
        self.kconfig_override = kconfig_path
        self.btf_error: str | None = None
        self._own: B.Btf | None = None
        self._own_read = False
        self._modules: list[ModuleBtf] | None = None
        self._kconfig: str | None = None
        self._kconfig_bad: bool | None = None
        self._sha256: str | None = None
        self._wrapper: bool | None = None
        self._calls: bool | None = None
        self._kallsyms: dict[str, int] | None = None
        self._left: tuple[set[int], set[int]] = (set(), set())
        self._settled: dict[str, Any] = {}
        self._versions: dict[bool, int] = {}
        self.spare_modules: dict[str, bytes] = {}  # of this kernel, not inserted: for `attach`
        self.btf = self._target()
        self.features = probe.survey(bpf)
        self.features["dead_code_removal"] = evidence.removes_dead_code(bpf)
        self.features["constant_branches"] = evidence.prunes_constants(bpf)
        self.features["range_branches"] = evidence.prunes_ranges(bpf)
        self.symbols = KernelSymbols(self.kernel_btf, self.modules, self.kconfig_lines, self._virtual)
        self._rules: tuple[int, ...] | None = None

    @classmethod
    def survey(cls, *, btf_path: str | None = None, kconfig_path: str | None = None, bpf: Bpf | None = None) -> Machine:
        """Look at this machine's kernel. `btf_path`: a BTF (or ELF) to relocate against instead of the kernel's own;
        `kconfig_path`: Kconfig text instead of /boot/config-RELEASE and /proc/config.gz; `bpf`: a stand-in for
        tests."""
        return cls(bpf or Bpf(), btf_path, kconfig_path)

    # -- BTF

    def _target(self) -> B.Btf | None:
        target = self.kernel_btf() if self.btf_override is None else self._load(self.btf_override)
        if target is not None:
            target.ids_by_essential_name("task_struct")  # builds the name index now, not in the first request
        return target

    def _load(self, path: str) -> B.Btf | None:
        try:
            return B.load(path)
        except (OSError, GuestError) as error:
            self.btf_error = f"{path}: {error}"
            return None

    def kernel_btf(self) -> B.Btf | None:
        """The BTF this kernel itself has, None when it has none."""
        if not self._own_read:
            self._own_read = True
            self._own = self._load(KERNEL_BTF) if os.path.exists(KERNEL_BTF) else None
        return self._own

    def modules(self) -> list[ModuleBtf]:
        """BTF of the loaded modules (empty without the kernel's own BTF)."""
        if self._modules is None:
            base = self.kernel_btf()
            self._modules = load_all(self.bpf, base) if base is not None else []
        return self._modules

    # -- Kconfig and the values libbpf makes up

    def follow(self, rules: tuple[int, ...] | None) -> None:
        """From now on make values up as that version of libbpf does (None: the newest)."""
        self._rules = rules

    @property
    def kern_version(self) -> int:
        """KERNEL_VERSION() of this kernel as libbpf tells it (get_kernel_version())."""
        newer = reads_debian_version(self._rules)
        if newer not in self._versions:
            uname = os.uname()
            signature = _read("/proc/version_signature")
            self._versions[newer] = kernel_version(uname.release, uname.version if newer else "", signature)
        return self._versions[newer]

    def kconfig_text(self) -> str | None:
        """The kernel's Kconfig, None when it is nowhere to be read."""
        if self._kconfig is None:
            release = os.uname().release
            path = self.kconfig_override or f"/boot/config-{release}"
            text = _read(path)
            if text is None and self.kconfig_override is None:
                text = _read_gz("/proc/config.gz")
            self._kconfig = None if text is None else f"\n{text}\n"
        return self._kconfig

    def kconfig_lines(self, names: list[str]) -> str | None:
        """The lines of the Kconfig that set these options, None when there is no Kconfig to read. The whole text where
        a line in it is malformed: libbpf then refuses it, and so must whoever reads this."""
        text = self.kconfig_text()
        if text is None or self._kconfig_is_bad(text):
            return text
        found = []
        for name in names:
            at = text.find(f"\n{name}=")
            if at >= 0:
                found.append(text[at + 1 : text.find("\n", at + 1)])
        return "\n".join(found)

    def _kconfig_is_bad(self, text: str) -> bool:
        if self._kconfig_bad is None:
            lines = text.split("\n")
            self._kconfig_bad = any(line[:7] == "CONFIG_" and line.find("=", 0, -1) < 0 for line in lines)
        return self._kconfig_bad

    def _virtual(self, name: str) -> int | None:
        if name == "LINUX_KERNEL_VERSION":
            return self.kern_version
        if name == "LINUX_HAS_BPF_COOKIE":
            return int(self.features["bpf_cookie"])
        if name == "LINUX_HAS_SYSCALL_WRAPPER":
            if self._wrapper is None:
                self._wrapper = probe.syscall_wrapper()
            return int(self._wrapper)
        return None

    def has_calls(self) -> bool:
        """Whether this kernel has bpf-to-bpf calls; tried when first asked."""
        if self._calls is None:
            self._calls = probe.calls(self.bpf)
        return self._calls

    def syscall_prefix(self) -> str:
        """What stands before a system call's name in its function here (libbpf's attach_ksyscall())."""
        wrapped = self._virtual("LINUX_HAS_SYSCALL_WRAPPER")
        return f"__{probe.SYSCALL_PREFIX[os.uname().machine]}_sys_" if wrapped else "__se_sys_"

    # -- facts

    def facts(self) -> dict[str, Any]:
        """The `guest` part. Nothing here changes while objects are judged, but for the taint."""
        if not self._settled:
            self._settled = self._settled_facts()
        return {**self._settled, "taint": _number("/proc/sys/kernel/tainted")}

    def refresh(self) -> None:
        """Forget what a command of somebody's may have changed (sysctls)."""
        self._settled = {}

    def prepare(self) -> None:
        """Find out now what is otherwise found out when first asked for: before a guest is saved it costs once."""
        if self.btf is not None:
            self.btf.index_all_names()
            _read_members(self.btf)
        self.kconfig_lines([])
        self.modules()
        self.has_calls()
        self._virtual("LINUX_HAS_SYSCALL_WRAPPER")
        self.facts()

    def _settled_facts(self) -> dict[str, Any]:
        uname = os.uname()
        return {
            "release": uname.release, "version": uname.version, "machine": uname.machine, "cpus": os.cpu_count(),
            "python": "%d.%d.%d" % sys.version_info[:3], "btf": self._btf_facts(),
            "taint": 0, "jit": _number("/proc/sys/net/core/bpf_jit_enable"),
            "unprivileged_bpf_disabled": _number("/proc/sys/kernel/unprivileged_bpf_disabled"),
            "lockdown": _lockdown(), "features": dict(self.features),
        }  # fmt: skip

    def _btf_facts(self) -> dict[str, Any]:
        path = self.btf_override or KERNEL_BTF
        if self.btf is None:
            return {"source": "none", "sha256": None, "types": 0, "error": self.btf_error}
        if self._sha256 is None:
            with open(path, "rb") as file:
                self._sha256 = _sha256_hex(file.read())
        return {
            "source": "file" if self.btf_override else "kernel",
            "sha256": self._sha256,
            "types": self.btf.count - 1,
            **({"kallsyms": self._known_functions(self.btf)} if self.btf_override else {}),
        }

    def _known_functions(self, target: B.Btf) -> dict[str, int] | None:
        """How many functions a BTF from elsewhere has, and how many of them this kernel's symbol table does not know;
        None without such a table (CONFIG_KALLSYMS)."""
        if self._kallsyms is None:
            text = _read("/proc/kallsyms")
            if not text:
                return None
            known = {line.split(None, 3)[2].partition(".")[0] for line in text.splitlines()}
            kinds = range(1, target.count)
            functions = {target.type(id_).name for id_ in kinds if target.kind(id_) == B.BTF_KIND_FUNC}
            self._kallsyms = {"functions": len(functions), "missing": len(functions - known)}
        return self._kallsyms

    def leave_behind(self, progs: set[int], maps: set[int]) -> None:
        """Note ids of programs and maps that were closed and that the kernel frees in its own time."""
        self._left[0].update(progs)
        self._left[1].update(maps)

    def await_gone(self) -> bool:
        """Wait until the kernel has freed what earlier objects left behind; False when it has not after five seconds.

        `judge` waits itself before it makes new maps and programs, so that the time an answer takes to travel is not
        lost.
        """
        limit = monotonic() + _GONE_SECONDS
        while not self._gone():
            if monotonic() > limit:
                return False
            sleep(0.001)  # freed by RCU: the kernel announces it to nobody
        for left in self._left:
            left.clear()
        return True

    def _gone(self) -> bool:
        progs, maps = self._left
        try:
            return not (
                (progs and progs & set(self.bpf.ids(PROG_GET_NEXT_ID)))
                or (maps and maps & set(self.bpf.ids(MAP_GET_NEXT_ID)))
            )
        except OSError:  # no ids before 4.13: nothing to wait for
            return True


def _read_members(target: B.Btf) -> None:
    for name in _COMMON:
        for id_ in target.ids_by_essential_name(name):
            found = target.type(id_)
            if found.kind in (B.BTF_KIND_STRUCT, B.BTF_KIND_UNION):
                target.members(found)


def _sha256_hex(data: bytes) -> str:
    """hashlib would pull in OpenSSL; CPython's own module has another name since 3.12."""
    for name in ("_sha256", "_sha2", "hashlib"):
        try:
            module = __import__(name)
        except ImportError:
            continue
        return str(module.sha256(data).hexdigest())
    msg = "this Python has no SHA-256"
    raise RuntimeError(msg)


def _read_gz(path: str) -> str | None:
    if not os.path.exists(path):
        return None
    import zlib

    with open(path, "rb") as file:
        return zlib.decompress(file.read(), 31).decode("utf-8", "replace")


def _lockdown() -> str | None:
    text = _read("/sys/kernel/security/lockdown")
    if text is None or "[" not in text:
        return None
    return text.partition("[")[2].partition("]")[0]


def judge(
    machine: Machine, data: bytes, request: dict[str, Any], progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Facts about the object in `data` (docs/facts.md). Whatever is wrong with the object is a fact, not an
    exception."""
    if request.get("loader") == "libbpf":
        from . import libbpf_loader

        return libbpf_loader.judge(machine, data, request, progress)
    from .object_judge import ObjectJudge

    return ObjectJudge(machine, request, progress).facts(data)
