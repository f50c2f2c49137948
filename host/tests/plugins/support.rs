//! Builds the fixture plugins and makes registries over folders of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use host::registry::{Found, PluginError, Registry, RegistryOptions, Selected};
use plugin_api::BuildRequest;
use serde_json::Value;
use tempfile::TempDir;

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

/// A folder of plugins and a registry over it alone.
pub struct Folder {
    pub dir: PathBuf,
    root: TempDir,
}

impl Folder {
    /// Files by the middle of their name: `x` is `libhost_plugin_x.so`.
    pub fn new(files: &[(&str, &[u8])]) -> Folder {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap().join("plugins");
        std::fs::create_dir(&dir).unwrap();
        set_mode(&dir, 0o755);
        let folder = Folder { dir, root };
        for (name, bytes) in files {
            folder.put(name, bytes);
        }
        folder
    }

    /// Writes or replaces a plugin.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.join(file_name(&format!("host_plugin_{name}")));
        std::fs::write(&path, bytes).unwrap();
        set_mode(&path, 0o755);
        path
    }

    pub fn options(&self) -> RegistryOptions {
        RegistryOptions {
            dirs: vec![self.dir.clone()],
            implicit_dirs: Vec::new(),
            worker: PathBuf::from(env!("CARGO_BIN_EXE_host")),
            deadline: Duration::from_secs(60),
            cache_dir: Some(self.root.path().join("cache")),
            ..RegistryOptions::default()
        }
    }

    pub fn registry(&self) -> Registry {
        Registry::new(self.options()).unwrap()
    }

    pub fn registry_with(&self, change: impl FnOnce(&mut RegistryOptions)) -> Registry {
        let mut options = self.options();
        change(&mut options);
        Registry::new(options).unwrap()
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A request with this config.json.
pub fn request(config: Value) -> BuildRequest {
    BuildRequest::new(config, Vec::new())
}

/// The only plugin that was found.
pub fn only(found: Vec<Found>) -> Found {
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

/// The only plugin, ready to build.
pub fn selected(registry: &Registry) -> Selected {
    only(registry.scan()).select().unwrap()
}

/// The error is one line that names the file and says all of this.
#[track_caller]
pub fn assert_says(error: &PluginError, words: &[&str]) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "more than one line: {text:?}");
    assert!(text.contains(error.path.to_str().unwrap()), "no path: {text}");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

/// No child of this process stays a zombie (those of tests that run at the same time come and go).
pub fn assert_no_zombies() {
    let mut left = Vec::new();
    for _ in 0..100 {
        left = zombies();
        if left.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("zombies: {left:?}");
}

fn zombies() -> Vec<String> {
    let me = std::process::id().to_string();
    let stats = processes().into_iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stats
        .filter(|stat| {
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let mut fields = rest.split(' ');
            fields.next() == Some("Z") && fields.next() == Some(&me)
        })
        .collect()
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
