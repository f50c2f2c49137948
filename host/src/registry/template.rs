//! The crate that `host plugins new` writes: a small but real architecture, with its test.
//!
//! Its files are compiled into the program, and so are the sources of `plugin-api`, which the crate gets a copy of: it
//! builds on a machine that has neither a checkout of this repository nor a published `plugin-api`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rust_embed::RustEmbed;
use toml::{Table, Value};

#[derive(RustEmbed)]
#[folder = "../plugin-api/src"]
struct ApiSources;

#[derive(RustEmbed)]
#[folder = "../plugin-api/abi/src"]
struct AbiSources;

const API_MANIFEST: &str = include_str!("../../../plugin-api/Cargo.toml");
const ABI_MANIFEST: &str = include_str!("../../../plugin-api/abi/Cargo.toml");
const WORKSPACE_MANIFEST: &str = include_str!("../../../Cargo.toml");

/// Files of the crate; `{{...}}` in them is filled in.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    ("src/lib.rs", include_str!("template/lib.rs.txt")),
    ("tests/golden.rs", include_str!("template/golden.rs.txt")),
    ("tests/golden/tiny.txt", include_str!("template/tiny.txt")),
    ("README.md", include_str!("template/README.md.txt")),
    (".gitignore", "/target\n"),
];

/// Where the new crate takes `plugin-api` from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PluginApi {
    /// A copy of the sources that this program was built with, in the crate's folder `vendor`.
    #[default]
    Vendored,
    /// A checkout's `plugin-api` folder.
    Path(PathBuf),
    /// A version in the registry.
    Version(String),
}

impl From<&str> for PluginApi {
    /// `--plugin-api`: a version if it starts with a digit, else a path.
    fn from(text: &str) -> PluginApi {
        let version = text.trim_start_matches(['=', '^', '~']);
        if version.starts_with(|c: char| c.is_ascii_digit()) && !text.contains('/') {
            PluginApi::Version(text.to_owned())
        } else {
            PluginApi::Path(PathBuf::from(text))
        }
    }
}

/// Whether `name` can be the name of a plugin and of a crate.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 40
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !good {
        return Err(format!("`{name}` is not 1 to 40 of a-z, 0-9 and `_`, starting with a letter"));
    }
    match name {
        "auto" | "native" | "transformers" => Err(format!("`{name}` means something else in --model-impl")),
        _ => Ok(()),
    }
}

/// Writes the crate into the new folder `dir`, and returns the files.
pub(super) fn write(dir: &Path, name: &str, api: &PluginApi) -> io::Result<Vec<PathBuf>> {
    fs::create_dir(dir)?;
    let dependency = match api {
        PluginApi::Vendored => "{ path = \"vendor/plugin-api\" }".to_owned(),
        PluginApi::Path(path) => {
            let path = fs::canonicalize(path)?;
            let path = path.to_str().ok_or_else(|| io::Error::other("the path of plugin-api is not UTF-8"))?;
            format!("{{ path = {} }}", Value::from(path))
        }
        PluginApi::Version(version) => Value::from(version.as_str()).to_string(),
    };
    let vendored = match api {
        PluginApi::Vendored => "- `vendor/` holds the sources of `plugin-api` of the `host` that wrote this crate.",
        _ => "",
    };
    let file = format!("{}host_plugin_{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let mut written = Vec::new();
    let mut put = |path: PathBuf, bytes: &[u8]| -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create_new(&path)?.write_all(bytes)?;
        written.push(path);
        Ok(())
    };
    for (path, text) in FILES {
        let text = text
            .replace("{{name}}", name)
            .replace("{{Type}}", &type_name(name))
            .replace("{{file}}", &file)
            .replace("{{plugin-api}}", &dependency)
            .replace("{{vendored}}", vendored);
        put(dir.join(path), format!("{}\n", text.trim_end()).as_bytes())?;
    }
    if *api == PluginApi::Vendored {
        let vendor = dir.join("vendor");
        for (folder, manifest) in [("plugin-api", API_MANIFEST), ("host-plugin-abi", ABI_MANIFEST)] {
            put(vendor.join(folder).join("Cargo.toml"), standalone(manifest)?.as_bytes())?;
        }
        for path in ApiSources::iter() {
            let file = ApiSources::get(&path).ok_or(io::ErrorKind::NotFound)?;
            put(vendor.join("plugin-api/src").join(path.as_ref()), &file.data)?;
        }
        for path in AbiSources::iter() {
            let file = AbiSources::get(&path).ok_or(io::ErrorKind::NotFound)?;
            put(vendor.join("host-plugin-abi/src").join(path.as_ref()), &file.data)?;
        }
    }
    Ok(written)
}

/// `my_model` -> `MyModel`.
fn type_name(name: &str) -> String {
    let parts = name.split('_').filter(|p| !p.is_empty());
    parts.map(|p| p[..1].to_ascii_uppercase() + &p[1..]).collect()
}

/// A manifest of this workspace as one that needs no workspace: what it inherits is filled in, what only our own tests and
/// lints need is left out.
fn standalone(manifest: &str) -> io::Result<String> {
    let parse = |text: &str| text.parse::<Table>().map_err(io::Error::other);
    let (mut manifest, workspace) = (parse(manifest)?, parse(WORKSPACE_MANIFEST)?);
    let inherited = |section: &str, key: &str| {
        let found = workspace.get("workspace").and_then(|w| w.get(section)).and_then(|s| s.get(key));
        found.cloned().ok_or_else(|| io::Error::other(format!("the workspace has no {section}.{key}")))
    };
    let is_inherited = |value: &Value| value.get("workspace") == Some(&Value::Boolean(true));
    if let Some(Value::Table(package)) = manifest.get_mut("package") {
        for (key, value) in package.iter_mut().filter(|(_, v)| is_inherited(v)) {
            *value = inherited("package", key)?;
        }
    }
    if let Some(Value::Table(dependencies)) = manifest.get_mut("dependencies") {
        for (name, value) in dependencies.iter_mut().filter(|(_, v)| is_inherited(v)) {
            *value = inherited("dependencies", name)?;
            if let Some(Value::String(path)) = value.get_mut("path") {
                *path = format!("../{name}");
            }
        }
    }
    for section in ["lints", "dev-dependencies", "bench", "test"] {
        manifest.remove(section);
    }
    toml::to_string(&manifest).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["llama", "my_model2"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "My", "a-b", "2x", "../x", "auto", "native", "transformers", &"x".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(type_name("my_model2"), "MyModel2");
        assert_eq!(PluginApi::from("0.1"), PluginApi::Version("0.1".into()));
        assert_eq!(PluginApi::from("../plugin-api"), PluginApi::Path("../plugin-api".into()));
    }

    #[test]
    fn a_standalone_manifest_inherits_nothing() {
        for manifest in [API_MANIFEST, ABI_MANIFEST] {
            let text = standalone(manifest).unwrap();
            assert!(!text.contains("workspace"), "{text}");
        }
        assert!(standalone(API_MANIFEST).unwrap().contains("../host-plugin-abi"));
    }
}
