"""Standard error of one process of several, in short: `_ends.tell_lost_process` starts it.

When a process of a run is gone, jax's C++ code ends the others with a log and a stack of its own.
That is left out, and one line tells which process it was; all else is passed on. It imports nothing
of the package, and ends with its standard input.
"""

import re
import sys


def main(program: str) -> None:
    """Reads lines from standard input until its end."""
    ending, told, log = False, False, ""
    for raw in sys.stdin.buffer:
        line = raw.decode(errors="replace")
        if line.startswith(f"{program}: "):
            told = True
        elif re.match(r"W\d{4} [\d:.]+ +\d+ (coordination|preemption)", line):
            continue
        elif ending or re.match(
            r"[EF]\d{4} [\d:.]+ +\d+ (coordination|preemption|client\.h)", line
        ):
            ending = True
            log += line
            continue
        elif re.match(r"Additional GRPC|:UNKNOWN:", line):
            continue
        sys.stderr.write(line)
        sys.stderr.flush()
    if ending and not told:
        lost = re.search(r"stopped sending heartbeats\):\s*(\d+(?:\s*,?\s*\d+)*)", log)
        lost = lost or re.search(r"Task (\d+) heartbeat timeout", log)
        who = "another process"
        if lost:
            who = f"process {' '.join(lost[1].split())}"
        elif "leader task" in log or "Socket closed" in log:
            who = "process 0"
        print(
            f"{program}: {who} of this run has ended or does not answer; its own output tells why. "
            "Start all of them again: they go on from the last checkpoint",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(sys.argv[1])
