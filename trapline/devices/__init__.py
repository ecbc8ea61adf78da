"""Userspace's side of MMIO: the devices of the machine. A device knows its registers and never its address."""
