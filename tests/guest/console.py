# SPDX-License-Identifier: Apache-2.0
"""The serial console of a guest: its log, and the agent that runs commands (image/tree/sbin/agent)."""

import base64
import re
import socket
import threading
import time


class GuestError(Exception):
    """The guest did not do what was asked of it; the message ends with the console's last lines."""


class Console:
    """Reads a console's Unix socket for as long as it is open, and keeps all that it said."""

    def __init__(self, path, log_path=None):
        self._path = path
        self._text = ""
        self._changed = threading.Condition()
        self._closed = False
        self._number = 0
        self._log = open(log_path, "ab", buffering=0) if log_path else None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                data = b""
            with self._changed:
                if not data:
                    self._closed = True
                    self._changed.notify_all()
                    return
                self._text += data.decode("utf-8", "replace").replace("\r", "")
                self._changed.notify_all()
            if self._log:
                self._log.write(data)

    def close(self):
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
        self._thread.join(5)
        if self._log:
            self._log.close()

    @property
    def text(self):
        with self._changed:
            return self._text

    @property
    def position(self):
        with self._changed:
            return len(self._text)

    def _fail(self, what):
        tail = "\n    ".join(self._text[-1500:].splitlines()[-15:])
        raise GuestError(f"{what}; the console's last lines:\n    {tail}")

    def wait_for(self, pattern, timeout, start=0):
        """The first match of the pattern from there on. What is at a line's end must end in a newline, not in $, which
        also matches after half a number while the rest of the line is on its way."""
        expression = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                match = expression.search(self._text, start)
                if match:
                    return match
                if self._closed:
                    self._fail(f"the console closed before '{pattern}'")
                left = end - time.monotonic()
                if left <= 0:
                    self._fail(f"no '{pattern}' within {timeout} s")
                self._changed.wait(left)

    def wait_agent(self, timeout, root=None, start=0):
        """Waits until the agent takes commands; its uptime in seconds at that moment."""
        match = self.wait_for(r"^@@agent (%s) ([\d.]+)\n" % (root or r"\w+"), timeout, start)
        return float(match.group(2))

    def send(self, command):
        """Sends a command to the agent and returns its number, without waiting for its end."""
        self._number += 1
        line = f"{self._number} {base64.b64encode(command.encode()).decode()}\n".encode()
        while line:  # a terminal takes no more than its buffer at once
            self._socket.sendall(line[:1024])
            line = line[1024:]
        return self._number

    def run(self, command, timeout=120, check=True):
        """Runs a shell command in the guest: its output, stripped. A status that is not 0 is a GuestError."""
        start = self.position
        number = self.send(command)
        match = self.wait_for(r"^@@begin %d\n(?s:(.*?))^@@end %d (\d+)\n|^@@init " % (number, number), timeout, start)
        if match.group(2) is None:
            self._fail(f"the guest started anew in the middle of '{command}'")
        output, status = match.group(1).strip(), int(match.group(2))
        if check and status != 0:
            raise GuestError(f"'{command}' ended with status {status}:\n    {output}")
        return output
