"""Run by Wine's Python: send a console's event to the process with a pid, as Windows does it.

Windows starts a thread in the process that calls its handlers (kernelbase's ``CtrlRoutine``). Wine sends events of
its own for Ctrl-C only. The arguments are the pid, the event's number and seconds. The result on standard output is
``waits`` if the handlers have not returned after these seconds, ``returned``, or ``ended`` with the process.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

_ALL_ACCESS: Final = 0x1FFFFF
_SIGNALED: Final = 0


def main(pid: int, event: int, seconds: float) -> str:
    """Send the event; returns what became of the thread."""
    windll: Any = getattr(ctypes, "WinDLL")  # noqa: B009 - typeshed has it on Windows only
    kernel = windll("kernel32")
    for function in (kernel.OpenProcess, kernel.GetProcAddress, kernel.CreateRemoteThread):
        function.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p
    routine = pointer(kernel.GetProcAddress(pointer(windll("kernelbase")._handle), b"CtrlRoutine"))
    process = pointer(kernel.OpenProcess(_ALL_ACCESS, False, pid))
    thread = pointer(kernel.CreateRemoteThread(process, None, pointer(0), routine, pointer(event), 0, None))
    assert process.value and thread.value, "no such process"
    returned = kernel.WaitForSingleObject(thread, int(seconds * 1000)) == _SIGNALED
    if kernel.WaitForSingleObject(process, 0) == _SIGNALED:
        return "ended"
    return "returned" if returned else "waits"


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
