"""The architecture as the manual tells it: instructions, registers, exceptions, translation. Nothing about KVM, nothing about speed."""
