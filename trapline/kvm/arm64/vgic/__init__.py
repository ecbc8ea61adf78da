"""The virtual interrupt controllers: GICv3, its ITS, and GICv2."""

from trapline.kvm.arm64.vgic.attributes import VgicV3
from trapline.kvm.arm64.vgic.its import VgicIts
from trapline.kvm.arm64.vgic.v2 import VgicV2

__all__ = ["VgicIts", "VgicV2", "VgicV3"]
