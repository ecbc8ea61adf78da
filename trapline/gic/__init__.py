"""A GICv3 without its wires: distributor, redistributors, and what fills the list registers of CPU interfaces.

The hypervisor's virtual controller (kvm/arm64/vgic) and the interrupt controller of a machine without hypervisor (bare/) are both this.
"""
