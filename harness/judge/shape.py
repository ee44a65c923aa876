"""Are these facts? What came out of a guest is held against docs/facts.md before anybody reads it.

A table: for every key what may stand there. Keys that the table does not know pass (an additive change of the guest
needs nothing here), keys it knows may be missing unless they are REQUIRED. Bounds are far beyond what honest objects
need, and low enough that judging what is within them takes seconds.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

from harness.model.verdict import Outcome, Stage

Check = Callable[[Any, str], None]

MOST_PROGS, MOST_RELOS, MOST_ITEMS = 20_000, 500_000, 1_000_000
MOST_LOG = 48 << 20  # characters; the kernel's log buffer ends at 2**30, ours in the guest at 16 MiB
# Each relocation of a program is held against each of its flips.
MOST_PAIRS = 20_000_000
_MOST_NUMBER = 1 << 64


class MalformedFactsError(ValueError):
    """The message names the place, what was wanted and what was found."""


def problem(facts: Mapping[str, Any]) -> str | None:
    """Why these are no facts, in one line; None when they are."""
    try:
        _FACTS(facts, "")
        _references(facts)
    except MalformedFactsError as error:
        return str(error)
    except RecursionError:
        return "nested too deep"
    return None


def _bad(where: str, wanted: str, found: object) -> MalformedFactsError:
    return MalformedFactsError(f"{where.lstrip('.') or 'facts'}: {wanted} wanted, found {_brief(found)}")


def _brief(found: object) -> str:
    if isinstance(found, (dict, list)):
        return f"a {type(found).__name__} of {len(found)}"
    return f"{type(found).__name__} {ascii(found)[:60]}" if not isinstance(found, int) else "a number out of range"


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _bad(where, "text", value)


def _log(value: Any, where: str) -> None:
    _text(value, where)
    if len(value) > MOST_LOG:
        raise _bad(where, f"at most {MOST_LOG} characters", value)


def _number(value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not -_MOST_NUMBER < value < _MOST_NUMBER:
        raise _bad(where, "an integer of 64 bits", value)


def _count(value: Any, where: str) -> None:
    _number(value, where)
    if not 0 <= value < 1 << 32:
        raise _bad(where, "a count", value)


def _truth(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise _bad(where, "true or false", value)


def _plain(value: Any, where: str) -> None:
    """A number, text, truth or nothing; and JSON has no NaN, though Python reads one."""
    if isinstance(value, int) and not isinstance(value, bool):
        _number(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _bad(where, "a finite number", value)
    elif value is not None and not isinstance(value, (str, bool, float)):
        raise _bad(where, "a plain value", value)


def _anything(value: Any, where: str) -> None:
    """Any JSON; its depth is bounded by the wire."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _anything(inner, f"{where}.{ascii(key)[:40]}")
    if not isinstance(value, (dict, list)):
        _plain(value, where)


def _base64(value: Any, where: str) -> None:
    _text(value, where)
    try:
        binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except (ValueError, binascii.Error):
        raise _bad(where, "base64", value) from None


def _hex(value: Any, where: str) -> None:
    _text(value, where)
    if len(value) > 32 or not all(char in "0123456789abcdef" for char in value):
        raise _bad(where, "hexadecimal bytes", value)


