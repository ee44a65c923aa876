"""The coverage-guided engine: atheris over one target, seeded from real files, findings kept as files."""

from __future__ import annotations

import hashlib
import struct
import sys
import tempfile
from pathlib import Path

# `tests.fuzz.seeds` and `targets` import the guest's modules, which atheris must see being imported: only in functions.

# libFuzzer's own limits: seconds for one input, MiB of the whole process (atheris and our imports take 150 of them).
LIMITS = ("-timeout=20", "-rss_limit_mb=600", "-max_len=16384", "-len_control=0", "-print_final_stats=1")


def main(target: str, arguments: list[str]) -> None:
    """Fuzz until `-runs=N` or `-max_total_time=S` of libFuzzer say enough; a finding ends it with its file named."""
    try:
        import atheris
    except ImportError:
        sys.stderr.write("atheris is not installed: pip install atheris\n")
        raise SystemExit(4) from None
    with atheris.instrument_imports(include=["harness.guest"]):
        from tests.fuzz import targets

    def one(data: bytes) -> None:
        try:
            targets.check(target, data)
        except targets.Finding as finding:
            path = keep(target, data)
            sys.stderr.write(f"FINDING {finding}\n  kept as {path}\n")
            raise

    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(start(target)):
            (Path(corpus) / str(number)).write_bytes(data)
        atheris.Setup([sys.argv[0], *LIMITS, *arguments, f"-artifact_prefix={corpus}/", corpus], one)
        atheris.Fuzz()


def keep(target: str, data: bytes) -> Path:
    """A finding's file, named by what it holds; from then on an input of tests/unit/test_fuzz.py."""
    from tests.fuzz import seeds

    path = seeds.FINDINGS / target / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def start(target: str) -> list[bytes]:
    """Inputs that are right, for the fuzzer to make wrong."""
    from tests.fuzz import seeds

    if not seeds.objects():
        raise SystemExit("programs/ is not built (make -C programs): there is next to nothing to start from")
    recipes = [struct.pack("<B", n) + bytes((n % 30, 3, n, 0, n, 0, 0, 0)) for n in range(64)]
    raw = {
        "elf": seeds.objects(),
        "object": seeds.objects(),
        "btf": (seeds.target_btf(), *seeds.sections(".BTF")),
        "btf_ext": seeds.sections(".BTF.ext"),
        "kconfig": (b"CONFIG_HZ=250\nCONFIG_BPF=y\nCONFIG_M=m\nCONFIG_S=\"text\"\n", b"0x10", b"6.1.0-50 (6.1.170-1)"),
        "verifier_log": (
            b"0: R1=ctx() R10=fp0\n0: (b7) r0 = 0\nprocessed 2 insns (limit 1000000) total_states 0 peak_states 0\n",
            b"3: (85) call unknown#195896080\ninvalid func unknown#195896080\nverification time 12 usec\n",
            b"stack depth 8+0\n",
        ),
        "wire": (b"CMTX" + struct.pack("<HHI", 1, 0, 6) + bytes(16) + bytes(4) + b"\2\0\0\0{}",),
    }  # fmt: skip
    return list(raw.get(target, recipes))
