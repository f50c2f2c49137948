//! The three kinds of Python files: our own, those of the package `transformers`, and the model's.
//!
//! Only what is named here can be read from Python, by paths that are checked before they reach the file system.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use plugin_api::Sources;
use rust_embed::RustEmbed;

/// Largest source file: transformers' own largest has 0.3 MB.
const MAX_FILE: u64 = 4 << 20;
/// Most bytes of sources for one model.
const MAX_TOTAL: u64 = 64 << 20;

#[derive(RustEmbed)]
#[folder = "python/"]
struct Embedded;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ours: what stands in for torch and for parts of transformers.
    Shim,
    /// Of the package `transformers`; paths start with `transformers/`.
    Package,
    /// The model's own code; only with `--trust-remote-code`.
    Model,
}

impl Kind {
    pub(crate) fn parse(text: &str) -> Option<Kind> {
        Some(match text {
            "shim" => Kind::Shim,
            "package" => Kind::Package,
            "model" => Kind::Model,
            _ => return None,
        })
    }

    /// How the interpreter calls a file of this kind, in messages and names of nodes.
    pub(crate) fn display(self, path: &str) -> String {
        match self {
            Kind::Shim => format!("host/{path}"),
            Kind::Package => path.to_owned(),
            Kind::Model => format!("model/{path}"),
        }
    }
}

/// Where Python files come from.
pub(crate) struct Files {
    /// A folder that replaces the embedded files while they are written.
    shims: Option<PathBuf>,
    transformers: Option<PathBuf>,
    model: Option<PathBuf>,
    model_files: Vec<String>,
    read: std::cell::Cell<u64>,
}

impl Files {
    pub(crate) fn new(sources: &Sources, shims: Option<PathBuf>) -> Files {
        let (model, model_files) = match &sources.model_code {
            Some(code) => {
                let files = code.files.iter().filter_map(|f| f.to_str()).map(str::to_owned).collect();
                (Some(code.dir.clone()), files)
            }
            None => (None, Vec::new()),
        };
        Files { shims, transformers: sources.transformers.clone(), model, model_files, read: 0.into() }
    }

    /// The model's own files, relative to its folder.
    pub(crate) fn model_files(&self) -> &[String] {
        &self.model_files
    }

    /// Whether there is such a file, or such a folder.
    pub(crate) fn exists(&self, kind: Kind, path: &str) -> bool {
        if !is_plain(path) {
            return false;
        }
        match kind {
            Kind::Shim => match &self.shims {
                Some(dir) => dir.join(path).exists(),
                None => Embedded::get(path).is_some() || Embedded::iter().any(|f| is_inside(&f, path)),
            },
            Kind::Package => self.package(path).is_some_and(|p| p.exists()),
            Kind::Model => self.model_files.iter().any(|f| f == path || is_inside(f, path)),
        }
    }

    /// The text of a file; `None` if there is none.
    pub(crate) fn read(&self, kind: Kind, path: &str) -> Result<Option<Cow<'static, str>>, String> {
        if !is_plain(path) {
            return Ok(None);
        }
        let file = match kind {
            Kind::Shim => match &self.shims {
                Some(dir) => dir.join(path),
                None => return embedded(path),
            },
            Kind::Package => match self.package(path) {
                Some(file) => file,
                None => return Ok(None),
            },
            Kind::Model => match &self.model {
                Some(dir) if self.model_files.iter().any(|f| f == path) => dir.join(path),
                _ => return Ok(None),
            },
        };
        self.load(&file, &kind.display(path)).map(|text| text.map(Cow::Owned))
    }

    fn package(&self, path: &str) -> Option<PathBuf> {
        let dir = self.transformers.as_ref()?;
        if path == "transformers" {
            return Some(dir.clone());
        }
        path.strip_prefix("transformers/").map(|rest| dir.join(rest))
    }

    fn load(&self, file: &Path, shown: &str) -> Result<Option<String>, String> {
        let size = match std::fs::metadata(file) {
            Ok(meta) if meta.is_file() => meta.len(),
            _ => return Ok(None),
        };
        if size > MAX_FILE {
            return Err(format!("{shown} has {size} bytes, the limit for a Python file is {MAX_FILE}"));
        }
        let total = self.read.get() + size;
        if total > MAX_TOTAL {
            return Err(format!("the model's Python files have more than {MAX_TOTAL} bytes, with {shown}"));
        }
        self.read.set(total);
        let bytes = std::fs::read(file).map_err(|e| format!("{shown} is not readable: {e}"))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{shown} is not UTF-8"))?;
        Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
    }
}

fn embedded(path: &str) -> Result<Option<Cow<'static, str>>, String> {
    let Some(file) = Embedded::get(path) else { return Ok(None) };
    let text = match file.data {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).ok(),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).ok(),
    };
    text.map(Some).ok_or_else(|| format!("host/{path} is not UTF-8"))
}

fn is_inside(file: &str, folder: &str) -> bool {
    file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// A relative path of plain names: nothing that leaves its folder.
fn is_plain(path: &str) -> bool {
    path.len() <= 512
        && path.split('/').all(|name| {
            !name.is_empty()
                && !name.starts_with('.')
                && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::ModelCode;

    #[test]
    fn paths_stay_inside() {
        for path in ["", "/etc/passwd", "../x.py", "a/../x.py", "a//b.py", ".git/x", "a\\b", "a b.py", "a\0b"] {
            assert!(!is_plain(path), "{path}");
        }
        assert!(is_plain("transformers/models/llama/modeling_llama.py"));
    }

    #[test]
    fn only_named_files_of_the_model_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, text) in [("sub/a.py", "x = 1"), ("secret.py", "y = 2")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let code = ModelCode { dir: dir.path().into(), files: vec!["sub/a.py".into(), "gone.py".into()] };
        let files = Files::new(&Sources { model_code: Some(code), ..Sources::default() }, None);
        assert_eq!(files.read(Kind::Model, "sub/a.py").unwrap().as_deref(), Some("x = 1"));
        assert_eq!(files.read(Kind::Model, "secret.py").unwrap(), None);
        assert_eq!(files.read(Kind::Model, "gone.py").unwrap(), None);
        assert!(files.exists(Kind::Model, "sub") && !files.exists(Kind::Model, "su"));
        assert_eq!(files.read(Kind::Package, "transformers/__init__.py").unwrap(), None);
        assert!(files.exists(Kind::Shim, "boot.py") && files.exists(Kind::Shim, "stdlib"));
    }

    #[test]
    fn large_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let code = ModelCode { dir: dir.path().into(), files: vec!["a.py".into()] };
        let file = std::fs::File::create(dir.path().join("a.py")).unwrap();
        file.set_len(100 << 20).unwrap();
        let files = Files::new(&Sources { model_code: Some(code), ..Sources::default() }, None);
        let error = files.read(Kind::Model, "a.py").unwrap_err();
        assert!(error.starts_with("model/a.py has 104857600 bytes"), "{error}");
    }
}
