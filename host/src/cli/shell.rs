//! What is made from the flags: completions for shells, and manual pages.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

#[derive(clap::Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

#[derive(clap::Args, Debug)]
pub(super) struct ManArgs {
    /// Write a page for each command into this folder, instead of the main one to standard output
    dir: Option<PathBuf>,
}

/// Prints the completions.
pub(super) fn completions(mut command: Command, args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "host", &mut script);
    std::io::stdout().write_all(&script).context("cannot print")
}

/// Prints or writes the pages.
pub(super) fn man(command: Command, args: &ManArgs) -> anyhow::Result<()> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return std::io::stdout().write_all(&page).context("cannot print");
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write to {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn completions_and_pages_know_every_command() {
        let dir = tempfile::tempdir().expect("a folder");
        let args = super::ManArgs { dir: Some(dir.path().to_owned()) };
        super::man(super::super::Cli::command(), &args).expect("pages");
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut super::super::Cli::command(), "host", &mut script);
        let script = String::from_utf8(script).expect("text");
        for command in super::super::Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let page = dir.path().join(format!("host-{}.1", command.get_name()));
            assert!(page.is_file(), "{}", page.display());
            assert!(script.contains(command.get_name()));
        }
        let page = std::fs::read_to_string(dir.path().join("host-serve.1")).expect("a page");
        assert!(page.contains("max\\-num\\-seqs"));
    }
}
