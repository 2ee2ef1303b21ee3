"""Ending a process together with everything that it started."""

import os
import signal
import subprocess
from contextlib import suppress


def end_group(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """SIGTERM to the process's own group, SIGKILL after so many seconds. It must lead its session.

    The group may outlive its leader (MLflow's workers do): it is killed in any case.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
