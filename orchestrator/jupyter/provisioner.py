"""Starts our kernel for any Jupyter client, in place of the program that a kernel's specification names.

Registered as ``rlm-sandbox`` (entry point ``jupyter_client.kernel_provisioners``, jupyter_client 8). A specification
asks for it in its metadata::

    "metadata": {"kernel_provisioner": {"provisioner_name": "rlm-sandbox", "config": {"policy": "strict"}}}

so any Python kernel's cells can be had in a box, and ``rlm-sandbox kernel install`` writes one that does.
"""

from __future__ import annotations

import sys
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Unicode


def command(connection_file: str, policy: str) -> list[str]:
    """Return the command that starts the kernel."""
    return [sys.executable, "-m", "orchestrator.jupyter.kernel", "-f", connection_file, "--policy", policy]


class SandboxProvisioner(LocalProvisioner):
    """A process of this machine, which keeps the cells in a box."""

    policy = Unicode("default", config=True, help="policy of the box: a shipped one's name, or a file")

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Prepare as for any local kernel, then put our program in place of the specification's."""
        prepared: dict[str, Any] = await super().pre_launch(**kwargs)
        manager: Any = self.parent
        prepared["cmd"] = command(manager.connection_file, self.policy)
        return prepared
