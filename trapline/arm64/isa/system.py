"""Exception generation, hints, barriers, PSTATE and system-register instructions.

Operations by name
------------------
Bodies in `arm64.isa` leave these `cpu.system(name, *args)` operations for whoever runs them. Arguments are 64-bit unless said
otherwise; an operation that traps or is UNDEFINED takes its exception before it changes anything.

mrs number -> value            number: 15 bits, o0:op1:CRn:CRm:op2 as in the word (op0 = 2 + o0). The register's value, after
                               the traps and access rules of its descriptor.
msr number, value              Write a system register, likewise.
sys number, value of Xt        number: 14 bits, op1:CRn:CRm:op2 (op0 = 1). Maintenance and translation, DC ZVA among it.
sysl number -> value           No such operation exists: UNDEFINED.
msr_imm op1:op2, CRm           MSR (immediate) to SPSel, DAIFSet, DAIFClr, PAN, UAO: EL0 may not, or only with SCTLR_EL1.UMA;
                               unmasking looks at interrupts again.
eret                           Exception return from the current EL; UNDEFINED at EL0.
eret_auth key, modifier        The same, to the address in ELR_ELx after `arm64.pauth.pac_auth` of it; key 0: IA, 1: IB.
wfe, wfi                       Wait, after the traps of SCTLR_EL1.nTWE, nTWI and HCR_EL2.TWE, TWI.
wfet, wfit deadline            The same until the virtual counter reaches `deadline`.
relax                          YIELD: changes nothing.
sev, sevl                      Set every PE's, or this PE's, event register.
clrex                          Clear the local exclusive monitor.
pac_fail key                   With `when`: the exception of FEAT_FPAC.
disabled                       With `when`: UNDEFINED after all.
mops_copy Xd, Xs, Xn, options -> Xn   Copy memory by option A; options: op2, 16 if not forward only. See isa/memory_copy.py.
mops_set Xd, Xs, Xn, options -> Xn    Set memory, likewise.
mops_mismatch                  With `when`: the prologue was one of option B.
pac_trap                       With `when`: the trap of pointer authentication to EL2 (EC 0x09).

Exceptions by kind, `cpu.raise_(kind, imm16)`: `undefined`, `svc`, `hvc`, `smc`, `brk`, `hlt`. HLT and DCPS need external debug,
which the machine has none of, so they are UNDEFINED and never raised; UDF is `undefined`.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.bits import const


@insn("11010100 000 imm16:16 000 01", asm="svc #{imm16:x}")
def svc(cpu: Any, i: Any) -> None:
    """SVC."""
    cpu.raise_("svc", i.imm16)


@insn("11010100 000 imm16:16 000 10", asm="hvc #{imm16:x}")
def hvc(cpu: Any, i: Any) -> None:
    """HVC."""
    cpu.raise_("hvc", i.imm16)


@insn("11010100 000 imm16:16 000 11", asm="smc #{imm16:x}")
def smc(cpu: Any, i: Any) -> None:
    """SMC."""
    cpu.raise_("smc", i.imm16)


@insn("11010100 001 imm16:16 000 00", asm="brk #{imm16:x}")
def brk(cpu: Any, i: Any) -> None:
    """BRK."""
    cpu.raise_("brk", i.imm16)


@insn("11010100 010 imm16:16 000 00", asm="hlt #{imm16:x}")
def hlt(cpu: Any, i: Any) -> None:
    """HLT: UNDEFINED while halting debug is disabled, which it always is here."""
    cpu.undefined()


@insn("11010100 101 imm16:16 000 LL:2", where=lambda f: f.LL != 0, asm="dcps{LL:!|1|2|3}< #{imm16:x}>")
def dcps(cpu: Any, i: Any) -> None:
    """DCPS1, DCPS2, DCPS3: UNDEFINED outside Debug state."""
    cpu.undefined()


@insn("0000000000000000 imm16:16", asm="udf #{imm16}")
def udf(cpu: Any, i: Any) -> None:
    """UDF: permanently UNDEFINED."""
    cpu.undefined()


HINT = "11010101000000110010"


@insn(HINT + " immhint:7 11111", asm="hint #{immhint:x}")
def hint(cpu: Any, i: Any) -> None:
    """HINT: the numbers that aren't allocated, or whose feature is absent, do nothing."""


@insn(HINT + " 0000 000 11111", asm="nop", over="hint")
def nop(cpu: Any, i: Any) -> None:
    """NOP."""


@insn(HINT + " 0100 targets:2 0 11111", asm="bti{targets:| c| j| jc}", over="hint")
def bti(cpu: Any, i: Any) -> None:
    """BTI: where calls (c) and jumps (j) into a guarded page may land. The branch looks at it; executing it does nothing."""


@insn(HINT + " 0000 001 11111", asm="yield", over="hint")
def yield_(cpu: Any, i: Any) -> None:
    """YIELD: says that others have better use for the time."""
    cpu.system("relax")


@insn(HINT + " 0000 01 event:1 11111", asm="wf{event:e|i}", over="hint")
def wait_for(cpu: Any, i: Any) -> None:
    """WFE, WFI."""
    cpu.system("wfi" if i.event else "wfe")


@insn(HINT + " 0000 10 local:1 11111", asm="sev{local:|l}", over="hint")
def send_event(cpu: Any, i: Any) -> None:
    """SEV, SEVL."""
    cpu.system("sevl" if i.local else "sev")


