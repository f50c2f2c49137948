"""Stands for `threading`: there is one thread, and locks are always free."""

from _thread import RLock, allocate_lock as Lock, get_ident  # noqa: F401


class local:
    pass


class Thread:
    def __init__(self, group=None, target=None, name=None, args=(), kwargs=None, *, daemon=None):
        self.name = name or "Thread"
        self.daemon = daemon
        self.ident = None

    def start(self):
        raise RuntimeError("modelling code cannot start threads")

    def run(self):
        pass

    def join(self, timeout=None):
        pass

    def is_alive(self):
        return False


_main = Thread(name="MainThread")
_main.ident = get_ident()


def current_thread():
    return _main


main_thread = currentThread = current_thread


def enumerate():
    return [_main]


def active_count():
    return 1


class Event:
    def __init__(self):
        self._set = False

    def is_set(self):
        return self._set

    def set(self):
        self._set = True

    def clear(self):
        self._set = False

    def wait(self, timeout=None):
        return self._set


class Condition:
    def __init__(self, lock=None):
        self._lock = lock or RLock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *args):
        return self._lock.__exit__(*args)

    def notify(self, n=1):
        pass

    def notify_all(self):
        pass


class Semaphore:
    def __init__(self, value=1):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass


BoundedSemaphore = Semaphore


def _register_atexit(function, *args, **kwargs):
    pass
