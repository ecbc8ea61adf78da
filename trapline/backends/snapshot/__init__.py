"""Snapshots of virtual machines, taken and restored through the calls that any userspace has: the same for every KVM.

`format.py` is the file, `pages.py` says which memory is worth keeping, `state.py` and `gic.py` read vCPUs and interrupt controllers,
`restore.py` puts everything back in the one order that works, `rebuild.py` makes a VM like the saved one.
"""
