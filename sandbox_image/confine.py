"""The kernel's process begins here: it gives up what the policy takes away, and goes on as ``startup.py``.

The supervisor runs this as its child. Nothing else comes first: no thread has been started yet that a filter would have
to be put on as well, and no line has run that is not of this image.
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from sandbox_image import seccomp, wire
from sandbox_image.descriptors import RPC_FD


def main() -> None:
    """Confine this process, tell the supervisor what the system says to it now, and serve a kernel."""
    settings = json.loads(sys.argv[2])
    refused = seccomp.rules(subprocesses=settings["subprocesses"], freeze=settings["freeze"])
    if refused:
        os.write(RPC_FD, wire.encode(wire.Kind.READY, json.dumps(seccomp.install(refused)).encode()))
    from sandbox_image import startup

    startup.main()


if __name__ == "__main__":
    main()
