"""Config suspects in words. They are called suspects wherever they are shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from harness.model.suspicion import ConfigSuspicion
from harness.report.kernels import describe

_MOST = 12


def words(suspicion: ConfigSuspicion) -> str:
    """Beside the relocation or program that is missing or refused `here`."""
    having = "where it is found" if suspicion.field else "where it loads"
    if not suspicion.suspects:
        return f"config: {suspicion.separating} switches differ from {having}, and none is close by its name"
    said = [f"{s.option}={s.here} here, ={s.there} {having} ({s.because})" for s in suspicion.suspects]
    first = "config suspect: " if len(said) == 1 else "config suspects: "
    return first + "; ".join(said) + _caution(suspicion)


def _caution(suspicion: ConfigSuspicion) -> str:
    rest = suspicion.separating - len(suspicion.suspects)
    others = f"; {rest} more switches differ so" if rest > 0 else ""
    return others + ("" if suspicion.alike else "; versions or architectures differ, too")


def of_field(suspicions: Sequence[ConfigSuspicion], field: str, kernels: Collection[str]) -> tuple[str, ...]:
    """What there is to say of a field ("": of the program itself) that `kernels` lack."""
    return tuple(words(s) for s in suspicions if s.field == field and set(kernels) <= set(s.lacking))


def lines(suspicions: Sequence[ConfigSuspicion], kernels: Sequence[str]) -> Iterator[str]:
    """A paragraph for each field and each program that has suspects; `kernels` are all of the run."""
    named: dict[tuple[tuple[str, ...], bool, str], dict[str, None]] = {}
    for suspicion in (suspicion for suspicion in suspicions if suspicion.suspects):
        key = (suspicion.lacking, bool(suspicion.field), words(suspicion))
        named.setdefault(key, {}).update(dict.fromkeys((suspicion.field,) if suspicion.field else suspicion.progs))
    for (lacking, is_field, said), what in list(named.items())[:_MOST]:
        verb = ("missing" if is_field else "refused") + f" on {describe(lacking, kernels)}"
        yield f"{', '.join(what)} {'is' if len(what) == 1 else 'are'} {verb}: {said}"
    if len(named) > _MOST:
        yield f"and {len(named) - _MOST} more, each in the JSON"
