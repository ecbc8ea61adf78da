"""What an event is, and the pieces it is made of.

An event is a dict that JSON can hold. That of a call has `call`, `fd` and `kind` (of file), `arg` (the argument, see `abi/values.py`) and
`result` or `errno`; and, where there is something to say:

at          what addresses in the argument led to before the call: packed bytes, or null where nothing could be read
cut         what follows the argument could not be read to its end
address     instead of `arg`: an address at which no argument could be read
files       which numbers in the argument were open files of userspace's, and of which kind
wrote       what userspace had written to shared memory since the last call
out, got    fields of the argument, and memory that it leads to, that the call has changed
shared      what the call changed in shared memory beyond kvm_run itself
exit        why KVM_RUN came back
memory      a checksum of the pages of guest memory that the call changed
state       the vCPU's registers after the call, where that was asked for
"""

from __future__ import annotations

import base64
import ctypes
import platform
import zlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from trapline.abi import exits, x86_exits
from trapline.abi.exits import Exit
from trapline.abi.ioctl import Ioctl
from trapline.abi.tables import calls
from trapline.abi.text import PLAIN
from trapline.abi.values import structure_to_data
from trapline.abi.vcpu import KVM_GET_ONE_REG, KVM_GET_REG_LIST, OneReg, reg_list
from trapline.backends.base import Backend
from trapline.backends.vcpu import REGISTER_IDS
from trapline.errors import KvmError

Event = dict[str, Any]

ARM_MACHINES = ("aarch64", "arm64")
PLAIN_BYTES = 64
ROOM = 64 << 10
"""Bytes that no call writes more of, whatever its number encodes."""

ANSWERS = ("data", "value")
"""Fields of exits that are for userspace to set when the guest reads."""

DECODERS = {"arm64": exits.decode_exit, "x86": x86_exits.decode_exit}
NAMES = {reg_id: name for name, reg_id in REGISTER_IDS.items()}


def arch_of(backend: Backend) -> str:
    """Whose guests a backend runs."""
    return "arm64" if backend.name == "software" or platform.machine() in ARM_MACHINES else "x86"


def pack(content: bytes) -> str:
    """Bytes as text: hexadecimal, or compressed if they are many."""
    return content.hex() if len(content) <= PLAIN_BYTES else "z" + base64.b64encode(zlib.compress(content, 1)).decode()


def unpack(text: str) -> bytes:
    """The bytes again."""
    return zlib.decompress(base64.b64decode(text[1:])) if text.startswith("z") else bytes.fromhex(text)


def plain(value: Any) -> Any:
    """A field of an exit as data."""
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return hex(value) if isinstance(value, int) and value >= PLAIN else value


def exit_to_data(exit: Exit) -> dict[str, Any]:
    """An exit by its class and the fields that a match statement would see, but for what it asks userspace for: nobody has set that."""
    asks = not getattr(exit, "is_write", getattr(exit, "is_out", True))
    names = [name for name in getattr(type(exit), "__match_args__", ()) if not (asks and name in ANSWERS)]
    return {"class": type(exit).__name__, **{name: plain(getattr(exit, name)) for name in names}}


def state_of(backend: Backend, file: int, arch: str) -> dict[str, str]:
    """All that a vCPU's calls tell of it: what those say that only read, and every register by id."""
    state: dict[str, str] = {}
    for call in calls_by_name(arch).values():
        if call.kinds == ("vcpu",) and call.direction == "R" and call.struct is not None and call.name.startswith("KVM_GET_"):
            buffer = (ctypes.c_uint8 * ROOM)()
            try:
                backend.ioctl(file, call, ctypes.addressof(buffer))
            except KvmError:
                continue
            _flatten(state, call.name.removeprefix("KVM_GET_").lower(), structure_to_data(call.struct.from_buffer(buffer)))
    for reg_id in _reg_list(backend, file):
        value = (ctypes.c_uint8 * (1 << (reg_id >> 52 & 0xF)))()
        try:
            backend.ioctl(file, KVM_GET_ONE_REG, OneReg(reg_id, ctypes.addressof(value)))
        except KvmError:
            continue
        state[register_name(reg_id)] = hex(int.from_bytes(value, "little"))
    return state


def _flatten(into: dict[str, str], path: str, data: Any) -> None:
    if isinstance(data, dict):
        for name, value in data.items():
            _flatten(into, f"{path}.{name}", value)
    else:
        into[path] = str(data)


def _reg_list(backend: Backend, file: int) -> list[int]:
    room = reg_list(0)
    try:
        backend.ioctl(file, KVM_GET_REG_LIST, room)
    except KvmError:
        if not room.n:
            return []
    full = reg_list(room.n)
    backend.ioctl(file, KVM_GET_REG_LIST, full)
    return list(full.reg)


def register_name(reg_id: int) -> str:
    """A register's name, or its id."""
    if reg_id in NAMES:
        return NAMES[reg_id]
    if reg_id >> 16 & 0xFFF == SYSREG_GROUP:
        from trapline.arm64.regs import TABLE
        from trapline.arm64.sysreg import decode, generic_name

        found = TABLE.get(reg_id & 0xFFFF)
        return found.name if found is not None else generic_name(decode(reg_id & 0xFFFF))
    return hex(reg_id)


SYSREG_GROUP = 0x13


@cache
def calls_by_name(arch: str) -> Mapping[str, Ioctl]:
    """An architecture's calls."""
    return MappingProxyType({call.name: call for call in calls(arch)})


def find_call(name: str, arch: str) -> Ioctl | None:
    """The call of this name that an architecture has."""
    return calls_by_name(arch).get(name)
