"""Virtual x86 machines of the host's /dev/kvm: the same classes as for arm64 with another architecture's state."""
