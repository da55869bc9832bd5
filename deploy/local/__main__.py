"""`python -m deploy.local` runs everything here, as `make up` does."""

import errno
import sys


def main() -> int:
    """The exit code: 0 after a stop that was asked for, 1 with a sentence otherwise."""
    try:
        import asyncio  # here, so that Ctrl-C during the imports is as quiet as later

        from deploy.local.problem import Problem
        from deploy.local.settings import Settings
        from deploy.local.up import up
    except KeyboardInterrupt:
        return 130
    try:
        asyncio.run(up(Settings.read()))
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("The disk is full: make room, or set DATA_DIR to another disk.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
