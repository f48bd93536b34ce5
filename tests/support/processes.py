"""How a server that a test started ends."""

import signal
import subprocess

_STOP_S = 30.0


def end(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal and wait for the end; kill what does not heed it."""
    process.send_signal(number)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
