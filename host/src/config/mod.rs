//! Settings from `host.toml`, or from vLLM's YAML: they become the defaults of the flags of the same name, so that what is typed
//! wins over the environment, the environment over the file, and the file over the built-in defaults.
//!
//! The file is `--config FILE`, else `host.toml` in the working folder, else in the user's configuration
//! folder. It has one table a command (`[serve]`, `[generate]`, ...) with the flags' long names as keys;
//! keys outside a table hold for every command that has the flag. Unknown keys are errors. Called by `cli`.

mod folders;
mod yaml;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;
use toml::{Table, Value};

pub use folders::cache_folder;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is no TOML.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// It is no YAML.
    #[error("{}: {error}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: String,
    },
    /// A key that means nothing.
    #[error("{}: unknown key `{key}`{}; `host {command} --help` lists what there is", path.display(),
        suggestion.as_ref().map_or(String::new(), |s| format!(", did you mean `{s}`?")))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The command whose help lists the keys.
        command: String,
        /// The nearest key.
        suggestion: Option<String>,
    },
    /// A value that no flag takes.
    #[error("{}: `{key}` is {value}; it must be a string, a number, true or false, or a list of these", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What was given.
        value: String,
    },
}

/// `--config` of the command line, if given: it is needed before the command line can be parsed.
pub fn named_file(args: &[OsString]) -> Option<PathBuf> {
    let at = args.iter().position(|a| a == "--config");
    if let Some(i) = at {
        return args.get(i + 1).map(PathBuf::from);
    }
    let prefixed = args.iter().find_map(|a| a.to_str()?.strip_prefix("--config="));
    prefixed.map(PathBuf::from).or_else(|| std::env::var_os("HOST_CONFIG").map(PathBuf::from))
}

/// The file to read: the named one, or the first that exists of the usual places.
pub fn find(named: Option<PathBuf>) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named.or_else(|| {
        let home = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        let places = [Some(PathBuf::from("host.toml")), home.map(|dir| dir.join("host/host.toml"))];
        places.into_iter().flatten().find(|path| path.is_file())
    })
}

/// Makes the file's values the defaults of `command`'s flags.
pub fn apply(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    let table = parse(path, &text)?;
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let (tables, common): (Table, Table) =
        table.into_iter().partition(|(key, value)| value.is_table() && names.contains(key));
    for key in common.keys() {
        if !command.get_subcommands().any(|c| has_flag(c, key)) {
            return Err(unknown(path, key, &command, &names));
        }
    }
    let mut command = command;
    for name in &names {
        let own = tables.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
        if let Some(sub) = command.find_subcommand(name)
            && let Some(key) = own.keys().find(|key| !has_flag(sub, key))
        {
            return Err(unknown(path, key, sub, &[]));
        }
        let values = common.iter().filter(|(key, _)| !own.contains_key(*key)).chain(&own);
        let defaults: Vec<(&str, Vec<String>)> = values
            .map(|(key, value)| Ok((key.as_str(), words(path, key, value)?)))
            .collect::<Result<_, ConfigError>>()?;
        command = command.mut_subcommand(name, |sub| with_defaults(sub, &defaults));
    }
    Ok(command)
}

/// The file's keys: TOML, or YAML as vLLM has it if the name says so. vLLM writes keys with hyphens or underscores.
fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    if !yaml {
        return text.parse().map_err(|error| ConfigError::Syntax { path: path.to_owned(), error: Box::new(error) });
    }
    yaml::parse(text).map_err(|error| ConfigError::Yaml { path: path.to_owned(), error })
}

/// Sets the defaults of those flags that the command or a command below it has.
fn with_defaults(mut command: Command, defaults: &[(&str, Vec<String>)]) -> Command {
    for (key, values) in defaults.iter().filter(|(key, _)| own_flag(&command, key)).cloned().collect::<Vec<_>>() {
        let id = id(&command, key);
        command = command.mut_arg(id, |arg| arg.default_values(values));
    }
    let below: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    below.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| with_defaults(sub, defaults)))
}

/// The id of the flag that a key names, by its long name or by an alias.
fn id(command: &Command, key: &str) -> clap::Id {
    let key = key.replace('_', "-");
    let mut flags = command.get_arguments();
    let named = flags.find(|a| {
        a.get_long() == Some(key.as_str()) || a.get_all_aliases().is_some_and(|all| all.contains(&key.as_str()))
    });
    named.map_or_else(|| clap::Id::from(key.replace('-', "_")), |a| a.get_id().clone())
}

/// Whether the command, or one below it such as `plugins list`, has the flag.
fn has_flag(command: &Command, key: &str) -> bool {
    own_flag(command, key) || command.get_subcommands().any(|c| has_flag(c, key))
}

fn own_flag(command: &Command, key: &str) -> bool {
    let key = key.replace('_', "-");
    // MODEL is a key too, as in vLLM's files.
    command.get_arguments().any(|a| match a.get_long() {
        Some(long) => long == key || a.get_all_aliases().is_some_and(|all| all.contains(&key.as_str())),
        None => a.is_positional() && a.get_id() == key.as_str(),
    })
}

