"""``python -m tests.mutation [WORD …]``: tries the mutations, or those whose name or file holds one of the words.

Each is reported as killed, with the test that failed, or as SURVIVED. The exit status is 1 if one survived or no longer
fits the source. Takes some minutes.
"""

# ruff: noqa: T201 - a command, which prints what it finds

import signal
import sys
import time
from collections.abc import Sequence

from tests.mutation.mutations import MUTATIONS
from tests.mutation.workshop import BrokenError, Workshop


def main(words: Sequence[str]) -> int:
    """Try the mutations one by one."""
    chosen = [each for each in MUTATIONS if not words or any(word in f"{each.name} {each.file}" for word in words)]
    if not chosen:
        print(f"no mutation has a name or file with {', '.join(words)} in it", file=sys.stderr)
        return 2
    bad = 0
    with Workshop.opened() as workshop:
        print("running the tests on the source as it is", flush=True)
        try:
            workshop.require_sound(chosen)  # All at once takes less time than for each mutation.
        except BrokenError as error:
            print(error, flush=True)
        for number, mutation in enumerate(chosen, start=1):
            started = time.monotonic()
            try:
                killer = workshop.tried(mutation).killer
                said = "SURVIVED" if killer is None else f"killed by {killer}"
            except (BrokenError, ValueError) as error:
                killer, said = None, f"NOT TRIED: {error}"
            bad += killer is None
            took = time.monotonic() - started
            print(
                f"{number:>3}/{len(chosen)} {mutation.file}: {mutation.name}\n        {said} ({took:.0f} s)", flush=True
            )
    print(f"{len(chosen) - bad} of {len(chosen)} mutations killed")
    return 1 if bad else 0


if __name__ == "__main__":
    # Stopped by a signal, it clears up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
