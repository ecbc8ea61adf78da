"""The arm64 part of the hypervisor: what Linux keeps in arch/arm64/kvm. It runs at EL2 of the software machine."""
