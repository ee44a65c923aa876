"""Every object against every BTF at hand: no guest, no root; the engine is the guest's (harness.guest.core_relo).

`archive` takes BTF out of what holds it, `index` makes the mapped form of it that opens in no time, `targets` finds
what there is, `engine` relocates in parallel processes, `classes` says of hundreds of answers what they have in common.
"""