def _optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _one_of(*words: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in words:
            raise _bad(where, " or ".join(words), value)

    return check


def _list(check: Check, most: int = MOST_ITEMS) -> Check:
    def read(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise _bad(where, "a list", value)
        if len(value) > most:
            raise _bad(where, f"at most {most} items", value)
        for number, item in enumerate(value):
            check(item, f"{where}[{number}]")

    return read


def _object(required: str = "", /, **checks: Check) -> Check:
    needed = required.split()

    def read(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _bad(where, "an object", value)
        for key in needed:
            if key not in value:
                msg = f"{where.lstrip('.') or 'facts'}: no {key!r}"
                raise MalformedFactsError(msg)
        for key, item in value.items():
            checks.get(key, _anything)(item, f"{where}.{ascii(key)[1:-1][:40]}")

    return read


def _range(value: Any, where: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise _bad(where, "[start, end]", value)
    for end in value:
        _count(end, where)


_STAGE = _optional(_one_of(*Stage))
_RANGES = _optional(_list(_range))
_SOURCE = _optional(_object(file=_optional(_text), line=_optional(_count), text=_optional(_text)))
_LINE = _object(
    "prog section insn kind local_spec outcome",
    index=_count, prog=_text, section=_text, insn=_count, kind=_text, local_spec=_optional(_text),
    target_spec=_optional(_text), outcome=_one_of(*Outcome), orig_value=_optional(_number),
    new_value=_optional(_number), before=_optional(_hex), after=_optional(_hex), reason=_optional(_text),
    local=_optional(_object()), target=_optional(_object()), source=_SOURCE,
    candidates=_optional(_list(_object(name=_optional(_text), id=_optional(_count), why_not=_optional(_text)))),
)  # fmt: skip
_STOP = _optional(_object(insn=_optional(_count), poison=_optional(_truth), message=_optional(_text)))
_EVIDENCE = _object(
    verdict_log_visited=_RANGES,
    line_info=_optional(_object(loaded=_optional(_truth), errno=_optional(_number), survived=_RANGES,
                                reason=_optional(_text))),
    analysis=_optional(_list(_object(neutralised=_list(_count), loaded=_optional(_truth), errno=_optional(_number),
                                     visited=_RANGES, stop=_STOP))),
    flips=_optional(_list(_object("relo", relo=_count, insn=_optional(_count), value=_optional(_number),
                                  loaded=_optional(_truth), errno=_optional(_number), survived=_RANGES,
                                  visited=_RANGES))),
)  # fmt: skip
_PROG = _object(
    "name",
    name=_text, section=_optional(_text), prog_type=_optional(_text), expected_attach_type=_optional(_text),
    attach_target=_optional(_text), autoload=_truth, sleepable=_optional(_truth), loaded=_optional(_truth),
    alone=_optional(_truth), stage=_STAGE, errno=_optional(_number), error=_optional(_text),
    unsupported=_optional(_text), adaptations=_optional(_list(_object(libbpf=_truth))),
    verifier=_optional(_object(**dict.fromkeys(
        ("processed_insns", "total_states", "peak_states", "max_states_per_insn", "stack_depth", "verification_usec",
         "insn_limit"), _optional(_number)))),
    log=_optional(_log), log_truncated=_optional(_truth), insns=_optional(_base64),
    funcs=_optional(_list(_object("start", start=_count))), refs=_optional(_list(_object())),
    relos=_optional(_list(_object("relo", relo=_count, insn=_optional(_count)), MOST_RELOS)),
    evidence=_optional(_EVIDENCE), attach=_optional(_object()),
)  # fmt: skip
_FACTS = _object(
    "facts progs core_relos object_error",
    loader=_text, loader_version=_optional(_text), rules=_optional(_text),
    guest=_optional(_object(features=_optional(_object()))), object=_optional(_object()),
    object_error=_optional(_object("stage message", stage=_one_of(*Stage), errno=_optional(_number), message=_text,
                                   relo=_optional(_count))),
    externs=_optional(_list(_object("name kind", name=_text, kind=_text, value=_plain, weak=_optional(_truth),
                                    outcome=_optional(_text), reason=_optional(_text)))),
    core_relos=_list(_LINE, MOST_RELOS), skipped_core_relos=_optional(_count),
    maps=_optional(_list(_object())), progs=_list(_PROG, MOST_PROGS), seconds=_optional(_object()),
)  # fmt: skip


def _references(facts: Mapping[str, Any]) -> None:
    """What points at something points at something that is there, and no name is there twice."""
    known = {line.get("index", number) for number, line in enumerate(facts["core_relos"])}
    if len(known) < len(facts["core_relos"]):
        msg = "core_relos: an index twice"
        raise MalformedFactsError(msg)
    names: set[str] = set()
    for number, prog in enumerate(facts["progs"]):
        where = f"progs[{number}]"
        if prog["name"] in names:
            msg = f"{where}.name: {ascii(prog['name'])[:60]} twice"
            raise MalformedFactsError(msg)
        names.add(prog["name"])
        relos, flips = prog.get("relos") or (), (prog.get("evidence") or {}).get("flips") or ()
        for item in (*relos, *flips):
            if item["relo"] not in known:
                msg = f"{where}: relocation {item['relo']} is not in core_relos"
                raise MalformedFactsError(msg)
        if len(relos) * len(flips) > MOST_PAIRS:
            msg = f"{where}: {len(relos)} relocations under {len(flips)} flips are too many"
            raise MalformedFactsError(msg)
        if any(func["start"] for func in prog.get("funcs") or ()) and min(f["start"] for f in prog["funcs"]):
            msg = f"{where}.funcs: none starts at 0"
            raise MalformedFactsError(msg)
