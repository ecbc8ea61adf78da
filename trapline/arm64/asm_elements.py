"""The elements of assembly templates: each prints a part of an instruction and reads it back."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
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
        loose = map(self._loose, re.findall(r"\s+|[,\[\]{}!]|[^\s,\[\]{}!]+", self.text))
        return re.sub(r"(\\s[*+])+", lambda m: r"\s+" if r"\s*" not in m[0] else r"\s*", "".join(loose))

    @staticmethod
    def _loose(part: str) -> str:
        """White space is free around punctuation, and # may be left out."""
        if part in ",[]{}!":
            return rf"\s*{re.escape(part)}\s*"
        return r"\s+" if part.isspace() else re.escape(part).replace(r"\#", "#?")

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
class FieldElement(Element):
    """An element that shows one field, or several joined."""

    source: Joined

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source.names


@dataclass(frozen=True)
class Choice(FieldElement):
    """An alternation; the value of the fields is the index."""

    texts: tuple[str | None, ...]

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
class RegisterName(FieldElement):
    """A general-purpose register whose kind may depend on other fields."""

    selector: Joined
    kinds: tuple[str, ...]
    offset: int = 0
    pattern = r"[xw][0-9]+|[xw]zr|w?sp|lr|fp"

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
class Number(FieldElement):
    """A number: base + scale * value (signed or not), optionally shifted by another field, optionally PC-relative."""

    signed: bool = False
    hexadecimal: bool = False
    scale: int = 1
    base: int = 0
    shift: Joined | None = None
    relative: str = ""
    wrap: int = 0

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
class BitmaskImmediate(FieldElement):
    """N:immr:imms, the immediate of the logical instructions."""

    has_sf: bool
    pattern = NUMBER

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
class Condition(FieldElement):
    """A condition name."""

    pattern = "|".join((*CONDITIONS, *CONDITION_ALIASES))

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        return CONDITIONS[self.source.get(fields)]

    def read(self, text: str, at: Context) -> list[Fields]:
        return [self.source.put(CONDITIONS.index(CONDITION_ALIASES.get(text, text)))]


@dataclass(frozen=True)
class FloatImmediate(FieldElement):
    """imm8 of FMOV: one sign bit, three exponent bits, four fraction bits."""

    pattern = r"[+-]?[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?"

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
class ByteMask(FieldElement):
    """Eight bits, each standing for a byte of ones or zeros."""

    pattern = NUMBER

    def show(self, fields: Mapping[str, int], at: Context) -> str:
        bits = self.source.get(fields)
        return hex(sum(0xFF << 8 * n for n in range(8) if bits >> n & 1))

    def read(self, text: str, at: Context) -> list[Fields]:
        value = int(text, 0) % 2**64
        bits = sum(1 << n for n in range(8) if value >> 8 * n & 1)
        return [self.source.put(bits)] if int(self.show(self.source.put(bits), at), 0) == value else []


@dataclass(frozen=True)
class SystemRegister(FieldElement):
    """A system register as s3_0_c1_c0_0."""

    pattern = r"[a-z_]\w*"

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
class SystemOperation(FieldElement):
    """The operands of SYS before the register."""

    pattern = r"[0-7]\s*,\s*c\d+\s*,\s*c\d+\s*,\s*#?[0-7]"

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
