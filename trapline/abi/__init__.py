"""The KVM userspace ABI as data: calls, structures, capabilities and exits. No behaviour.

Numbers are those of the kernel's headers (a test compiles a program against them); texts are our own.
"""
