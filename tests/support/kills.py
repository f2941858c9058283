"""Code for processes that kill themselves, so that nothing of theirs can answer."""

AT_A_CHANGE = """
import os, signal, sys
seen = 0
def watch(event, given):
    global seen
    changes = event in ("os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.truncate")
    changes |= event == "open" and isinstance(given[2], int) and bool(given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if changes:
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
"""
"""`watch`, an audit hook: SIGKILL before change number `at` of the file system; `seen` counts them."""
