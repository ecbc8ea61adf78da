"""The virtual GICv3: distributor, redistributors and the hypervisor's side of the CPU interfaces."""

from trapline.kvm.arm64.vgic.device import VgicV3Device as VgicV3

__all__ = ["VgicV3"]
