"""Stands in for the standard library's ``ensurepip`` in the peers' image: put pip into a fresh virtual environment."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    wheel = next(Path("/wheels").glob("pip-*.whl"))
    command = [sys.executable, f"{wheel}/pip", "install", "--quiet", "--ignore-installed", str(wheel)]
    sys.exit(subprocess.run(command, check=False).returncode)
