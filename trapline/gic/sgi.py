"""Software-generated interrupts: the value written to ICC_SGI0R_EL1, ICC_SGI1R_EL1 or ICC_ASGI1R_EL1 (IHI0069, 12.2.14)."""

from __future__ import annotations

from trapline.registers import Field, Register


class SgiRequest(Register):
    """Which processors get which SGI."""

    TargetList = Field(15, 0)
    Aff1 = Field(23, 16)
    INTID = Field(27, 24)
    Aff2 = Field(39, 32)
    IRM = Field(40)
    RS = Field(47, 44)
    Aff3 = Field(55, 48)

    def selects(self, affinity: int, is_sender: bool) -> bool:
        """Whether the processor with this affinity is a target. IRM addresses everyone but the sender."""
        if self.IRM:
            return not is_sender
        aff0 = affinity & 0xFF
        cluster = self.Aff3 << 24 | self.Aff2 << 16 | self.Aff1 << 8
        return affinity & ~0xFF == cluster and aff0 >> 4 == self.RS and bool(self.TargetList >> (aff0 & 15) & 1)
