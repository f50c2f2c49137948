//! The Python package transformers, for tests that trace its files: the folder in `HOST_TEST_TRANSFORMERS`, else the one that
//! `tests/fetch-transformers.sh` fills, which is run when it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The version that tests are made for.
pub const VERSION: &str = "5.23.0";

/// The package's folder, with `__init__.py` and `models`. Panics with what to do where it cannot be had.
pub fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| find().unwrap_or_else(|message| panic!("{message}")))
}

fn find() -> Result<PathBuf, String> {
    let is_package = |dir: &Path| dir.join("__init__.py").is_file() && dir.join("models").is_dir();
    if let Some(dir) = std::env::var_os("HOST_TEST_TRANSFORMERS").filter(|v| !v.is_empty()).map(PathBuf::from) {
        return match is_package(&dir) {
            true => Ok(dir),
            false => Err(format!(
                "HOST_TEST_TRANSFORMERS is {}, which is not the folder of the package transformers (with __init__.py and models)",
                dir.display()
            )),
        };
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
    let dir = root.join(format!("target/transformers-{VERSION}/transformers"));
    if is_package(&dir) {
        return Ok(dir);
    }
    let script = root.join("tests/fetch-transformers.sh");
    let run = Command::new("bash").arg(&script).output().map_err(|e| format!("{}: {e}", script.display()))?;
    match is_package(&dir) {
        true => Ok(dir),
        false => Err(format!(
            "this test reads the Python package transformers {VERSION}, and fetching it failed ({}): {}\nrun {} yourself, or set \
             HOST_TEST_TRANSFORMERS to the folder of an installed package",
            run.status,
            String::from_utf8_lossy(&run.stderr).trim(),
            script.display()
        )),
    }
}
