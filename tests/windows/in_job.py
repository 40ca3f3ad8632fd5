"""Run by Wine's Python: run a command in a job, as ssh servers, terminals and pip's launcher do.

The arguments are the job's limits and the command, which may use standard output. When this process ends, so does the
job, and every process in it.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any, Final

_EXTENDED_LIMITS: Final = 9  # JobObjectExtendedLimitInformation
_SIZE: Final = 144  # bytes of that structure on 64-bit Windows
_FLAGS: Final = 16  # the offset of its flags


def main(flags: int, command: list[str]) -> int:
    """Join a new job with these limits, run the command, and return its status once standard input gets a line."""
    windll: Any = getattr(ctypes, "WinDLL")  # noqa: B009 - typeshed has it on Windows only
    kernel = windll("kernel32")
    for function in (kernel.CreateJobObjectW, kernel.GetCurrentProcess):
        function.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    limits = bytearray(_SIZE)
    limits[_FLAGS : _FLAGS + 4] = flags.to_bytes(4, "little")
    given = (ctypes.c_char * _SIZE).from_buffer(limits)
    assert kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, given, _SIZE)
    assert kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess()))
    status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    sys.stdin.readline()
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1], 16), sys.argv[2:]))
