//! The `host` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: a worker must not read the configuration, start threads or print.
    if host::registry::is_worker() {
        return host::registry::worker_main();
    }
    ExitCode::SUCCESS
}
