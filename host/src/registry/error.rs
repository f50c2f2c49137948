//! What can be wrong with a plugin, each as one line that names the file, the cause and what to do.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use plugin_api::IrVersion;

/// What the host was doing with the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Asking what it is.
    Describe,
    /// Building a model's graph.
    Build,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Describe => "describing itself",
            Stage::Build => "building the model's graph",
        })
    }
}

/// A plugin that cannot be used, in one line.
#[derive(Clone, Debug, thiserror::Error)]
#[error("plugin {}{}: {cause}{}", .name.as_ref().map(|n| format!("`{n}` ")).unwrap_or_default(), path.display(), self.tail())]
pub struct PluginError {
    /// Its file, as found in the search path.
    pub path: PathBuf,
    /// Its name, if it came as far as telling it.
    pub name: Option<String>,
    /// What is wrong.
    #[source]
    pub cause: Cause,
    /// The end of what it wrote to stderr or stdout: at most `STDERR_TAIL` bytes.
    pub output: String,
}

/// How much of a plugin's output is kept.
pub(super) const STDERR_TAIL: usize = 4096;

impl PluginError {
    /// The end of the plugin's output where that helps; a panic's message is in the cause already.
    fn tail(&self) -> String {
        // Rust's advice for its own programs helps nobody here: a plugin's environment is empty.
        let said = self.output.lines().filter(|line| !line.starts_with("note: run with `RUST_BACKTRACE"));
        let text = one_line(&said.collect::<Vec<_>>().join(" "), 300);
        let helps = matches!(
            self.cause,
            Cause::Crashed { .. }
                | Cause::Exited { .. }
                | Cause::TimedOut { .. }
                | Cause::OutOfMemory { .. }
                | Cause::Worker(_)
        );
        if helps && !text.is_empty() { format!(" (its last output: {text})") } else { String::new() }
    }
}

/// Why a plugin cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// Somebody else could have put the file there, or could change it.
    #[error("is refused: {0}")]
    Refused(String),
    /// Not a library at all.
    #[error("is not a shared library: {0}")]
    NotALibrary(String),
    /// Cut off.
    #[error("is cut off: its headers speak of {needs} bytes, the file has {has}; copy it again")]
    Truncated {
        /// Bytes that the headers refer to.
        needs: u64,
        /// Bytes that there are.
        has: u64,
    },
    /// For another machine or system.
    #[error("is built for {found}, this host runs on {host}; use a build for {host}")]
    WrongArchitecture {
        /// What the file is for.
        found: String,
        /// What is needed.
        host: String,
    },
    /// The dynamic linker refuses it.
    #[error("cannot be loaded: {0}")]
    NotLoadable(String),
    /// A library, but no plugin.
    #[error(
        "is a shared library but not a host plugin: it exports no plugin entry point (does it call `export_plugin!`?)"
    )]
    NoEntryPoint,
    /// The root module has another layout.
    #[error("was built against another plugin ABI: {0}; rebuild it with the plugin-api of this host")]
    Layout(String),
    /// A signal killed it.
    #[error("crashed with {} while {stage}; this is a bug of the plugin, tell its author", signal_name(*.signal))]
    Crashed {
        /// The signal's number.
        signal: i32,
        /// During what.
        stage: Stage,
    },
    /// Endless recursion.
    #[error("overflowed its stack while {stage}; this is a bug of the plugin, tell its author")]
    StackOverflow {
        /// During what.
        stage: Stage,
    },
    /// It panicked.
    #[error("panicked while {stage}, {message}; this is a bug of the plugin, tell its author")]
    Panicked {
        /// During what.
        stage: Stage,
        /// `at src/lib.rs:3:5: message`.
        message: String,
    },
    /// The deadline passed.
    #[error("did not finish {stage} within {:.1} s and was stopped; it hangs, or --plugin-timeout is too short for it", .deadline.as_secs_f64())]
    TimedOut {
        /// During what.
        stage: Stage,
        /// The deadline.
        deadline: Duration,
    },
    /// It wanted more memory than it may have.
    #[error("ran out of memory while {stage} (limit {} MiB); it leaks, or --plugin-memory is too small for it", limit >> 20)]
    OutOfMemory {
        /// During what.
        stage: Stage,
        /// The limit in bytes.
        limit: u64,
    },
    /// It ended its process.
    #[error(
        "ended its process with exit code {code} instead of answering while {stage}; this is a bug of the plugin, tell its author"
    )]
    Exited {
        /// The code.
        code: i32,
        /// During what.
        stage: Stage,
    },
    /// It answered too much.
    #[error("answered {got} bytes while {stage}, the limit is {limit}; this is a bug of the plugin, tell its author")]
    TooLarge {
        /// During what.
        stage: Stage,
        /// Size of the answer.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// It answered something that is not an answer.
    #[error("answered rubbish while {stage}: {what}; this is a bug of the plugin, tell its author")]
    Rubbish {
        /// During what.
        stage: Stage,
        /// What is wrong with it.
        what: String,
    },
    /// Its IR is of another major version.
    #[error("speaks graph IR {found}, this host (version {}) speaks {host}; {}", env!("CARGO_PKG_VERSION"),
        if .found > .host { "use a newer host, or an older version of the plugin" } else { "rebuild the plugin with a newer plugin-api" })]
    Ir {
        /// The plugin's.
        found: IrVersion,
        /// The host's.
        host: IrVersion,
    },
    /// The graph that it returned cannot be read or breaks the rules.
    #[error("returned a graph that is wrong: {message}{}", newer(*.ir))]
    Graph {
        /// The parser's or verifier's words: line or node, op, shapes.
        message: String,
        /// IR version that the plugin was built with.
        ir: IrVersion,
    },
    /// It needs something that this host does not know of.
    #[error("needs `{need}`, which this host (version {version}) cannot supply; use a newer host", need = .0, version = env!("CARGO_PKG_VERSION"))]
    Needs(String),
    /// What it needs to read cannot be had.
    #[error("cannot be given what it reads: {0}")]
    Sources(String),
    /// It says that it does not support this model; another plugin may. Not a bug.
    #[error("cannot build this model: {0}")]
    Unsupported(String),
    /// It says that it cannot build this model. Not a bug.
    #[error("cannot build this model: {0}")]
    Declined(String),
    /// The worker process itself failed.
    #[error("could not be asked: {0}")]
    Worker(String),
}

