"""`corematrix kernels list|fetch|lock|prune`: what the matrix holds, where it comes from, what is cached."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from harness import config, kernels, matrix
from harness.apt.repository import AptOptions
from harness.errors import CorematrixError, UsageError
from harness.model.kernel import KernelSpec
from harness.model.lock import Lock
from harness.report import untrusted
from harness.rundir import write_whole
from harness.store import DEFAULT_CAP_BYTES, Store
from harness.vm import snapshot

Say = Callable[[str], None]
# Who fetches or locks wants what is newest now; a minute keeps one command from asking for an index twice.
_MAX_AGE = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("list", "the kernels, their tags, and whether they are locked and cached"),
        ("fetch", "get kernels into the cache"),
        ("lock", "pin the newest packages of every kernel, and of the guest, in kernels.lock"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("-k", "--kernel", action="append", default=[], metavar="GLOB", help="kernels by id")
        action.add_argument("--tag", metavar="T", help="kernels with this tag")
        action.add_argument("--arch", metavar="A", help="kernels of this architecture")
        action.add_argument("--matrix", type=Path, metavar="FILE", help="default: ./kernels.yaml, else built in")
        if name != "list":
            action.add_argument(
                "--strict-valid-until", action="store_true", help="a Valid-Until that has passed is an error"
            )
    summary = "remove what was used longest ago from the cache"
    prune = actions.add_parser("prune", help=summary, description=summary)
    keep, guests = DEFAULT_CAP_BYTES / 2**30, snapshot.CAP_BYTES / 2**30
    prune.add_argument("--keep-gb", type=float, default=keep, metavar="N", help=f"GiB to keep (default: {keep:g})")
    prune.add_argument(
        "--guests-gb", type=float, default=guests, metavar="N", help=f"of these for saved guests (default: {guests:g})"
    )
    prune.add_argument("--dry-run", action="store_true", help="list the saved guests, and remove nothing")


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """Do one action; lines for people about what is going on go to stderr."""

    def say(line: str) -> None:
        stderr.write(untrusted.line(line) + "\n")

    with Store.default() as store:
        if options.action == "prune":
            return _prune(options, store, stdout)
        loaded = config.load_matrix(options.matrix)
        selector = matrix.KernelSelector(globs=tuple(options.kernel), tag=options.tag, arch=options.arch)
        job = _Job(
            matrix=loaded, chosen=matrix.select_kernels(loaded.kernels, selector), store=store, stdout=stdout, say=say,
            apt=AptOptions(max_age=_MAX_AGE, strict_valid_until=getattr(options, "strict_valid_until", False)),
        )  # fmt: skip
        if options.action == "lock":
            return job.lock(config.matrix_path(options.matrix))
        return job.list() if options.action == "list" else job.fetch()


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The chosen kernels, and what an action on them needs."""

    matrix: config.Matrix
    chosen: Sequence[KernelSpec]
    store: Store
    apt: AptOptions
    stdout: TextIO
    say: Say

    def list(self) -> int:
        locked = self.matrix.lock.kernels if self.matrix.lock else {}
        rows = [("KERNEL", "ARCH", "VARIANT", "TAGS", "CACHED", "LOCKED")]
        for spec in self.chosen:
            pin = locked[spec.id][0].version if spec.id in locked else "-"
            tags = ",".join(sorted(spec.tags))
            rows.append((spec.id, spec.arch.name, spec.variant, tags, self._cached(spec), pin))
        _table(rows, self.stdout)
        return 0

    def _cached(self, spec: KernelSpec) -> str:
        """The release in the cache that a run would take without asking anyone, or `-`."""
        offline = AptOptions(offline=True)
        try:
            return kernels.provide(spec, self.store, self.matrix.lock, lambda _line: None, options=offline).release
        except CorematrixError:
            return "-"

    def fetch(self) -> int:
        """Every kernel is tried; the status is that of the first that could not be had."""
        status = 0
        for spec in self.chosen:
            try:
                kernel = kernels.provide(spec, self.store, self.matrix.lock, self.say, options=self.apt)
            except CorematrixError as error:
                self.say(str(error))
                status = status or error.exit_status
                continue
            note = f"  ({kernel.substituted})" if kernel.substituted else ""
            self.stdout.write(untrusted.line(f"{spec.id}: {kernel.release}{note}") + "\n")
        return status

    def lock(self, matrix_file: Path) -> int:
        """Pins of kernels that were not chosen stay as they are; of those no longer in the matrix they go."""
        if matrix_file == config.builtin_matrix() and matrix_file.parent.name == "harness":
            message = "the built-in matrix is not locked"
            raise UsageError(message, remedy=f"copy {matrix_file} to ./{config.MATRIX_FILE} first")
        made = kernels.make_lock(self.chosen, self.matrix.guest, self.store, self.say, options=self.apt)
        before = self.matrix.lock or Lock()
        known = {spec.id for spec in self.matrix.kernels}
        pins = {name: pin for name, pin in {**before.kernels, **made.kernels}.items() if name in known}
        path = write_whole(
            config.lock_path(matrix_file), Lock(kernels=pins, guest={**before.guest, **made.guest}).to_json()
        )
        for spec in self.chosen:
            self.stdout.write(f"{spec.id}: {', '.join(map(str, made.kernels.get(spec.id, ()))) or 'nothing to pin'}\n")
        self.stdout.write(f"{path}\n")
        return 0


def _prune(options: argparse.Namespace, store: Store, stdout: TextIO) -> int:
    """Saved guests first: they are the cheapest to make anew. Lists them, with what became of each."""
    before = snapshot.inventory(store)
    if options.dry_run:
        _table([_HEADS, *(_row(guest, "") for guest in before)], stdout)
        total = sum(guest.bytes for guest in before)
        stdout.write(f"{len(before)} saved guests, {_gib(total)} of {_gib(store.usage())} in {store.root}\n")
        return 0
    evicted = snapshot.evict(store, cap_bytes=int(options.guests_gb * 2**30))
    pruned = store.prune(cap_bytes=int(options.keep_gb * 2**30))
    left = {guest.key for guest in snapshot.inventory(store)}
    _table([_HEADS, *(_row(guest, "kept" if guest.key in left else "evicted") for guest in before)], stdout)
    freed = pruned.freed + sum(guest.bytes for guest in before if guest.key in evicted)
    removed = len(evicted) + len(pruned.removed)
    stdout.write(f"{removed} removed, {_gib(freed)} freed, {_gib(pruned.left)} left in {store.root}\n")
    return 0


_HEADS = ("SAVED GUEST", "RELEASE", "MIB", "LAST USE", "")


def _row(guest: snapshot.Listed, fate: str) -> tuple[str, ...]:
    used = datetime.fromtimestamp(guest.used).astimezone().strftime("%Y-%m-%d %H:%M")
    return guest.kernel or guest.key, guest.release or "-", str(guest.bytes >> 20), used, fate


def _gib(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB"


def _table(rows: Sequence[tuple[str, ...]], stdout: TextIO) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        stdout.write(untrusted.line(line.rstrip()) + "\n")
