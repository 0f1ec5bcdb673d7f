"""Runs one program and answers for its whole tree: `python -I -S guard.py PARENT_PID PROGRAM [ARGUMENT …]`.

When the program ends, whatever it left running is killed, and the guard ends as it did (same status, same signal).
When the coordinator ends, however it ends, everything is killed at once. SIGTERM is passed on to the program;
SIGUSR1 kills the tree. Only the standard library is used, and little of it: this process stays for the engine's life.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def children(pid: int) -> list[int]:
    """Direct children of `pid`; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123 - pathlib is slow to import
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def kill_tree() -> None:
    """SIGKILL to every descendant. As sub-reaper this process inherits orphans, so a few rounds reach them all."""
    while found := children(os.getpid()):
        pending = list(found)
        while pending:
            pid = pending.pop()
            pending.extend(children(pid))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in found:
            os.waitpid(pid, 0)  # only those just killed: one born meanwhile is met, and killed, in the next round


def main(parent: int, argv: list[str]) -> None:
    """Start the program, wait for it, clean up, end as it did."""
    signals = {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals | {signal.SIGINT})
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        raise SystemExit("the coordinator is gone")
    engine = os.fork()
    if not engine:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals | {signal.SIGINT})
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"cannot run {argv[0]}: {error.strerror}\n".encode())
            os._exit(127)
    status = 0
    running = True
    while running:
        received = signal.sigwait(signals)
        if received == signal.SIGTERM:
            os.kill(engine, signal.SIGTERM)
        elif received == signal.SIGUSR1:
            os.kill(engine, signal.SIGKILL)
        while True:
            try:
                ended, result = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not ended:
                break
            if ended == engine:
                status, running = result, False
    kill_tree()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