/// A plugin built with a newer minor version may use what this host does not know yet.
fn newer(ir: IrVersion) -> String {
    let host = IrVersion::CURRENT;
    if ir <= host {
        return String::new();
    }
    format!(
        "; the plugin was built for IR {ir}, this host (version {}) knows {host}: use a newer host",
        env!("CARGO_PKG_VERSION")
    )
}

/// Text of unknown origin made fit for one line of a log: control characters gone, white space collapsed, cut to `max`
/// characters from the end, because the last words say most.
pub(super) fn one_line(text: &str, max: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = clean.split_whitespace().collect();
    let line = words.join(" ");
    let length = line.chars().count();
    if length <= max { line } else { format!("… {}", line.chars().skip(length - max).collect::<String>()) }
}

/// The signal with what it means.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGSEGV => "SIGSEGV (invalid memory access)",
        libc::SIGBUS => "SIGBUS (memory behind the end of a file)",
        libc::SIGABRT => "SIGABRT (it aborted)",
        libc::SIGILL => "SIGILL (an instruction that this processor lacks)",
        libc::SIGFPE => "SIGFPE (arithmetic such as division by zero)",
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGSYS => "SIGSYS (a system call that plugins may not make)",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGXFSZ => "SIGXFSZ (it tried to write a file)",
        libc::SIGXCPU => "SIGXCPU (it used up its processor time)",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_made_harmless_and_short() {
        assert_eq!(one_line("a\n\tb\x1b[31m c", 100), "a b [31m c");
        assert_eq!(one_line("abcdef", 3), "… def");
    }

    #[test]
    fn an_error_is_one_line_that_names_file_and_cause() {
        let error = PluginError {
            path: "/p/libhost_plugin_x.so".into(),
            name: Some("x".into()),
            cause: Cause::Crashed { signal: libc::SIGSEGV, stage: Stage::Build },
            output: "one\ntwo\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n".into(),
        };
        let text = error.to_string();
        assert_eq!(
            text,
            "plugin `x` /p/libhost_plugin_x.so: crashed with SIGSEGV (invalid memory access) while building the model's graph; \
             this is a bug of the plugin, tell its author (its last output: one two)"
        );
    }
}
