//! The program whose worker processes run the plugins when a test uses `host` as a library: a test's own `main` belongs to
//! the test harness. Cargo builds it for every test of this package, so it is never older than the library under test.

fn main() -> std::process::ExitCode {
    host::registry::worker_main()
}
