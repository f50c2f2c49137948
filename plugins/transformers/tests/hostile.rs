//! What modelling code may not do, tried inside the interpreter: every attempt is an ordinary Python exception, and nothing
//! that reaches the operating system can be found. What only a process can be protected from (time, memory, a crash) is
//! tried in `tests/tests/hostile.rs`, through the registry.

mod support;

use support::run;

/// Runs code that must fail, and returns the message.
#[track_caller]
fn error(code: &str) -> String {
    match run(code) {
        Ok(_) => panic!("this went well: {code}"),
        Err(failure) => failure.message,
    }
}

#[test]
fn attempts_to_leave_the_interpreter_fail_by_name() {
    for (code, words) in [
        ("open('/etc/passwd').read()", "open('/etc/passwd'): modelling code has no access to files"),
        ("import io; io.open('/tmp/x', 'w')", "no access to files"),
        ("import _io; _io.open('/etc/passwd')", "no access to files"),
        ("import _io; _io.FileIO('/etc/passwd')", "FileIO"),
        ("import pathlib; pathlib.Path('/etc/passwd').read_text()", "no access to files"),
        ("import pathlib; pathlib.Path('/tmp/x').write_text('')", "no access to files"),
        ("import os; os.system('id')", "os.system: modelling code has no access to the operating system"),
        ("import os; os.listdir('/')", "os.listdir"),
        ("import os; os.remove('/tmp/x')", "os.remove"),
        ("import os; os.fork()", "os.fork"),
        ("import os; os.execv('/bin/sh', [])", "os.execv"),
        ("import os; os.kill(1, 9)", "os.kill"),
        ("import os; os.environ['PATH']", "KeyError: 'PATH'"),
        ("import os; os.urandom(4)", "os.urandom"),
        ("import threading; threading.Thread(target=print).start()", "cannot start threads"),
        ("import sys; sys.modules['posix']", "KeyError: 'posix'"),
        ("import _imp; _imp.init_frozen('subprocess')", "subprocess"),
        ("import _imp; _imp.create_dynamic", "create_dynamic"),
        ("type((lambda: 0).__code__)()", "cannot create 'code' instances"),
        ("(lambda: 0).__code__.replace(co_code=b'')", "replace"),
        ("input()", "AttributeError"),
        ("exit()", "SystemExit"),
    ] {
        let message = error(code);
        assert!(message.contains(words), "{code}: {message}");
    }
}

#[test]
fn modules_that_reach_the_system_do_not_exist() {
    for name in [
        "posix",
        "nt",
        "socket",
        "_socket",
        "ssl",
        "subprocess",
        "_posixsubprocess",
        "multiprocessing",
        "ctypes",
        "_ctypes",
        "mmap",
        "signal",
        "_signal",
        "faulthandler",
        "resource",
        "fcntl",
        "select",
        "pwd",
        "grp",
        "termios",
        "sqlite3",
        "marshal",
        "zipimport",
        "runpy",
        "pkgutil",
        "tempfile",
        "shutil",
        "glob",
        "urllib.request",
        "http.client",
        "asyncio",
        "pdb",
        "code",
        "pty",
        "site",
        "_interpreters",
        "_remote_debugging",
        "_testcapi",
        "webbrowser",
        "cffi",
        "numpy.ctypeslib",
    ] {
        let message = error(&format!("import {name}"));
        assert!(message.contains("ModuleNotFoundError"), "{name}: {message}");
    }
}

#[test]
fn endless_recursion_is_an_exception_whatever_the_limit_is_set_to() {
    let deep = "x = []\nfor i in range(100000): x = [x]\n";
    for code in [
        "def f(n): return f(n + 1)\nf(0)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)",
        "class A:\n  def __getattr__(self, n): return getattr(self, n + 'x')\nA().y",
        &format!("{deep}repr(x)"),
        &format!("{deep}y = []\nfor i in range(100000): y = [y]\nx == y"),
    ] {
        assert!(error(code).contains("RecursionError"), "{code}");
    }
    run(&format!("{deep}del x")).expect("dropping what nests deeply is no recursion");
}

#[test]
fn no_function_of_the_system_can_be_reached() {
    // Everything that can be reached from the modules, through attributes, dictionaries, closures and classes.
    run(r#"
import sys, gc, io, logging, random, inspect, json, copy, traceback, datetime
FORBIDDEN = {"system", "popen", "fork", "execv", "execve", "spawnv", "posix_spawn", "kill", "unlink", "rmdir", "mkdir",
    "listdir", "scandir", "chmod", "socket", "connect", "dlopen", "load_dynamic", "create_dynamic", "fork_exec", "alarm",
    "mmap", "getpwnam", "ioctl", "open_code", "start_new_process"}
seen, left = set(), list(sys.modules.values())
left += [o for o in gc.get_objects() if isinstance(o, dict)]
natives = found = 0
while left:
    o = left.pop()
    if id(o) in seen:
        continue
    seen.add(id(o))
    kind = type(o).__name__
    if kind in ("builtin_function_or_method", "method_descriptor", "wrapper_descriptor"):
        natives += 1
        assert o.__name__ not in FORBIDDEN, o
    if isinstance(o, dict):
        left += [v for v in o.values()]
    elif isinstance(o, (list, tuple, set, frozenset)):
        left += list(o)
    elif kind == "function":
        left += [o.__globals__, o.__defaults__, o.__kwdefaults__] + [c.cell_contents for c in o.__closure__ or () if c]
    if isinstance(o, type):
        left += list(vars(o).values()) + list(o.__mro__)
    elif kind == "module":
        left.append(vars(o))
    elif hasattr(type(o), "__dict__") and "__dict__" in dir(type(o)):
        left.append(getattr(o, "__dict__", None))
assert natives > 500, natives
"#)
    .unwrap();
}

#[test]
fn nothing_tells_of_the_machine_and_every_run_is_the_same() {
    run(r#"
import sys, time, os
assert [sys.argv, sys.orig_argv, sys.path, sys.executable, sys.prefix] == [[], [], [], "", ""]
assert time.time() == time.perf_counter() == 0.0 and dict(os.environ) == {} and os.getcwd() == "/"
assert hash("abc") == 2116295425668394395, hash("abc")
"#)
    .unwrap();
}
