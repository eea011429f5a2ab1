"""The processes that torchrun starts end with it.

torchrun, and `accelerate launch` with it, starts its processes in sessions of their own. When it gets SIGKILL, from a
user or from a kernel that is out of memory, nobody tells them: they train on, hold the GPUs, and write into the run's
folder beside whatever is started next. On Linux the kernel can send a signal when a parent dies; SIGTERM lets a run
end its step and save a checkpoint. Elsewhere they have to be ended by hand.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Whose child this is, as early as we can ask; a forked process has another number and asks for itself.
_FIRST = (os.getpid(), os.getppid())


def end_with_launcher() -> bool:
    """Where torchrun started this process, have SIGTERM sent to it when torchrun dies.

    TORCHELASTIC_RUN_ID tells that it did; LOCAL_WORLD_SIZE does not, as people set it in scripts that their training
    is to outlive. The kernel looks at the thread that started this process; torchrun does so in its main one.

    Returns:
        whether that is arranged: False for a process that torchrun did not start, and on systems other than Linux.

    Raises:
        OSError: the kernel refused.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return False
    process, parent = _FIRST if _FIRST[0] == os.getpid() else (os.getpid(), os.getppid())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent:  # it died before the kernel knew that we want to be told
        os.kill(process, signal.SIGTERM)
    return True
