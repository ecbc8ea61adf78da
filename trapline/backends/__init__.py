"""Ways to reach a KVM: the hypervisor of this package on a software machine, or the host's /dev/kvm."""
