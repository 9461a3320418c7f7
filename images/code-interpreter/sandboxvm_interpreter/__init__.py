"""The code interpreter's service: runs cells of Python for HTTP clients, in kernels that keep their state.

    client ── HTTP ──> http ──> service (what can be asked) ──> contexts (kernels) ── ZeroMQ ──> ipykernel
                                     └── lines (what clients read)      kernel, nursery          └── in_kernel, tables, charts

It speaks what E2B's code interpreter clients read on port 49999, and is for the loopback of a sandbox alone: a
process that reaches the port can run anything as this user. `in_kernel`, `tables` and `charts` run inside kernels only,
`strict_json` on both sides.
"""
