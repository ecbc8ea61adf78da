"""The virtual machine monitor: machine, board, device tree, boot protocols and the run loop, over the public KVM API."""