fn unknown(path: &Path, key: &str, command: &Command, tables: &[String]) -> ConfigError {
    let flags = command.get_subcommands().chain([command]).flat_map(|c| c.get_arguments());
    let known = flags.filter_map(|a| a.get_long().map(str::to_owned)).chain(tables.iter().cloned());
    let suggestion = known.map(|k| (strsim::jaro_winkler(&k, key), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    ConfigError::UnknownKey {
        path: path.to_owned(),
        key: key.to_owned(),
        command: if tables.is_empty() { command.get_name().to_owned() } else { "serve".to_owned() },
        suggestion: suggestion.filter(|(score, _)| *score > 0.8).map(|(_, k)| k),
    }
}

fn words(path: &Path, key: &str, value: &Value) -> Result<Vec<String>, ConfigError> {
    let word = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Integer(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Boolean(b) => Some(b.to_string()),
        _ => None,
    };
    let values = match value {
        Value::Array(items) => items.iter().map(word).collect(),
        single => word(single).map(|w| vec![w]),
    };
    values.ok_or_else(|| ConfigError::Value { path: path.to_owned(), key: key.to_owned(), value: value.to_string() })
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        let port = Arg::new("port").long("port").env("HOST_CONFIG_TEST_PORT").default_value("8000");
        let quiet = Arg::new("dry_run").long("dry-run").action(ArgAction::SetTrue);
        let name = Arg::new("served_model_name").long("served-model-name").action(ArgAction::Append);
        Command::new("host")
            .subcommand(Command::new("serve").args([Arg::new("model"), port, quiet, name]))
            .subcommand(Command::new("group").subcommand(Command::new("list").arg(Arg::new("dir").long("dir"))))
            .subcommand(Command::new("other").arg(Arg::new("port").long("port").default_value("1")))
    }

    fn parse(toml: &str, args: &[&str]) -> Result<clap::ArgMatches, String> {
        parse_as("host.toml", toml, args)
    }

    fn parse_as(name: &str, toml: &str, args: &[&str]) -> Result<clap::ArgMatches, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(name);
        std::fs::write(&path, toml).expect("writes");
        let command = apply(command(), &path).map_err(|e| e.to_string())?;
        command.try_get_matches_from(args).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_typed_wins_over_the_file_and_the_file_over_defaults() {
        let port = |toml: &str, args: &[&str]| -> String {
            let matches = parse(toml, args).expect("parses");
            let (_, sub) = matches.subcommand().expect("a command");
            sub.get_one::<String>("port").expect("a port").clone()
        };
        assert_eq!(port("", &["host", "serve"]), "8000");
        assert_eq!(port("port = 7", &["host", "serve"]), "7");
        assert_eq!(port("port = 7\n[serve]\nport = 9", &["host", "serve"]), "9");
        assert_eq!(port("port = 7\n[serve]\nport = 9", &["host", "other"]), "7");
        assert_eq!(port("[serve]\nport = 9", &["host", "serve", "--port", "10"]), "10");
    }

    #[test]
    fn switches_and_lists() {
        let toml = "[serve]\ndry-run = true\nserved_model_name = ['a', 'b']";
        let matches = parse(toml, &["host", "serve"]).expect("parses");
        let (_, sub) = matches.subcommand().expect("a command");
        assert!(sub.get_flag("dry_run"));
        assert_eq!(sub.get_many::<String>("served_model_name").expect("names").collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn vllms_yaml() {
        let yaml = "# served\nmodel: org/model\nport: 9\nserved-model-name:\n  - a\n  - b\ndry_run: true\n";
        let matches = parse_as("config.yaml", yaml, &["host", "serve"]).expect("parses");
        let (_, sub) = matches.subcommand().expect("a command");
        assert_eq!(sub.get_one::<String>("model").map(String::as_str), Some("org/model"));
        assert_eq!(sub.get_one::<String>("port").map(String::as_str), Some("9"));
        assert_eq!(sub.get_many::<String>("served_model_name").expect("names").collect::<Vec<_>>(), ["a", "b"]);
        assert!(sub.get_flag("dry_run"));
        assert!(parse_as("config.yaml", "# nothing\n", &["host", "serve"]).is_ok());
        for (yaml, expected) in
            [("prot: 7", "did you mean `port`?"), ("port: [", "config.yml"), ("port: {a: 1}", "line 1")]
        {
            let error = parse_as("config.yml", yaml, &["host", "serve"]).expect_err(yaml);
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }

    #[test]
    fn commands_below_a_command_are_reached() {
        for toml in ["dir = 'x'", "[group]\ndir = 'x'"] {
            let matches = parse(toml, &["host", "group", "list"]).expect("parses");
            let (_, group) = matches.subcommand().expect("a command");
            let (_, list) = group.subcommand().expect("a command below");
            assert_eq!(list.get_one::<String>("dir").map(String::as_str), Some("x"), "{toml}");
        }
    }

    #[test]
    fn mistakes_name_the_file_and_the_key() {
        for (toml, expected) in [
            ("prot = 7", "unknown key `prot`, did you mean `port`?"),
            ("[serve]\ndry-runs = true", "unknown key `dry-runs`, did you mean `dry-run`?"),
            ("port = {a = 1}", "`port` is"),
            ("port = ", "host.toml: TOML parse error"),
        ] {
            let error = parse(toml, &["host", "serve"]).expect_err(toml);
            assert!(error.contains(expected) && error.contains("host.toml"), "{toml}: {error}");
        }
    }
}
