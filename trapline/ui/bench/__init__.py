"""`make bench`: the same guest, the same programs, Trapline and QEMU's TCG side by side.

`rows` says what is measured and what is to be reached, `guest` makes the guest, `machine` starts one side and listens to it,
`costs` measures what has no peer, `suite` does it all in turn, `statistics` and `report` turn it into docs/PERFORMANCE.md.
"""
