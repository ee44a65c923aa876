"""Random pairs of C type definitions: what a program was compiled with, and what a kernel has made of it meanwhile.

Everything follows from the seed. The target is the local type after some of what happens to kernel structures between
versions: members move, are renamed, retyped, wrapped into anonymous structures or freed of them, bitfields grow,
arrays shrink, enums lose values or become 64 bits wide, a second type of that name appears.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

INTS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "bool", "char", "long", "unsigned long")
SIZES = {"s8": 1, "u8": 1, "char": 1, "bool": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4}


@dataclass(frozen=True)
class Scalar:
    """An int, pointer, enum or function pointer, as the text before and after the declared name."""

    before: str
    after: str = ""
    bits: int = 0
    signed_known: bool = True


@dataclass(frozen=True)
class Array:
    element: Scalar | Composite
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Composite:
    keyword: str
    members: tuple[Member, ...]
    packed: bool = False


@dataclass(frozen=True)
class Member:
    """`name` "" makes an anonymous structure."""

    name: str
    type: Scalar | Array | Composite


@dataclass
class Pair:
    """One root type on both sides; `local_enum` and `target_enum` are enumerator lists of an enum of its own."""

    number: int
    local: Composite
    target: Composite
    second: Composite | None
    local_enum: list[tuple[str, int]]
    target_enum: list[tuple[str, int]]
    flavor: str
    uses: list[str] = field(default_factory=list)


class Generator:
    """A stream of pairs from one seed; `sources()` gives the program's text and the target's."""

    def __init__(self, seed: int, pairs: int) -> None:
        self.random = random.Random(seed)
        self.count = 0
        self.pairs = [self._pair(number) for number in range(pairs)]

    # -- making

    def _name(self) -> str:
        self.count += 1
        return f"m{self.count}"

    def _scalar(self, bitfields: bool) -> Scalar:
        r = self.random
        roll = r.random()
        if bitfields and roll < 0.25:
            base = r.choice(("s32", "u32", "u64", "s64", "u16", "u8"))
            return Scalar(base, bits=r.randint(1, 8 * SIZES.get(base, 8)))
        if roll < 0.7:
            return Scalar(r.choice(INTS))
        if roll < 0.8:
            return Scalar("void *", signed_known=False)
        if roll < 0.9:
            return Scalar(f"enum shared{r.randrange(3)}")
        return Scalar("int (*", f")({r.choice(('int', 'void *', 'long'))})", signed_known=False)

    def _type(self, depth: int) -> Scalar | Array | Composite:
        r = self.random
        roll = r.random()
        if depth and roll < 0.2:
            return self._composite(depth - 1)
        if roll < 0.4:
            element = self._composite(0) if depth and r.random() < 0.3 else self._scalar(False)
            if isinstance(element, Scalar) and element.after:
                element = Scalar("u32")
            return Array(element, tuple(r.randint(1, 5) for _ in range(r.choice((1, 1, 1, 2)))))
        return self._scalar(True)

    def _composite(self, depth: int) -> Composite:
        r = self.random
        members = tuple(self._member(depth) for _ in range(r.randint(1, 5)))
        return Composite("union" if r.random() < 0.2 else "struct", members)

    def _member(self, depth: int) -> Member:
        kind = self._type(depth)
        anonymous = isinstance(kind, Composite) and self.random.random() < 0.5
        return Member("" if anonymous else self._name(), kind)

    def _pair(self, number: int) -> Pair:
        r = self.random
        local = replace(self._composite(2), keyword="struct")
        if r.random() < 0.15:
            local = replace(local, members=(*local.members, Member(self._name(), Array(Scalar("u32"), (0,)))))
        target = self._change(local)
        enum = [(f"E{number}_{index}", r.choice((index, r.randint(-100, 100)))) for index in range(r.randint(1, 4))]
        other = [
            (
                name + r.choice(("", "", "", "___v")),
                r.choice((value, value + 1, 1 << 33 if r.random() < 0.3 else value)),
            )
            for name, value in r.sample(enum, len(enum))
            if r.random() < 0.85
        ] + [(f"X{number}", 3)]
        second = (self._change(local) if r.random() < 0.5 else target) if r.random() < 0.25 else None
        pair = Pair(number, local, target, second, enum, other, r.choice(("", "", "___f")))
        self._use(pair)
        return pair

    # -- changing

    def _change(self, composite: Composite) -> Composite:
        r = self.random
        members = []
        for member in composite.members:
            roll = r.random()
            if roll < 0.07:
                continue
            if roll < 0.12:
                member = replace(member, name=self._name()) if member.name else member  # noqa: PLW2901
            members.append(self._change_member(member))
        flexible = [m for m in members if isinstance(m.type, Array) and m.type.lengths == (0,)]
        if r.random() < 0.5:
            r.shuffle(members)
        if flexible and r.random() < 0.8:  # at the end again, where it is one
            members = [m for m in members if m not in flexible] + flexible
        if r.random() < 0.4:
            members.insert(r.randrange(len(members) - len(flexible) + 1), Member(self._name(), self._scalar(True)))
        if r.random() < 0.15 and len(members) > 1:
            at = r.randrange(len(members) - 1)
            members[at : at + 2] = [Member("", Composite(r.choice(("struct", "union")), tuple(members[at : at + 2])))]
        members = members or [Member(self._name(), Scalar("int"))]
        return replace(composite, members=tuple(members), packed=r.random() < 0.1)

    def _change_member(self, member: Member) -> Member:
        r, kind = self.random, member.type
        if isinstance(kind, Composite):
            if not member.name and r.random() < 0.1:
                return Member(self._name(), kind)
            return replace(member, type=self._change(kind))
        if isinstance(kind, Array):
            if r.random() < 0.3 and kind.lengths != (0,):
                kind = replace(kind, lengths=tuple(max(1, length + r.randint(-3, 3)) for length in kind.lengths))
            if r.random() < 0.15 and isinstance(kind.element, Scalar):
                kind = replace(kind, element=Scalar(r.choice(INTS)))
            return replace(member, type=kind)
        return replace(member, type=self._scalar(True)) if r.random() < 0.25 else member

    # -- using

    def _use(self, pair: Pair) -> None:
        r = self.random
        paths = list(_paths(pair.local, "", r))
        for path, kind in r.sample(paths, min(len(paths), r.randint(1, 6))):
            pair.uses.append(self._access(path, kind))
        own = f"struct s{pair.number}{pair.flavor}"
        if r.random() < 0.4:
            pair.uses.append(f"r += type_info({own}, {r.choice(('T_EXISTS', 'T_SIZE', 'T_MATCHES', 'T_MATCHES'))});")
        if r.random() < 0.2:
            pair.uses.append(f"r += type_id({own}, {r.choice(('ID_LOCAL', 'ID_TARGET'))});")
        if r.random() < 0.5:
            name = r.choice(pair.local_enum)[0]
            pair.uses.append(f"r += enum_value(enum e{pair.number}, {name}, {r.choice(('E_EXISTS', 'E_VALUE'))});")
        if r.random() < 0.15:
            pair.uses.append(f"r += type_info(enum e{pair.number}, T_MATCHES);")

    def _access(self, path: str, kind: Scalar | Array | Composite) -> str:
        r = self.random
        whole = ["BYTE_OFF", "BYTE_SZ", "EXISTS"]
        if not isinstance(kind, Scalar):
            return f"r += field_info(p->{path}, {r.choice(whole)});"
        if kind.signed_known and not path.endswith("]"):
            whole += ["SIGNED", "LSHIFT", "RSHIFT"]
        loads = not kind.bits and r.random() < 0.4
        return f"r += (u64)p->{path};" if loads else f"r += field_info(p->{path}, {r.choice(whole)});"

    def drop_fields(self, number: int) -> None:
        """Leave out the field questions of one pair: clang refuses some about bitfields in narrowly aligned records."""
        uses = self.pairs[number].uses
        uses[:] = [use for use in uses if "field_info" not in use]

    # -- texts

    def sources(self) -> tuple[str, str, tuple[str, ...]]:
        """(program, target types, declarators of the target's types to keep)."""
        shared = "".join(f"enum shared{n} {{ SHARED{n} = {n} }};\n" for n in range(3))
        program, target, keep = [shared], [shared], []
        for pair in self.pairs:
            n = pair.number
            program.append(f"enum e{n} {{ {_enumerators(pair.local_enum)} }};\n")
            program.append(f"struct s{n}{pair.flavor} {_body(pair.local)} PAI;\n")
            body = "\n  ".join(pair.uses)
            program.append(
                f'SEC("socket") u64 prog{n}(struct s{n}{pair.flavor} *p)\n{{ u64 r = 0;\n  {body}\n  return r; }}\n'
            )
            target.append(f"enum e{n} {{ {_enumerators(pair.target_enum)} }};\n")
            target.append(f"struct s{n} {_body(pair.target)};\n")
            keep += [f"struct s{n}", f"enum e{n}"]
            if pair.second is not None:
                target.append(f"struct s{n}___second {_body(pair.second)};\n")
                keep.append(f"struct s{n}___second")
        return "".join(program), "".join(target), tuple(keep)


def _enumerators(values: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} = {value}LL" for name, value in values)


def _body(composite: Composite) -> str:
    inner = " ".join(_declaration(member) + ";" for member in composite.members)
    return f"{{ {inner} }}{' __attribute__((packed))' if composite.packed else ''}"


def _declaration(member: Member) -> str:
    kind, suffix = member.type, ""
    if isinstance(kind, Array):
        suffix = "".join(f"[{length}]" for length in kind.lengths)
        kind = kind.element
    if isinstance(kind, Composite):
        return f"{kind.keyword} {_body(kind)} {member.name}{suffix}"
    bits = f" : {kind.bits}" if kind.bits else ""
    gap = "" if kind.before.endswith("*") else " "
    return f"{kind.before}{gap}{member.name}{suffix}{kind.after}{bits}"


def _paths(composite: Composite, prefix: str, r: random.Random) -> Iterator[tuple[str, Scalar | Array | Composite]]:
    """Ways into a local type, with what they lead to."""
    for member in composite.members:
        here = prefix + member.name
        if isinstance(member.type, Composite):
            if member.name:
                yield here, member.type
            yield from _paths(member.type, here + "." if member.name else prefix, r)
        elif isinstance(member.type, Array):
            yield here, member.type
            index = "".join(f"[{r.randrange(length or 9)}]" for length in member.type.lengths)
            yield here + index, member.type.element
            if isinstance(member.type.element, Composite):
                yield from _paths(member.type.element, f"{here}{index}.", r)
        else:
            yield here, member.type
