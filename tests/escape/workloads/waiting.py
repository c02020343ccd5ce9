"""Waiting: descriptors, sockets, signals and timers.

Each function is sent as source, so it imports what it uses. It raises if something does not work.
"""

from __future__ import annotations


def readiness() -> None:
    """select, poll, epoll, selectors; pipes, socket pairs, event and timer descriptors."""
    import os
    import select
    import selectors
    import socket
    import time

    left, right = socket.socketpair()
    left.setblocking(False)  # noqa: FBT003 - it has no name
    right.sendall(b"x")
    assert select.select([left], [], [], 5)[0] == [left]
    poll = select.poll()
    poll.register(left, select.POLLIN)
    assert poll.poll(5000) == [(left.fileno(), select.POLLIN)]
    with select.epoll() as epoll:
        epoll.register(left, select.EPOLLIN)
        assert epoll.poll(5) == [(left.fileno(), select.EPOLLIN)]
    with selectors.DefaultSelector() as selector:
        selector.register(left, selectors.EVENT_READ)
        assert len(selector.select(5)) == 1
    event = os.eventfd(0)
    os.eventfd_write(event, 3)
    assert os.eventfd_read(event) == 3
    timer = os.timerfd_create(time.CLOCK_MONOTONIC)  # type: ignore[attr-defined] # since Python 3.13, the box's
    os.timerfd_settime(timer, initial=0.01)  # type: ignore[attr-defined]
    assert os.read(timer, 8)[0] >= 1
    reader, writer = os.pipe2(os.O_NONBLOCK)
    assert os.get_blocking(reader) is False
    for descriptor in (event, timer, reader, writer):
        os.close(descriptor)
    left.close()
    right.close()


def unix_sockets() -> None:
    """A server on a path, options, messages with descriptors, datagrams."""
    import os
    import socket
    import socketserver
    import threading

    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    with socketserver.ThreadingUnixStreamServer("/tmp/echo.sock", Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect("/tmp/echo.sock")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 0
            client.sendall(b"echo\n")
            assert client.makefile("rb").readline() == b"echo\n"
            assert client.getpeername() == "/tmp/echo.sock"
            client.shutdown(socket.SHUT_RDWR)
        server.shutdown()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with open("/etc/hostname", "rb") as file:
        socket.send_fds(left, [b"take"], [file.fileno()])
    message, descriptors, _, _ = socket.recv_fds(right, 10, 1)
    assert message == b"take"
    assert os.read(descriptors[0], 7) == b"sandbox"
    os.close(descriptors[0])
    left.close()
    right.close()


def signals_and_timers() -> None:
    """Alarms, interval timers, waiting for signals, masks, signals to threads."""
    import os
    import signal
    import threading
    import time

    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.alarm(1)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not seen:
        time.sleep(0.005)
    signal.signal(signal.SIGALRM, before)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    assert signal.SIGUSR1 in signal.sigpending()
    assert signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1
    assert signal.sigtimedwait({signal.SIGUSR2}, 0.01) is None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    assert time.clock_getres(time.CLOCK_MONOTONIC) > 0
    assert os.times().elapsed > 0
    assert time.process_time() + time.thread_time() > 0
    assert time.strftime("%Z") == "UTC"
