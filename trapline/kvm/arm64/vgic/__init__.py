"""The virtual GICv3: distributor, redistributors and the hypervisor's side of the CPU interfaces."""

from trapline.kvm.arm64.vgic.attributes import VgicV3

__all__ = ["VgicV3"]
