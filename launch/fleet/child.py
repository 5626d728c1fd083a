"""What a job's process does before it becomes the job: `python -I -S child.py PARENT CORES COMMAND...`.

It runs on no more than its cores, and hears SIGTERM when its parent ends, however that ends (Linux alone). Done here
and not between fork and exec in the parent, where nothing but system calls is safe. Standard library alone.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, cores: str, command: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray's workers block SIGINT, and a mask is inherited
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before it could be watched
            sys.exit(143)
        if cores:
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
