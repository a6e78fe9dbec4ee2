"""This process's terminal, lent to a command elsewhere: raw while lent, given back however the loan ends."""

import fcntl
import os
import signal
import struct
import termios
import tty


class Terminal:
    """Context manager around the terminal on standard input."""

    # Ctrl-] pressed three times in a row ends a session that no longer answers.
    ESCAPE = b"\x1d"

    def __init__(self, descriptor=0):
        self._descriptor = descriptor
        self._escapes = 0
        # Readable whenever the window changed its size.
        self.resized, self._resize_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self):
        self._saved = termios.tcgetattr(self._descriptor)
        self._old_handler = signal.signal(signal.SIGWINCH, self._on_resize)
        # What was typed ahead is meant for the command.
        tty.setraw(self._descriptor, termios.TCSADRAIN)
        return self

    def __exit__(self, *_):
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)
        signal.signal(signal.SIGWINCH, self._old_handler)

    def size(self):
        """Rows and columns."""
        try:
            rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(self._descriptor, termios.TIOCGWINSZ, bytes(8)))
        except OSError:
            rows = columns = 0
        return rows or 24, columns or 80

    def typed(self, data):
        """Looks for the escape in typed bytes and returns what to pass on."""
        for byte in data:
            self._escapes = self._escapes + 1 if bytes([byte]) == self.ESCAPE else 0
            if self._escapes == 3:
                raise KeyboardInterrupt
        return data

    def _on_resize(self, *_):
        try:
            os.write(self._resize_writer, b"!")
        except BlockingIOError:
            pass
