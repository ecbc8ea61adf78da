"""A machine without a hypervisor of ours: processors whose EL1 (or EL2) is the guest's, firmware, and a hardware GICv3.

It shows itself through objects like those of `backends`, so that `vmm` builds and runs both kinds of machine in the same way. What
hardware does between instructions is here; what userspace does about an access to a device is not.
"""
