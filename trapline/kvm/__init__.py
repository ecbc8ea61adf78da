"""The hypervisor: what Linux keeps in virt/kvm. Nothing here names an architecture; `kvm.arch` is what one has to provide."""
