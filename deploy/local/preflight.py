"""Says in a sentence what this machine lacks for an installation. Runs on any Python 3 that may be there."""

import os
import sys

NEEDED_MEGABYTES = 1500


def problem() -> "str | None":
    """What to do first, or None."""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"Python 3.11 or newer is needed and {sys.executable} is {version}: "
            "install one and name it, as in make up PYTHON=python3.12."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv module is needed and missing: install it (Debian: apt install python3-venv)."
    disk = os.statvfs(".")
    free = disk.f_bavail * disk.f_frsize // 2**20
    if free < NEEDED_MEGABYTES:
        return f"{NEEDED_MEGABYTES} MB of disk are needed here and {free} are free: make room first."
    return None


if __name__ == "__main__":
    found = problem()
    if found:
        sys.stderr.write(found + "\n")
        sys.exit(1)
