"""Both loaders on every object of the corpus, compared: `python -m tests.corpus.run [--local] [--sample N]
[OBJECT...]`.

`--local` asks this machine's kernel (root); `--kernels GLOB` boots guests of the matrix. Each batch of objects is
judged in a process of its own, so that one that dies takes nothing else with it. The summary goes to stdout, `--json`
keeps every disagreement. With `--into FILE` a long run may be made in pieces (`--seconds`) and be interrupted: the same
command goes on where the last one ended, and the summary is of all there is.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.errors import CorematrixError
from harness.predict.models import Model
from harness.store import Store
from tests.corpus.campaign import Campaign, table
from tests.corpus.compared import Compared, compare, plain_name, summary
from tests.corpus.fetch import CorpusObject, fetch_all
from tests.corpus.foretold import held_against, model_of

_BATCH = 16
_SECONDS_PER_OBJECT = 120
_ROOT = Path(__file__).resolve().parents[2]


def run_local(
    objects: Sequence[tuple[str, Path]],
    libbpf: str | None,
    wanted: Callable[[str, str], bool] = lambda _kernel, _name: True,
) -> Iterator[Compared]:
    """On this machine's kernel, a process for each batch; an object whose process dies is tried again alone. Of a batch
    whose turn comes only what is `wanted` then.
    """
    pending = [list(objects[start : start + _BATCH]) for start in range(0, len(objects), _BATCH)]
    while pending:
        batch = [(name, path) for name, path in pending.pop(0) if wanted("local", name)]
        if not batch:
            continue
        answers, why = _worker(batch, libbpf)
        for name, path in batch:
            if name in answers:
                both = answers[name]
                yield (
                    _compared(name, path.read_bytes(), both["python"], both["libbpf"])
                    if "python" in both
                    else Compared(name=name, kernel="local", trouble=both["trouble"])
                )
            elif len(batch) == 1:
                yield Compared(name=name, kernel="local", trouble=why)
            else:
                pending.insert(0, [(name, path)])


def _compared(name: str, data: bytes, python: dict[str, Any], libbpf: dict[str, Any]) -> Compared:
    told = held_against(python, data, plain_name(name), _local_model())
    return replace(compare(name, "local", python, libbpf), **told)


@functools.cache
def _local_model() -> Model:
    return model_of(Path("/sys/kernel/btf/vmlinux"))


def _worker(batch: Sequence[tuple[str, Path]], libbpf: str | None) -> tuple[dict[str, Any], str]:
    """Facts by object name from one subprocess, and why any is missing."""
    request = json.dumps({"objects": [(name, str(path)) for name, path in batch], "libbpf": libbpf})
    command = [sys.executable, "-m", "tests.corpus.worker"]
    try:
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            text=True,
            cwd=_ROOT,
            timeout=_SECONDS_PER_OBJECT * len(batch),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode()
        return _answers(text), "took too long"
    return _answers(done.stdout), f"the process ended with {done.returncode}: {done.stderr[-2000:]}"


def _answers(text: str) -> dict[str, Any]:
    found = {}
    for line in text.splitlines():
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[answer["name"]] = answer
    return found


def choose(objects: Sequence[CorpusObject], sample: int | None, globs: Sequence[str]) -> list[CorpusObject]:
    """Those whose name matches, or every n-th so that about `sample` remain, spread over all packages."""
    import fnmatch

    chosen = [one for one in objects if not globs or any(fnmatch.fnmatchcase(one.name, glob) for glob in globs)]
    if sample is None or sample >= len(chosen):
        return chosen
    return [chosen[index * len(chosen) // sample] for index in range(sample)]


def main(arguments: list[str]) -> int:
    """0 when all agree, 1 when some do not, 4 when some could not be compared."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus.run", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="this machine's kernel (the default)")
    where.add_argument("--kernels", action="append", metavar="GLOB", help="kernels of the matrix, in guests")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--libbpf", help="another libbpf.so.1, for --local")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="keep results here as they come; what is there is done"
    )
    parser.add_argument("--seconds", type=float, help="with --into: begin no further object after so long")
    parser.add_argument("--again", action="store_true", help="with --into: once more what did not agree")
    parser.add_argument(
        "--large", action="append", default=[], metavar="GLOB", help="objects for which the usual guest is too small"
    )
    parser.add_argument(
        "--deadline", type=float, default=90.0, help="seconds a usual guest may take for an object and loader"
    )
    parser.add_argument("objects", nargs="*", metavar="GLOB_OR_FILE")
    options = parser.parse_args(arguments)
    try:
        compared = _campaign(options) if options.into is not None else list(_run(options, lambda _kernel, _name: True))
    except CorematrixError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in compared], indent=1) + "\n")
    sys.stdout.write(summary(compared) + table(compared))
    return 1 if any(one.rows for one in compared) else 4 if any(one.trouble for one in compared) else 0


def _campaign(options: argparse.Namespace) -> list[Compared]:
    """This run's results added to those of the runs before; all of them."""
    campaign = Campaign(options.into, seconds=options.seconds, again=options.again)
    for one in _run(options, campaign.wanted):
        campaign.add(one)
    return campaign.results()


def _run(options: argparse.Namespace, wanted: Callable[[str, str], bool]) -> Iterator[Compared]:
    with Store.default() as store:
        files = [Path(word) for word in options.objects if Path(word).is_file()]
        if files:
            chosen = [(str(path), path) for path in files]
        else:
            chosen = [
                (f"{one.name}@{one.sha256[:8]}", path)
                for one in choose(fetch_all(store), options.sample, options.objects)
                if (path := store.blob(one.sha256)) is not None
            ]
        if options.kernels:
            from tests.corpus.guests import run_guests

            yield from run_guests(
                chosen, options.kernels, store, wanted, large=options.large, deadline=options.deadline
            )
        else:
            yield from run_local(chosen, options.libbpf, wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
