"""The template language of `asm=` strings: one text that prints and parses.

A template is the assembly syntax of one instruction pattern. `Template.format` turns decoded fields into text, and
`Template.parse` turns text into fields; both come from the same element list, so they can't disagree.

Elements
--------
`text`                 literal; `{{` and `}}` are literal braces. A space stands for any white space.
`{op:add|sub}`         alternation: the text at the index of the field's value. `!` marks a value without a syntax (`!!` is a
                       literal exclamation mark).
`{A,R:|l|a|al}`        several fields concatenate, first one highest: here the value is A:R.
`{Rm}`, `{imm12}`      the unsigned number, decimal. `v{Rd}.16b` and `{ftype:s|d|!|h}{Rn}` make SIMD registers.
`{Rt:+1}`              number plus a constant; register fields wrap at 32 (`v{Rt:+1}.16b` in register lists).
`{Rd:KIND}`            a register, KIND one of X W Xsp Wsp (31 is zr or sp), R (W or X by field sf), Rsp (likewise).
`{Rt:X+1}`             the register after Rt, modulo 32; also `{Rt:x=W|X+1}` (CASP).
`{Rm:opt=W|W|X|X}`     a register whose kind is selected by the field(s) left of `=`.
`{imm9:s}`             signed. Also `x` (prints hexadecimal) and, after either, an arithmetic suffix:
`{imm7:s*8}`           ... times a constant; `{imm12:*4}` unsigned.
`{imm12:<<size}`       ... shifted left by another field's value; also `{imm7:s<<x*4}`.
`{imm6:+1}`, `{imm6:-8}`, `{imm3:16-}`   plus, minus a constant; constant minus the field.
`{imm19:pc*4}`         target address: PC plus the signed scaled value. `{immhi,immlo:page}`: ADRP's page.
`{immN,immr,imms:bitmask}`  the logical immediate these encode (32-bit when field sf is 0 or absent).
`{cond:cond}`          condition name.
`{a,...,h:fp8}`        the floating-point constant of VFPExpandImm, as a decimal.
`{a,...,h:bytes}`      the 64-bit mask with one byte per bit (MOVI, cmode 1110), hexadecimal.
`{immsysreg:sysreg}`    system register as s3_0_c1_c0_0; 15 bits o0:op1:CRn:CRm:op2, op0 = 2 + o0.
`#{immop:sysop}`          SYS operation as #3, c7, c10, #1; 14 bits op1:CRn:CRm:op2.
`<, #{imm12:*8}>`      optional: left out when all its fields are 0, and may be left out in source. `<Rn=30| {Rn:X}>`
                       names the values that stand for "left out"; several separated by commas.

Alternations without text for a value, and templates for values outside the pattern, format to None.
"""
from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

from trapline.arm64.pseudocode import decode_bit_masks

Fields = dict[str, int]

