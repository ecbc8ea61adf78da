"""The x86 architecture as far as a guest's maker needs it: control registers, segments, page tables, MSRs, CPUID. Nothing about KVM."""