@insn("11010101000000110001 0000 00 event:1 Rt:5", feature="FEAT_WFxT", asm="wf{event:et|it} {Rt:X}")
def wait_with_timeout(cpu: Any, i: Any) -> None:
    """WFET, WFIT."""
    cpu.system("wfit" if i.event else "wfet", cpu.X(i.Rt))


@insn("11010101000000110011 immcrm:4 010 11111", asm="clrex<immcrm=15| #{immcrm}>")
def clrex(cpu: Any, i: Any) -> None:
    """CLREX."""
    cpu.clear_exclusive()


@insn("11010101000000110011 CRm:4 10 opc:1 11111",
      asm="d{opc:s|m}b {CRm:#0|oshld|oshst|osh|#4|nshld|nshst|nsh|#8|ishld|ishst|ish|#12|ld|st|sy}")
def data_barrier(cpu: Any, i: Any) -> None:
    """DSB, DMB. DSB with CRm 0 and 4 are SSBB and PSSBB, which this is strong enough for."""
    cpu.barrier("dmb" if i.opc else "dsb", i.CRm)


@insn("11010101000000110011 0000 100 11111", asm="ssbb", over="data_barrier")
@insn("11010101000000110011 0100 100 11111", asm="pssbb", over="data_barrier")
def speculative_store_bypass_barrier(cpu: Any, i: Any) -> None:
    """SSBB, PSSBB: nothing is speculated here."""


@insn("11010101000000110011 immcrm:4 110 11111", asm="isb<immcrm=15| #{immcrm}>")
def isb(cpu: Any, i: Any) -> None:
    """ISB."""
    cpu.barrier("isb")


@insn("11010101000000110011 0000 111 11111", feature="FEAT_SB", asm="sb")
def sb(cpu: Any, i: Any) -> None:
    """SB."""
    cpu.barrier("sb")


@insn("1101010100000 000 0100 .... 000 11111", feature="FEAT_FlagM", asm="cfinv")
def cfinv(cpu: Any, i: Any) -> None:
    """CFINV."""
    cpu.set_flag("C", ~cpu.flag("C"))


@insn("1101010100000 000 0100 .... 001 11111", feature="FEAT_FlagM2", asm="xaflag")
def xaflag(cpu: Any, i: Any) -> None:
    """XAFLAG: flags of a comparison from the external format to Arm's."""
    z, c = cpu.flag("Z"), cpu.flag("C")
    cpu.flags(~(c | z), z & c, c | z, ~c & z)


@insn("1101010100000 000 0100 .... 010 11111", feature="FEAT_FlagM2", asm="axflag")
def axflag(cpu: Any, i: Any) -> None:
    """AXFLAG: flags of a comparison from Arm's format to the external one."""
    z, c, v = cpu.flag("Z"), cpu.flag("C"), cpu.flag("V")
    cpu.flags(const(0, 1), z | v, c & ~v, const(0, 1))


@insn("1101010100000 000 0100 ... immcrm:1 op2:3 11111", where=lambda f: f.op2 in (3, 4, 5),
      asm="msr {op2:!|!|!|uao|pan|spsel|!|!}, #{immcrm}")  # fmt: skip
def msr_immediate(cpu: Any, i: Any) -> None:
    """MSR (immediate) to UAO, PAN, SPSel: UNDEFINED at EL0."""
    cpu.system("msr_imm", i.op2, i.immcrm)


@insn("1101010100000 011 0100 immcrm:4 11 clear:1 11111", asm="msr daif{clear:set|clr}, #{immcrm}")
def msr_daif_immediate(cpu: Any, i: Any) -> None:
    """MSR DAIFSet, MSR DAIFClr."""
    cpu.system("msr_imm", 3 << 3 | 6 | i.clear, i.immcrm)


@insn("1101010100000 011 0100 ... b:1 001 11111", feature="FEAT_SSBS2", asm="msr ssbs, #{b}")
def msr_ssbs(cpu: Any, i: Any) -> None:
    """MSR SSBS, #imm."""
    cpu.set_pstate("ssbs", const(i.b, 8))


@insn("1101010100000 011 0100 ... b:1 010 11111", feature="FEAT_DIT", asm="msr dit, #{b}")
def msr_dit(cpu: Any, i: Any) -> None:
    """MSR DIT, #imm."""
    cpu.set_pstate("dit", const(i.b, 8))


@insn("1101010100 0 01 immop:14 Rt:5", asm="sys #{immop:sysop}<Rt=31|, {Rt:X}>")
def sys(cpu: Any, i: Any) -> None:
    """SYS: AT, DC, IC, TLBI and the like."""
    cpu.system("sys", i.immop, cpu.X(i.Rt))


@insn("1101010100 1 01 immop:14 Rt:5", asm="sysl {Rt:X}, #{immop:sysop}")
def sysl(cpu: Any, i: Any) -> None:
    """SYSL."""
    cpu.set_X(i.Rt, cpu.system("sysl", i.immop, width=64))


@insn("1101010100 0 1 immsysreg:15 Rt:5", asm="msr {immsysreg:sysreg}, {Rt:X}")
def msr_register(cpu: Any, i: Any) -> None:
    """MSR (register)."""
    cpu.system("msr", i.immsysreg, cpu.X(i.Rt))


@insn("1101010100 1 1 immsysreg:15 Rt:5", asm="mrs {Rt:X}, {immsysreg:sysreg}")
def mrs(cpu: Any, i: Any) -> None:
    """MRS."""
    cpu.set_X(i.Rt, cpu.system("mrs", i.immsysreg, width=64))
