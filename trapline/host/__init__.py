"""The part of a Linux host that KVM leans on: a process's memory, and its files."""
