"""The door: refuses a Python that is too old in one plain sentence, then hands over to the command line.

This file alone must parse on Python 2.7 and 3.6; everything newer is imported after the check.
"""

import signal
import sys


def _run():  # type: ignore[no-untyped-def]  # annotations do not parse on 2.7
    if sys.version_info < (3, 9):
        sys.stderr.write(
            "storage_manager needs Python 3.9 or newer, and this is Python %d.%d: "
            "run it with a newer python3.\n" % sys.version_info[:2]
        )
        return 1
    # Until main() looks after signals itself, these two wait for it, and SIGINT ends the process without a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from storage_manager.cli import main
    except (ImportError, OSError) as error:  # no descriptor left, a disk that fails, an archive replaced by half
        if sys.stderr is not None:
            sys.stderr.write("storage_manager: cannot start: %s\n" % error)
        return 1
    return main()


if __name__ == "__main__":
    sys.exit(_run())  # type: ignore[no-untyped-call]
