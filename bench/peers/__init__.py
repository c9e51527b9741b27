"""The replay buffers that are compared, each behind an adapter that a process of its own drives.

To add one: a module with a subclass of `peers.adapter.Adapter`, and a line in ADAPTERS.
"""

# peer: (module, class, what it is in the tables)
ADAPTERS = {
    "mpbuffer": ("peers.mpbuffer", "Mpbuffer", "mpbuffer"),
    "cpprb": ("peers.cpprb", "Cpprb", "cpprb"),
    "cpprb-mp": ("peers.cpprb_mp", "CpprbMP", "cpprb MP"),
    "torchrl": ("peers.torchrl", "TorchRL", "TorchRL"),
    "reverb": ("peers.reverb", "Reverb", "Reverb"),
    "queue": ("peers.queue", "QueueIntoCpprb", "Queue into cpprb"),
    "sb3": ("peers.sb3", "StableBaselines3", "SB3"),
    "tianshou": ("peers.tianshou", "Tianshou", "tianshou"),
}
TITLES = {peer: title for peer, (_, _, title) in ADAPTERS.items()}
SHARED = "mpbuffer", "cpprb-mp", "torchrl", "reverb", "queue"  # many processes can add
