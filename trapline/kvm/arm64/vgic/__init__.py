"""The virtual GICv3: distributor, redistributors and the hypervisor's side of the CPU interfaces."""

from trapline.kvm.arm64.vgic.attributes import VgicV3
from trapline.kvm.arm64.vgic.its import VgicIts

__all__ = ["VgicIts", "VgicV3"]
