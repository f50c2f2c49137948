"""Stands for `time`: time stands still, so that a trace is the same at every run."""

timezone = altzone = daylight = 0
tzname = ("UTC", "UTC")


def _still():
    return 0.0


time = monotonic = perf_counter = process_time = thread_time = _still


def time_ns():
    return 0


monotonic_ns = perf_counter_ns = process_time_ns = time_ns


def sleep(seconds):
    pass


class struct_time(tuple):
    tm_year = property(lambda self: self[0])
    tm_mon = property(lambda self: self[1])
    tm_mday = property(lambda self: self[2])
    tm_hour = property(lambda self: self[3])
    tm_min = property(lambda self: self[4])
    tm_sec = property(lambda self: self[5])
    tm_wday = property(lambda self: self[6])
    tm_yday = property(lambda self: self[7])
    tm_isdst = property(lambda self: self[8])
    tm_zone = "UTC"
    tm_gmtoff = 0


def gmtime(seconds=None):
    return struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0))


localtime = gmtime


def mktime(value):
    return 0.0


def strftime(pattern, value=None):
    return "1970-01-01 00:00:00"


def asctime(value=None):
    return "Thu Jan  1 00:00:00 1970"


ctime = asctime
