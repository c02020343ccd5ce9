"""Where the files live that a checkout keeps beside the packages: the policies and the image's Dockerfile."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries them inside the package (pyproject.toml, force-include); a checkout has them beside it.
_ROOT = _PACKAGE / "_bundle" if (_PACKAGE / "_bundle").is_dir() else _PACKAGE.parent


def path(relative: str) -> Path:
    """Return the path of a bundled file or folder, such as ``policies/seccomp.json``."""
    return _ROOT / relative
