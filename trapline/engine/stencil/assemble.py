"""The assembler: predecoded records to code, as a native function.

It goes through a page, and lays down the template of every instruction whose record has its plain handler and whose shape has one.
Where instructions follow each other their code does too; taken branches, and what has no template, go by way of the records, so that
a record alone decides what runs. Templates are laid out in runs: the code of each instruction, a jump to the record after the last,
and then, for each instruction that may need it, the way to its handler.
"""

from __future__ import annotations

import ctypes

from trapline.bits.native import (
    Ptr,
    addressof,
    cas64,
    extern,
    load8,
    load16,
    load32,
    load64,
    native,
    store8,
    store16,
    store32,
    store64,
    u8,
    u16,
    u32,
    u64,
)
from trapline.engine.codemap import RESET_LOCK
from trapline.engine.lock import lock, unlock
from trapline.engine.state import PAGE_GENERATION, PAGE_HEADER, PAGE_INSNS, RECORD_SIZE, Shared
from trapline.engine.stencil.template import (
    DISTANCES,
    GOTO,
    LANDING,
    NEEDS_SLOW,
    NEXT,
    NONE,
    OFFSET,
    PLAIN,
    POLL,
    REACHES_NEXT,
    RECORD,
    SIGNED,
    SLOT,
    SLOW,
    TARGET,
    Assembly,
    Relocation,
    Template,
)

HEAD, ENTRY = ctypes.sizeof(Template), ctypes.sizeof(Relocation)
SLACK = 8
"""Bytes that copying may write past the end."""


decode_word = extern("trapline_decode_word", u32, [u32, u64])


@native
def slot_value(record: u64, slot: u64, size: u8) -> u64:
    """What a slot of a record says."""
    at = record + slot
    bits = u64(size & ~u8(SIGNED)) << 3
    value = load64(at)
    if bits == 8:
        value = u64(load8(at))
    elif bits == 16:
        value = u64(load16(at))
    elif bits == 32:
        value = u64(load32(at))
    if size & SIGNED != 0 and bits != 64 and (value >> (bits - 1)) & 1 != 0:
        value = value | ~((u64(1) << bits) - 1)
    return value


@native
def lay(a: Ptr[Assembly], template: u64, index: u64, out: u64, following: u64, slow: u64) -> u64:
    """Copy a template for the instruction at `index` and fill in its places; returns where it ends."""
    size = u64(load32(template))
    count = u64(load32(template + 4))
    code = template + HEAD + count * ENTRY
    done = u64(0)
    while done < size:
        store64(out + done, load64(code + done))
        done = done + 8
    record = a.records + index * RECORD_SIZE
    at = template + HEAD
    for _ in range(count):
        place = out + u64(load32(at))
        kind = load8(at + Relocation.kind.offset)
        width = load8(at + Relocation.width.offset)
        value = load64(at + Relocation.addend.offset)
        if kind == SLOT:
            value = value + slot_value(record, u64(load8(at + Relocation.slot.offset)), load8(at + Relocation.slot_size.offset))
        elif kind == TARGET:
            value = value + record
            value = value + slot_value(record, u64(load8(at + Relocation.slot.offset)), load8(at + Relocation.slot_size.offset))
        elif kind == RECORD:
            value = value + record
        elif kind == OFFSET:
            value = value + (index << 2)
        elif kind == PLAIN:
            value = value + load64(record)
        elif kind == NEXT:
            value = value + following
        elif kind == SLOW:
            value = value + slow
        elif kind == POLL:
            value = value + a.poll
        elif kind == GOTO:
            value = value + a.goto
        elif kind == LANDING:
            value = value + a.landing
        if kind >= DISTANCES:
            value = value - place
        if width == 8:
            store64(place, value)
        elif width == 4:
            store32(place, u32(value))
        elif width == 2:
            store16(place, u16(value))
        else:
            store8(place, u8(value))
        at = at + ENTRY
    return out + size


@native
def choose(a: Ptr[Assembly]) -> u64:
    """Note the template of each instruction that gets one; how many there are."""
    chosen = u64(0)
    a.missing_count = 0
    for index in range(PAGE_INSNS):
        shape = u64(decode_word(load32(a.text + (index << 2)), index))
        template = load64(a.templates + (shape << 3))
        handler = load64(a.records + index * RECORD_SIZE)
        if handler != load64(a.handlers + (shape << 3)):
            template = 0
        elif template == 0:
            store64(a.missing + (a.missing_count << 3), shape)
            a.missing_count = a.missing_count + 1
        elif template == NONE:
            template = 0
        else:
            chosen = chosen + 1
        store64(a.places + (index << 3), template)
    return chosen


@native
def assemble(a: Ptr[Assembly]) -> u64:
    """Lay down what `choose` chose; `places` then says where each instruction's code is. Returns the end, or 0 if room is lacking."""
    out = a.out
    first = u64(0)
    slow_size = u64(load32(a.slow))
    leave_size = u64(load32(a.leave))
    while first < PAGE_INSNS:
        if load64(a.places + (first << 3)) == 0:
            first = first + 1
            continue
        end = first
        size = u64(0)
        slows = u64(0)
        flags = u32(0)
        template = load64(a.places + (end << 3))
        while template != 0:
            size = size + u64(load32(template))
            flags = load32(template + Template.flags.offset)
            if flags & NEEDS_SLOW != 0:
                slows = slows + 1
            end = end + 1
            template = u64(0)
            if end < PAGE_INSNS:
                template = load64(a.places + (end << 3))
        if flags & REACHES_NEXT != 0:
            size = size + leave_size
        slow = out + size
        if slow + slows * slow_size + SLACK > a.limit:
            return 0
        for index in range(first, end):
            template = load64(a.places + (index << 3))
            store64(a.places + (index << 3), out)
            flags = load32(template + Template.flags.offset)
            out = lay(a, template, index, out, out + u64(load32(template)), slow)
            if flags & NEEDS_SLOW != 0:
                slow = slow + slow_size
        if flags & REACHES_NEXT != 0:
            out = lay(a, a.leave, end, out, 0, 0)
        for index in range(first, end):
            place = load64(a.places + (index << 3))
            shape = u64(decode_word(load32(a.text + (index << 2)), index))
            template = load64(a.templates + (shape << 3))
            if place != 0 and load32(template + Template.flags.offset) & NEEDS_SLOW != 0:
                out = lay(a, a.slow, index, out, 0, 0)
        first = end
    return out


@native
def publish(shared: Ptr[Shared], a: Ptr[Assembly]) -> u64:
    """Have records run their code, unless anything on the page was forgotten meanwhile; how many do."""
    lock(addressof(shared) + RESET_LOCK)
    done = u64(0)
    if load64(a.records - PAGE_HEADER + PAGE_GENERATION) == a.generation:
        for index in range(PAGE_INSNS):
            place = load64(a.places + (index << 3))
            if place != 0:
                record = a.records + index * RECORD_SIZE
                shape = u64(decode_word(load32(a.text + (index << 2)), index))
                handler = load64(a.handlers + (shape << 3))
                if cas64(record, handler, place) == handler:
                    done = done + 1
    unlock(addressof(shared) + RESET_LOCK)
    return done
