//! Builds plugins for tests: the fixtures, those of this workspace, and crates elsewhere. Shared by all test programs of
//! `host` that need plugins.
#![allow(dead_code)] // no program needs all of it

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Where nested builds go: not the folder that the running `cargo test` uses, whose artefacts would be rebuilt with other
/// features, but a lasting one, so that only the first run pays.
pub fn target_dir() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_host")).ancestors().nth(2).unwrap();
    target.join("fixtures")
}

/// Runs cargo, offline, and returns its output if it fails.
pub fn cargo(dir: &Path, args: &[&str]) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .arg("--offline")
        .current_dir(dir)
        .env("CARGO_TARGET_DIR", target_dir())
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// A library that was built, by the name of its package.
pub fn library(package: &str) -> PathBuf {
    target_dir().join("debug").join(file_name(&package.replace('-', "_")))
}

/// `libNAME.so`.
pub fn file_name(name: &str) -> String {
    format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// The bytes of a fixture of this workspace.
fn fixture(package: &'static str, cell: &'static OnceLock<Vec<u8>>) -> &'static [u8] {
    cell.get_or_init(|| {
        cargo(&workspace(), &["build", "-p", package]).unwrap();
        std::fs::read(library(package)).unwrap()
    })
}

/// The plugin `llama` as it is in this workspace now.
pub fn llama() -> &'static [u8] {
    static CELL: OnceLock<Vec<u8>> = OnceLock::new();
    fixture("host_plugin_llama", &CELL)
}

/// The plugin `bad` with an order; see its source.
pub fn bad(order: &str) -> Vec<u8> {
    static CELL: OnceLock<Vec<u8>> = OnceLock::new();
    patch(fixture("bad-plugin", &CELL), "HOST-BAD-PLUGIN:", order, 64)
}

/// The plugin `raw` that describes itself with this text.
pub fn raw(description: &str) -> Vec<u8> {
    static CELL: OnceLock<Vec<u8>> = OnceLock::new();
    patch(fixture("raw-plugin", &CELL), "HOST-RAW-PLUGIN:", description, 512)
}

/// A good description for [`raw`].
pub const RAW: &str =
    r#"{"name":"raw","version":"1","license":"MIT","ir":"1.0","architectures":["RawForCausalLM"],"summary":"raw"}"#;

fn patch(library: &[u8], mark: &str, text: &str, length: usize) -> Vec<u8> {
    let mut bytes = library.to_vec();
    let mark = mark.as_bytes();
    let mut places = bytes.windows(mark.len()).enumerate().filter(|(_, w)| *w == mark).map(|(i, _)| i);
    let at = places.next().unwrap() + mark.len();
    assert_eq!(places.next(), None, "the mark occurs twice");
    let room = &mut bytes[at..at + length - mark.len()];
    assert!(text.len() <= room.len());
    room.fill(b' ');
    room[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// Sets the rights of a file or folder: others' must not be able to write to plugins.
pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A plugin that was built with a root module of another layout: a copy of the ABI crate with one more field. The package is called
/// `name`, so that test programs that run at once are not in each other's way.
pub fn other_layout(name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let root = workspace();
    let lock = std::fs::read(root.join("Cargo.lock")).unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let package = |name: &str, version: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\n")
    };
    let abi_source = std::fs::read_to_string(root.join("plugin-api/abi/src/lib.rs")).unwrap();
    let field = "    pub build: extern";
    assert!(abi_source.contains(field));
    write(
        "abi/src/lib.rs",
        &abi_source.replace(field, &format!("    /// One more.\n    pub abort: extern \"C\" fn(),\n{field}")),
    );
    write("abi/src/layout.golden", "");
    let abi_stable = "[dependencies]\nabi_stable = { version = \"0.11\", default-features = false }\n";
    write("abi/Cargo.toml", &format!("{}{abi_stable}", package("host-plugin-abi", "1.0.0")));
    let plugin = std::fs::read_to_string(root.join("tests/fixtures/raw-plugin/src/lib.rs")).unwrap();
    let module = "RootModule { describe, build, query }";
    assert!(plugin.contains(module));
    write(
        "src/lib.rs",
        &(plugin.replace(module, "RootModule { describe, abort: stop, build, query }") + "extern \"C\" fn stop() {}\n"),
    );
    write(
        "Cargo.toml",
        &format!(
            "{}[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\nhost-plugin-abi = {{ path = \"abi\" }}\nserde_json = \"1\"\n[workspace]\n",
            package(name, "0.1.0")
        ),
    );
    std::fs::write(dir.path().join("Cargo.lock"), lock).unwrap();
    cargo(dir.path(), &["build"]).unwrap();
    std::fs::read(library(name)).unwrap()
}

/// Process ids of this machine.
pub fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process runs with this in its command line.
pub fn is_running(words: &str) -> bool {
    processes().iter().any(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    })
}
