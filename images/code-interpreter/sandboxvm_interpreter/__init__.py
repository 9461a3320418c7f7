"""The code interpreter's service: runs cells of Python for HTTP clients, in kernels that keep their state.

    client ── HTTP ──> http ──> service (what can be asked) ──> contexts (kernels) ── ZeroMQ ──> ipykernel
                                     └── lines (what clients read)                               └── in_kernel, charts

It speaks what E2B's code interpreter clients read on port 49999, and is for the loopback of a sandbox alone: whoever
reaches the port may run anything as this user. `in_kernel` and `charts` are the only parts that run inside a kernel.
"""
