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
from collections.abc import Iterator, Mapping

from trapline.arm64.asm_elements import (
    CONDITION_ALIASES,
    CONDITIONS,
    AsmError,
    BitmaskImmediate,
    ByteMask,
    Choice,
    Condition,
    Context,
    Element,
    Fields,
    FloatImmediate,
    Joined,
    Literal,
    Number,
    Optional,
    RegisterName,
    SystemOperation,
    SystemRegister,
)


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
            defaults = named or dict.fromkeys(names, "0")
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
