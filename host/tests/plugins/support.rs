//! Registries over folders of fixture plugins.

use std::path::PathBuf;
use std::time::Duration;

use host::registry::{Found, PluginError, Registry, RegistryOptions, Selected};
use plugin_api::BuildRequest;
use serde_json::Value;
use tempfile::TempDir;

pub use crate::build::*;

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
