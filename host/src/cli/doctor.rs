//! `host doctor`: what this machine has for `host`, and what to fix. Reads only; fetches and runs nothing but plugins'
//! descriptions. A *problem* stops something that was asked for from working, and makes the exit code 1; a *note* does not.

use std::io::Write;

use indicatif::HumanBytes;
use kernels::cpu::{Isa, default_threads};
use kernels::cuda::{self, CudaError};

use super::args::{LogArgs, SearchArgs};
use crate::registry::{Origin, Registry, RegistryOptions, TRANSFORMERS, sandbox_support};
use crate::transformers::{self, PackageOptions};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// What was found out.
#[derive(Default)]
struct Report {
    lines: Vec<(&'static str, String)>,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    fn line(&mut self, about: &'static str, text: impl Into<String>) {
        // What is said of one thing is said once.
        let repeated = self.lines.iter().any(|(before, _)| *before == about);
        self.lines.push((if repeated { "" } else { about }, text.into()));
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    super::start_log(&args.log, "error")?;
    let mut options = RegistryOptions::default();
    args.search.apply(&mut options);
    let mut report = Report::default();
    report.line("host", format!("{}, {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH));
    machine(&mut report);
    devices(&mut report);
    sandbox(&mut report);
    let needs_package = plugins(&mut report, options.clone());
    package(&mut report, &options.transformers, needs_package);
    let mut out = std::io::stdout().lock();
    print(&report, &mut out)?;
    match report.problems.len() {
        0 => Ok(()),
        1 => anyhow::bail!("1 problem, see above"),
        n => anyhow::bail!("{n} problems, see above"),
    }
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    for (about, text) in &report.lines {
        writeln!(out, "{about:<16}{text}")?;
    }
    for (heading, list) in [("notes", &report.notes), ("problems", &report.problems)] {
        if !list.is_empty() {
            writeln!(out, "\n{heading}:")?;
        }
        for item in list {
            writeln!(out, "  - {item}")?;
        }
    }
    if report.problems.is_empty() {
        writeln!(out, "\nnothing must be fixed")?;
    }
    Ok(())
}

fn machine(report: &mut Report) {
    let isa = Isa::detect();
    report.line("processor", format!("{} threads, kernels for {isa}", default_threads()));
    let features: Vec<&str> =
        kernels::cpu::cpu_features().into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    if !features.is_empty() {
        report.line("processor", features.join(" "));
    }
    if isa == Isa::Portable {
        report.notes.push(
            "this processor has no instructions that the fast kernels use (AVX2 at least): models run slowly".into(),
        );
    }
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let (total, free) = system.cgroup_limits().map_or((system.total_memory(), system.available_memory()), |group| {
        (group.total_memory.min(system.total_memory()), group.free_memory.min(system.available_memory()))
    });
    report.line("memory", format!("{} of {} free", HumanBytes(free), HumanBytes(total)));
}

/// The CUDA driver and its devices, what kernels are compiled with, and where they are kept.
fn devices(report: &mut Report) {
    let driver = match cuda::driver() {
        Ok(driver) => driver,
        Err(e) => {
            report.line("cuda", format!("not used: {e}"));
            // Without a driver there is nothing to be fixed; with one that does not work there is.
            if !matches!(e, CudaError::Unavailable(_)) {
                report.notes.push(format!("models run on the CPU, though there is a CUDA driver: {e}"));
            }
            return;
        }
    };
    report.line("cuda", format!("driver for CUDA {}.{}", driver.version.0, driver.version.1));
    for (i, device) in driver.devices.iter().enumerate() {
        let (major, minor) = device.capability;
        let memory = HumanBytes(device.memory as u64);
        report.line("cuda", format!("device {i}: {}, compute capability {major}.{minor}, {memory}", device.name));
        report.notes.extend(device.refused());
    }
    match cuda::nvrtc() {
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version;
            report.line("cuda", format!("NVRTC {major}.{minor}, of {}", nvrtc.place));
            if nvrtc.version > driver.version && major > driver.version.0 {
                report.notes.push(format!(
                    "NVRTC {major}.{minor} is newer than the driver (CUDA {}.{}), which may not load what it compiles: install \
                     a newer driver, or name an older NVRTC with HOST_NVRTC_DIR",
                    driver.version.0, driver.version.1
                ));
            }
        }
        Err(e) => {
            report.line("cuda", "no NVRTC");
            report.notes.push(format!("models run on the CPU: {e}"));
        }
    }
    let cache = crate::llm::kernel_cache().map_or("none".to_owned(), |dir| dir.display().to_string());
    report.line("cuda", format!("compiled kernels are kept in {cache}"));
}

fn sandbox(report: &mut Report) {
    let support = sandbox_support();
    let landlock = support.landlock.as_ref().map_or_else(|why| format!("no ({why})"), |abi| format!("version {abi}"));
    let seccomp = support.seccomp.as_ref().map_or_else(|why| format!("no ({why})"), |()| "yes".to_owned());
    report.line("sandbox", format!("landlock {landlock}, seccomp {seccomp}"));
    let unsafe_code = "; run no plugin and no model's code (--trust-remote-code) that you do not trust";
    report.notes.extend(support.missing().into_iter().map(|hole| hole + unsafe_code));
}

/// Says what plugins there are. Whether one of them needs the package `transformers`.
fn plugins(report: &mut Report, options: RegistryOptions) -> bool {
    let registry = match Registry::new(options) {
        Ok(registry) => registry,
        Err(e) => {
            report.problems.push(e.to_string());
            return false;
        }
    };
    for dir in registry.directories() {
        if let (Some(reason), Origin::Implicit) = (&dir.refused, dir.origin) {
            report.problems.push(format!("plugins folder {} is not used: it {reason}", dir.path.display()));
        }
    }
    let mut needs_package = false;
    let mut usable = 0;
    for found in registry.scan() {
        match &found.description {
            Ok(d) => {
                let hidden =
                    if found.hidden_by.is_some() { ", not used: another of that name comes first" } else { "" };
                report.line("plugins", format!("{} {}, {}{hidden}", d.name, d.version, found.path.display()));
                needs_package |= d.needs.iter().any(|need| need == TRANSFORMERS);
                usable += 1;
            }
            Err(e) => {
                report.line("plugins", format!("{}: cannot be used", found.path.display()));
                report.problems.push(e.to_string());
            }
        }
    }
    if usable == 0 {
        report.line("plugins", "none");
        let folders: Vec<String> = registry.directories().iter().map(|d| d.path.display().to_string()).collect();
        report.problems.push(format!(
            "no usable plugin: no model can be loaded; put plugins into a folder that is searched ({}), or name one with \
             --plugins-dir",
            folders.join(", ")
        ));
    }
    needs_package
}

/// Says which package `transformers` would be read.
fn package(report: &mut Report, options: &PackageOptions, needed: bool) {
    match transformers::find(options) {
        Ok(Some(package)) => {
            let what = format!("{}, {} ({})", package.version, package.dir.display(), package.origin);
            report.line("transformers", what);
            report.notes.extend(package.warning());
        }
        Ok(None) => {
            report.line("transformers", "not on this machine");
            let fetch = "run `host plugins fetch-transformers` (or with the wheel as an argument)";
            match (needed, options.offline) {
                (false, _) => {}
                (true, false) => report.notes.push(format!(
                    "the Python package transformers is fetched when a model first needs it; {fetch} to have it before"
                )),
                (true, true) => report.problems.push(format!(
                    "the Python package transformers is not on this machine, and host is offline (HF_HUB_OFFLINE): {fetch}, or name \
                     an installed package with --transformers-path"
                )),
            }
        }
        Err(e) => {
            report.line("transformers", "cannot be used");
            report.problems.push(e.to_string());
        }
    }
}
