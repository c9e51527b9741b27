"""What is open is closed when a process ends, whatever its other threads are at."""

import sys
import threading

import pytest

from mpbuffer._segment.exit import close_at_exit, close_buffers


class Closable:
    def close(self):
        pass


@pytest.fixture
def threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_take_turns_often")
def test_other_threads_open_and_drop_meanwhile():
    over = False

    def open_and_drop():
        while not over:
            some = [Closable() for _ in range(100)]
            for each in some:
                close_at_exit(each)

    threads = [threading.Thread(target=open_and_drop) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            close_buffers()
    finally:
        over = True
        for thread in threads:
            thread.join()
