//! `host` as a library, with the plugins as they are built: shared libraries that cargo made beside the test's executable.
//!
//! Plugins are dev-dependencies of this package, so the libraries are there and fresh whichever tests are run.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use host::engine::Stats;
use host::llm::{DeviceChoice, DtypeChoice, Llm, LlmOptions, ModelSource};
use host::registry::RegistryOptions;
use host::transformers::PackageOptions;
use host_zoo::transformers;

/// The native plugins.
pub const PLUGINS: [&str; 3] = ["llama", "gpt2", "helium"];

/// A registry over the native plugins alone. `worker` is `env!("CARGO_BIN_EXE_plugin-worker")`.
pub fn registry(worker: &str) -> RegistryOptions {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let built = Path::new(worker).parent().expect("a program lies in a folder");
    let folder = FOLDER.get_or_init(|| copies(built, "e2e-plugins", &PLUGINS));
    RegistryOptions {
        dirs: vec![folder.join("plugins")],
        implicit_dirs: vec![],
        worker: worker.into(),
        cache_dir: Some(folder.join("copies")),
        ..RegistryOptions::default()
    }
}

/// The same with the plugin `transformers`, which reads the package that tests use.
pub fn registry_with_transformers(worker: &str) -> RegistryOptions {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let built = Path::new(worker).parent().expect("a program lies in a folder");
        copies(built, "e2e-all-plugins", &[&PLUGINS[..], &["transformers"]].concat())
    });
    RegistryOptions {
        dirs: vec![folder.join("plugins")],
        cache_dir: Some(folder.join("copies")),
        transformers: PackageOptions { path: Some(transformers::package().into()), ..PackageOptions::default() },
        ..registry(worker)
    }
}

/// Options for this model and nothing of this machine's: no hub, no plugins of the user's, no device.
pub fn options(model: ModelSource, worker: &str) -> LlmOptions {
    let mut options = LlmOptions {
        model,
        registry: registry(worker),
        device: DeviceChoice::Cpu,
        kernel_cache: Path::new(worker).parent().map(|built| built.join("e2e-kernels")),
        ..LlmOptions::default()
    };
    options.hub.offline = true;
    options
}

/// The dtype, as an option.
pub fn dtype(dtype: host::exec::Dtype) -> DtypeChoice {
    DtypeChoice::Is(dtype)
}

/// The engine's counts once it has nothing to do: the last answer is sent before its blocks are counted as free.
pub fn at_rest(llm: &Llm) -> Stats {
    let begin = Instant::now();
    loop {
        let stats = llm.engine().stats();
        if !stats.busy {
            return stats;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "the engine does not come to rest: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A lasting folder with copies of the plugins: cargo's own may be writable by others (umask), which the registry refuses.
fn copies(built: &Path, name: &str, plugins_of: &[&str]) -> PathBuf {
    let folder = built.join(name);
    let plugins = folder.join("plugins");
    fs::create_dir_all(&plugins).expect("a folder for plugins");
    for dir in [&folder, &plugins] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("sets the mode");
    }
    for name in plugins_of {
        let file = format!("{}host_plugin_{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let library = built.join("deps").join(&file);
        let content = fs::read(&library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
        let copy = plugins.join(&file);
        if fs::read(&copy).is_ok_and(|old| old == content) {
            continue;
        }
        // Renamed into place: other test programs may read it now.
        let mut new = tempfile::NamedTempFile::new_in(&folder).expect("a file for a plugin");
        std::io::Write::write_all(&mut new, &content).expect("writes a plugin");
        fs::set_permissions(new.path(), Permissions::from_mode(0o755)).expect("sets the mode");
        new.persist(&copy).expect("moves a plugin into place");
    }
    folder
}