CONDITIONS = ("eq", "ne", "cs", "cc", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al", "nv")
CONDITION_ALIASES = {"hs": "cs", "lo": "cc"}

NUMBER = r"[+-]?(?:0x[0-9a-f]+|0b[01]+|[0-9]+)"
LABEL = r"[.A-Za-z_$0-9+-][\w.$+-]*"
REGISTER_KINDS = {"X": ("x", "xzr"), "W": ("w", "wzr"), "Xsp": ("x", "sp"), "Wsp": ("w", "wsp")}


class AsmError(ValueError):
    """Text that no template, alias or directive accepts, or a template that is itself malformed."""


@dataclass(frozen=True)
class Context:
    """What a template needs beside the fields: the address of the instruction and the known labels."""

    pc: int = 0
    labels: Mapping[str, int] | None = None

    def resolve(self, text: str) -> int | None:
        """The value of a number, a label, or `label+number`; None when it is unknown."""
        if re.fullmatch(NUMBER, text):
            return int(text, 0)
        match = re.fullmatch(r"([.A-Za-z_$][\w.$]*)([+-]\w+)?", text)
        labels = self.labels or {}
        if match is None or match[1] not in labels:
            return None
        return labels[match[1]] + int(match[2] or "0", 0)


class Element:
    """One part of a template: a regular expression, and both directions for it."""

    pattern: str
    names: tuple[str, ...] = ()

    def show(self, fields: Mapping[str, int], at: Context) -> str | None:
        raise NotImplementedError

    def read(self, text: str, at: Context) -> list[Fields]:
        """All the field assignments that print as `text`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Literal(Element):
    text: str

    @property
    def pattern(self) -> str:  # type: ignore[override]
        loose = (r"\s*" + re.escape(part) + r"\s*" if part in ",[]{}!" else r"\s+" if part.isspace() else re.escape(part).replace("\\#", "#?")
                 for part in re.findall(r"\s+|[,\[\]{}!]|[^\s,\[\]{}!]+", self.text))
        return re.sub(r"(\\s[*+])+", lambda m: r"\s+" if r"\s*" not in m[0] else r"\s*", "".join(loose))

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        return self.text

    def read(self, text: str, at: Context) -> list[Fields]:
        return [{}]


@dataclass(frozen=True)
class Joined:
    """Fields that count as one number, first one highest."""

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(self.widths)

    def get(self, fields: Mapping[str, int]) -> int:
        value = 0
        for name, width in zip(self.names, self.widths):
            value = value << width | fields[name]
        return value

    def put(self, value: int) -> Fields:
        result = {}
        for name, width in zip(reversed(self.names), reversed(self.widths)):
            result[name] = value & ((1 << width) - 1)
            value >>= width
        return result


@dataclass(frozen=True)
class Choice(Element):
    """An alternation; the value of the fields is the index."""

    source: Joined
    texts: tuple[str | None, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    @property
    def pattern(self) -> str:  # type: ignore[override]
        texts = {text for text in self.texts if text is not None}
        return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))

    def show(self, fields: Mapping[str, int], at: Context) -> str | None:
        index = self.source.get(fields)
        return self.texts[index] if index < len(self.texts) else None

    def read(self, text: str, at: Context) -> list[Fields]:
        return [self.source.put(index) for index, candidate in enumerate(self.texts) if candidate == text]


@dataclass(frozen=True)
class RegisterName(Element):
    """A general-purpose register whose kind may depend on other fields."""

    source: Joined
    selector: Joined
    kinds: tuple[str, ...]
    offset: int = 0
    pattern = r"[xw][0-9]+|[xw]zr|w?sp|lr|fp"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    def show(self, fields: Mapping[str, int], at: Context) -> str | None:
        kind = self.kinds[self.selector.get(fields)]
        if kind == "!":
            return None
        prefix, thirty_one = REGISTER_KINDS[kind]
        number = (self.source.get(fields) + self.offset) % 32
        return thirty_one if number == 31 else f"{prefix}{number}"

    def read(self, text: str, at: Context) -> list[Fields]:
        text = {"lr": "x30", "fp": "x29"}.get(text, text)
        result = []
        for index, kind in enumerate(self.kinds):
            if kind == "!":
                continue
            prefix, thirty_one = REGISTER_KINDS[kind]
            if text == thirty_one:
                number = 31
            elif text[0] == prefix and text[1:].isdigit() and int(text[1:]) < 31:
                number = int(text[1:])
            else:
                continue
            number = (number - self.offset) % 32
            if number < 1 << self.source.width:
                result.append(self.selector.put(index) | self.source.put(number))
        return result


@dataclass(frozen=True)
class Number(Element):
    """A number: base + scale * value (signed or not), optionally shifted by another field, optionally PC-relative."""

    source: Joined
    signed: bool = False
    hexadecimal: bool = False
    scale: int = 1
    base: int = 0
    shift: Joined | None = None
    relative: str = ""
    wrap: int = 0

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    @property
    def pattern(self) -> str:  # type: ignore[override]
        return LABEL if self.relative else f"{NUMBER}|{LABEL}"

    def _origin(self, at: Context) -> int:
        return {"": 0, "pc": at.pc, "page": at.pc & ~0xFFF}[self.relative]

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        value = self.source.get(fields)
        if self.signed and value >> (self.source.width - 1):
            value -= 1 << self.source.width
        if self.shift:
            value <<= self.shift.get(fields)
        value = value * self.scale + self.base
        if self.wrap:
            value %= self.wrap
        if self.relative:
            return hex((value + self._origin(at)) % 2**64)
        return hex(value) if self.hexadecimal else str(value)

    def read(self, text: str, at: Context) -> list[Fields]:
        value = at.resolve(text)
        if value is None:
            return []
        if self.relative:
            value = (value - self._origin(at) + 2**63) % 2**64 - 2**63
            if self.relative == "page":
                value &= ~0xFFF
        value, remainder = divmod(value - self.base, self.scale)
        if remainder:
            return []
        if self.wrap:
            value %= self.wrap
        shifts = range(1 << self.shift.width) if self.shift else (0,)
        result = []
        for shift in shifts:
            encoded = value >> shift
            if encoded << shift == value and self._fits(encoded):
                fields = self.source.put(encoded)
                result.append(fields | self.shift.put(shift) if self.shift else fields)
        return result

    def _fits(self, value: int) -> bool:
        half = 1 << (self.source.width - 1)
        return -half <= value < half if self.signed else 0 <= value < 2 * half


@cache
def bitmask_immediates() -> dict[int, int]:
    """N:immr:imms -> 64-bit mask, for every canonical encoding of a logical immediate."""
    masks = {}
    for length in range(1, 7):
        size = 1 << length
        for ones, rotation in product(range(size - 1), range(size)):
            n, imms = size >> 6, (~(2 * size - 1) & 63) | ones
            masks[n << 12 | rotation << 6 | imms] = decode_bit_masks(n, imms, rotation)
    return masks


@dataclass(frozen=True)
class BitmaskImmediate(Element):
    """N:immr:imms, the immediate of the logical instructions."""

    source: Joined
    has_sf: bool
    pattern = NUMBER

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    def show(self, fields: Mapping[str, int], at: Context) -> str | None:
        width = 64 if not self.has_sf or fields["sf"] else 32
        value, masks = self.source.get(fields), bitmask_immediates()
        for rotation_bits in range(6, 0, -1):  # immr may have bits that an element of this size doesn't look at
            canonical = value & ~(63 << 6) | value & ((1 << rotation_bits) - 1) << 6
            if canonical in masks:
                return hex(masks[canonical] & ((1 << width) - 1))
        return None

    def read(self, text: str, at: Context) -> list[Fields]:
        value = int(text, 0)
        result = []
        for sf in (0, 1) if self.has_sf else (1,):
            width = 64 if sf else 32
            if not -(2 ** (width - 1)) <= value < 2**width:
                continue
            wanted = value % 2**width * (1 if sf else 1 << 32 | 1)
            for encoded in (e for e, mask in bitmask_immediates().items() if mask == wanted):
                fields = self.source.put(encoded)
                result.append(fields | {"sf": sf} if self.has_sf else fields)
        return result


@dataclass(frozen=True)
class Condition(Element):
    source: Joined
    pattern = "|".join((*CONDITIONS, *CONDITION_ALIASES))

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        return CONDITIONS[self.source.get(fields)]

    def read(self, text: str, at: Context) -> list[Fields]:
        return [self.source.put(CONDITIONS.index(CONDITION_ALIASES.get(text, text)))]


@dataclass(frozen=True)
class FloatImmediate(Element):
    """imm8 of FMOV: one sign bit, three exponent bits, four fraction bits."""

    source: Joined
    pattern = r"[+-]?[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    @staticmethod
    def value(imm8: int) -> float:
        """VFPExpandImm as a Python float."""
        exponent = (imm8 >> 4 & 3) - (4 if imm8 & 0x40 else 0) + 1
        return (-1.0 if imm8 & 0x80 else 1.0) * (16 + (imm8 & 15)) / 16 * 2.0**exponent

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        return repr(self.value(self.source.get(fields)))

    def read(self, text: str, at: Context) -> list[Fields]:
        wanted = struct.pack("<d", float(text))
        return [self.source.put(imm8) for imm8 in range(256) if struct.pack("<d", self.value(imm8)) == wanted]


@dataclass(frozen=True)
class ByteMask(Element):
    """Eight bits, each standing for a byte of ones or zeros."""

    source: Joined
    pattern = NUMBER

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        bits = self.source.get(fields)
        return hex(sum(0xFF << 8 * n for n in range(8) if bits >> n & 1))

    def read(self, text: str, at: Context) -> list[Fields]:
        value = int(text, 0) % 2**64
        bits = sum(1 << n for n in range(8) if value >> 8 * n & 1)
        return [self.source.put(bits)] if int(self.show(self.source.put(bits), at), 0) == value else []


@dataclass(frozen=True)
class SystemRegister(Element):
    source: Joined
    pattern = r"[a-z_]\w*"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        value = self.source.get(fields)
        op0 = 2 + (value >> 14 & 1)
        return f"s{op0}_{value >> 11 & 7}_c{value >> 7 & 15}_c{value >> 3 & 15}_{value & 7}"

    def read(self, text: str, at: Context) -> list[Fields]:
        match = re.fullmatch(r"s([23])_([0-7])_c(\d+)_c(\d+)_([0-7])", text)
        if match is None:
            return []
        op0, op1, crn, crm, op2 = map(int, match.groups())
        if crn > 15 or crm > 15:
            return []
        return [self.source.put((op0 - 2) << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)]


@dataclass(frozen=True)
class SystemOperation(Element):
    source: Joined
    pattern = r"[0-7]\s*,\s*c\d+\s*,\s*c\d+\s*,\s*#?[0-7]"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        value = self.source.get(fields)
        return f"{value >> 11}, c{value >> 7 & 15}, c{value >> 3 & 15}, #{value & 7}"

    def read(self, text: str, at: Context) -> list[Fields]:
        op1, crn, crm, op2 = (int(part.strip("# c")) for part in text.split(","))
        return [self.source.put(op1 << 11 | crn << 7 | crm << 3 | op2)] if crn < 16 and crm < 16 else []


@dataclass(frozen=True)
class Optional(Element):
    """Elements that are left out when their fields have the default values."""

    parts: tuple[Element, ...]
    defaults: tuple[tuple[str, int], ...]
    pattern = ""

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for part in self.parts for name in part.names)


class Template:
    """A compiled `asm=` string; `widths` gives the width of each field of the pattern."""

    def __init__(self, text: str, widths: Mapping[str, int]):
        self.text = text
        self.widths = dict(widths)
        self.elements = _compile(text, self.widths)
        self._flat: list[Element] = []
        self._regex: re.Pattern[str] | None = None

    def format(self, fields: Mapping[str, int], pc: int = 0) -> str | None:
        """The assembly text for these fields, or None when they have no syntax."""
        return _show(self.elements, fields, Context(pc))

    def parse(self, text: str, at: Context) -> Iterator[Fields]:
        """Every assignment of fields that prints as `text` (white space and letter case ignored)."""
        if self._regex is None:
            self._regex = re.compile(self._expression(self.elements))
        match = self._regex.fullmatch(text)
        if match is None:
            return
        defaults: Fields = {}
        for element in self.elements:
            if isinstance(element, Optional):
                defaults.update(element.defaults)
        candidates: list[Fields] = [{}]
        for element, group in zip(self._flat, match.groups()):
            if group is not None:
                found = element.read(group, at)
                candidates = [old | new for old in candidates for new in found
                              if all(old.get(name, value) == value for name, value in new.items())]
        for fields in candidates:
            yield defaults | fields

    def mnemonics(self) -> set[str]:
        """Every first word that this template can print."""
        words = {""}
        for element in self.elements:
            if isinstance(element, Literal):
                head = element.text.split(" ", 1)
                words = {word + head[0] for word in words}
                if len(head) > 1:
                    break
            elif isinstance(element, Choice):
                words = {word + text for word in words for text in element.texts if text is not None}
            elif isinstance(element, Condition):
                words = {word + text for word in words for text in (*CONDITIONS, *CONDITION_ALIASES)}
            else:
                break
        return words

    def _expression(self, elements: tuple[Element, ...]) -> str:
        result = ""
        for element in elements:
            if isinstance(element, Optional):
                result += f"(?:{self._expression(element.parts)})?"
            elif isinstance(element, Literal):
                result += element.pattern
            else:
                self._flat.append(element)
                result += f"({element.pattern})"
        return result


def _show(elements: tuple[Element, ...], fields: Mapping[str, int], at: Context) -> str | None:
    result = ""
    for element in elements:
        if isinstance(element, Optional):
            if all(fields[name] == value for name, value in element.defaults):
                continue
            text = _show(element.parts, fields, at)
        else:
            text = element.show(fields, at)
        if text is None:
            return None
        result += text
    return result


_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|<(?:((?:\w+=\d+,?)+)\|)?((?:\{[^{}]*\}|[^<>{}])*)>|[^{}<>]+")


def _compile(text: str, widths: Mapping[str, int]) -> tuple[Element, ...]:
    """Split a template into elements, merging neighbouring literals."""
    elements: list[Element] = []
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise AsmError(f"template {text!r}: stray {text[position]!r} at {position}")
        position = token.end()
        if token[0] in ("{{", "}}") or token[0][0] not in "{<":
            literal = token[0][0] if token[0] in ("{{", "}}") else token[0]
            if elements and isinstance(elements[-1], Literal):
                literal = elements.pop().text + literal  # type: ignore[attr-defined]
            elements.append(Literal(literal))
        elif token[0][0] == "{":
            elements.append(_element(token[1], widths))
        else:
            parts = _compile(token[3], widths)
            named = dict(item.split("=") for item in token[2].strip(",").split(",")) if token[2] else {}
            names = dict.fromkeys(name for part in parts for name in part.names)
            defaults = named or dict.fromkeys(names, 0)
            elements.append(Optional(parts, tuple((name, int(value)) for name, value in defaults.items())))
    return tuple(elements)


def _joined(names: str, widths: Mapping[str, int]) -> Joined:
    split = tuple(names.split(",")) if names else ()
    unknown = [name for name in split if name not in widths]
    if unknown:
        raise AsmError(f"template names field {unknown[0]!r}, which the pattern doesn't have")
    return Joined(split, tuple(widths[name] for name in split))


_ARITHMETIC = re.compile(r"(s|x|pc|page)?(?:<<(\w+))?(?:\*(\d+))?([+-]\d+)?")


def _element(body: str, widths: Mapping[str, int]) -> Element:
    """The element of `{names:kind}`."""
    names, _, kind = body.partition(":")
    source = _joined(names, widths)
    simple = {"cond": Condition, "fp8": FloatImmediate, "bytes": ByteMask, "sysreg": SystemRegister,
              "sysop": SystemOperation}
    if kind in simple:
        return simple[kind](source)
    if kind == "bitmask":
        return BitmaskImmediate(source, "sf" in widths)
    register = re.fullmatch(r"(R|Rsp|X|W|Xsp|Wsp)(\+\d+)?", kind)
    if register:
        by_sf = {"R": ("W", "X"), "Rsp": ("Wsp", "Xsp")}.get(register[1])
        selector = _joined("sf" if by_sf else "", widths)
        return RegisterName(source, selector, by_sf or (register[1],), int(register[2] or 0))
    selected = re.fullmatch(r"([\w,]+)=([^+]*)(\+\d+)?", kind)
    if selected:
        return RegisterName(source, _joined(selected[1], widths), tuple(selected[2].split("|")), int(selected[3] or 0))
    if "|" in kind:
        return Choice(source, tuple({"!": None, "!!": "!"}.get(text, text) for text in kind.split("|")))
    wrap = 32 if names.startswith("R") else 0
    reverse = re.fullmatch(r"(\d+)-", kind)
    if reverse:
        return Number(source, scale=-1, base=int(reverse[1]))
    number = _ARITHMETIC.fullmatch(kind)
    if number is None:
        raise AsmError(f"template element {{{body}}}: unknown kind {kind!r}")
    relative = number[1] if number[1] in ("pc", "page") else ""
    return Number(source, signed=number[1] == "s" or bool(relative), hexadecimal=number[1] == "x",
                  scale=4096 if relative == "page" else int(number[3] or 1), base=int(number[4] or 0),
                  shift=_joined(number[2], widths) if number[2] else None, relative=relative, wrap=wrap)
