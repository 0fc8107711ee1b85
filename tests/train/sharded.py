"""`chatglm3 train` with weights spread over processes that have CPUs only.

accelerate shards on accelerators alone, though PyTorch's FSDP2 computes on CPUs as well. Here accelerate is told that
this is a case for FSDP, as it decides on GPUs; all that follows is the real thing.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType


def shard_on_cpus() -> None:
    """Have every state of accelerate be FSDP's."""
    plain = state.AcceleratorState.__init__

    def sharded(self: Any, *words: Any, **named: Any) -> None:
        plain(self, *words, **named)
        self.distributed_type = DistributedType.FSDP
        if named.get("fsdp_plugin") is not None:
            self.fsdp_plugin = named["fsdp_plugin"]

    state.AcceleratorState.__init__ = sharded


if __name__ == "__main__":
    shard_on_cpus()
    from chatglm3.cli import execute

    sys.exit(execute(sys.argv[1:]))
