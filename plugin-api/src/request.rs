//! What host and plugin tell each other besides the graph: [`Description`], [`BuildRequest`] and why a build failed.
//!
//! All of it crosses the ABI as JSON. Fields are only ever added, and readers ignore those that they do not know, so that a
//! plugin and a host of different ages understand each other.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{IR_MAJOR, IR_MINOR, SpecError};

/// Version of the graph IR, `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IrVersion {
    /// A reader reads only its own.
    pub major: u32,
    /// Grows with every new op or attribute; a reader reads every older one.
    pub minor: u32,
}

impl IrVersion {
    /// The version that this copy of `plugin-api` writes, and the newest one that it reads whole.
    pub const CURRENT: IrVersion = IrVersion { major: IR_MAJOR, minor: IR_MINOR };
}

impl fmt::Display for IrVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for IrVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<IrVersion, String> {
        let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        match parts {
            Some((major, minor)) => Ok(IrVersion { major, minor }),
            None => Err(format!("`{text}` is not an IR version such as {}", IrVersion::CURRENT)),
        }
    }
}

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Short name for `--model-impl`, of letters, digits, `-` and `_`.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// SPDX expression of its licence.
    pub license: String,
    /// IR version that it was built with, see [`IrVersion::CURRENT`].
    pub ir: String,
    /// The architectures that it builds, as `architectures` of config.json names them. `*`: it tries any.
    pub architectures: Vec<String>,
    /// One line for `host plugins list`.
    pub summary: String,
    /// What it wants to read beside the request: names of fields of [`Sources`]. A host that cannot supply one says so
    /// before it asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

impl Description {
    /// Whether it names this architecture (`*` is not counted).
    pub fn claims(&self, architecture: &str) -> bool {
        self.architectures.iter().any(|a| a == architecture)
    }

    /// Whether it tries any architecture.
    pub fn claims_any(&self) -> bool {
        self.architectures.iter().any(|a| a == "*")
    }
}

/// A description of the crate that this is written in: version, licence and summary come from its Cargo.toml.
///
/// ```
/// let d = plugin_api::description!("llama", ["LlamaForCausalLM"]);
/// assert_eq!(d.name, "llama");
/// ```
#[macro_export]
macro_rules! description {
    ($name:expr, [$($architecture:expr),* $(,)?]) => {
        $crate::Description {
            name: ::std::string::String::from($name),
            version: ::std::string::String::from(env!("CARGO_PKG_VERSION")),
            license: ::std::string::String::from(env!("CARGO_PKG_LICENSE")),
            ir: ::std::string::ToString::to_string(&$crate::IrVersion::CURRENT),
            architectures: ::std::vec![$(::std::string::String::from($architecture)),*],
            summary: ::std::string::String::from(env!("CARGO_PKG_DESCRIPTION")),
            needs: ::std::vec::Vec::new(),
        }
    };
}

/// What a plugin is asked to build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BuildRequest {
    /// The IR version of the host.
    pub ir: String,
    /// The model's config.json, as it is.
    pub config: serde_json::Value,
    /// The tensors in the checkpoint.
    #[serde(default)]
    pub tensors: Vec<TensorInfo>,
    /// Files that the plugin may read. Others its process cannot open.
    #[serde(default)]
    pub sources: Sources,
}

/// Files that a plugin reads beside the request, each only if its description says that it needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The folder of the Python package `transformers`: the one that holds `__init__.py` and `models`.
    #[serde(default)]
    pub transformers: Option<PathBuf>,
    /// Its version.
    #[serde(default)]
    pub transformers_version: Option<String>,
    /// The model's own code; only where the user trusts it.
    #[serde(default)]
    pub model_code: Option<ModelCode>,
    /// A folder for derived files, which the plugin may write. Never there together with `model_code`: what a model's
    /// code writes must not be read when another model is loaded.
    #[serde(default)]
    pub cache: Option<PathBuf>,
}

/// The Python files of a model's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCode {
    /// The folder.
    pub dir: PathBuf,
    /// The files, relative to it.
    pub files: Vec<PathBuf>,
}

impl BuildRequest {
    /// A request of this version of the IR.
    pub fn new(config: serde_json::Value, tensors: Vec<TensorInfo>) -> BuildRequest {
        BuildRequest { ir: IrVersion::CURRENT.to_string(), config, tensors, sources: Sources::default() }
    }

    /// The configuration as the plugin's own type.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C, BuildError> {
        C::deserialize(&self.config).map_err(BuildError::Config)
    }

    /// `architectures[0]` of the configuration.
    pub fn architecture(&self) -> Option<&str> {
        self.config.get("architectures")?.get(0)?.as_str()
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type as safetensors calls it, e.g. `BF16`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Why a plugin cannot build a model. The host prints it behind the plugin's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration lacks a field, or a field has another type.
    #[error("config.json: {0}")]
    Config(serde_json::Error),
    /// The configuration asks for something that the plugin does not do.
    #[error("config.json: `{field}` is {value}: {reason}")]
    Unsupported {
        /// The field's name.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What the plugin does support.
        reason: String,
    },
    /// The graph came out wrong.
    #[error("the graph is wrong: {0}")]
    Graph(#[from] SpecError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl BuildError {
    /// An error from its message.
    pub fn new(message: impl Into<String>) -> BuildError {
        BuildError::Other(message.into())
    }

    /// A field of config.json with a value that the plugin does not support.
    pub fn unsupported(field: &str, value: impl Serialize, reason: impl Into<String>) -> BuildError {
        let value = serde_json::to_string(&value).unwrap_or_else(|_| "not printable".to_owned());
        BuildError::Unsupported { field: field.to_owned(), value, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!("1.12".parse(), Ok(IrVersion { major: 1, minor: 12 }));
        assert!("1".parse::<IrVersion>().is_err());
        assert!("1.x".parse::<IrVersion>().is_err());
        assert!(IrVersion { major: 1, minor: 9 } < IrVersion { major: 1, minor: 10 });
    }

    #[test]
    fn a_request_of_a_newer_host_is_read() {
        let text = r#"{"ir":"1.4","config":{"architectures":["A"],"n":3},"tensors":[],"later":true}"#;
        let request: BuildRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.architecture(), Some("A"));
    }

    #[test]
    fn errors_name_the_field() {
        #[derive(Debug, Deserialize)]
        struct Config {
            #[expect(dead_code, reason = "only its absence matters")]
            hidden_size: usize,
        }
        let request = BuildRequest::new(json!({}), vec![]);
        let error = request.config::<Config>().unwrap_err().to_string();
        assert_eq!(error, "config.json: missing field `hidden_size`");
        let error = BuildError::unsupported("hidden_act", "gelu", "only silu is supported").to_string();
        assert_eq!(error, "config.json: `hidden_act` is \"gelu\": only silu is supported");
    }
}
