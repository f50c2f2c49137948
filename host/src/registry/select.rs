//! Chooses the plugin for an architecture.
//!
//! The whole rule: `auto` takes the first native plugin that claims the architecture, and the plugin `transformers` where
//! there is none, or where it does not support the model; `native`, `transformers` and a plugin's name force one. A failed choice lists every plugin with the rule that it failed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use plugin_api::{Description, IrVersion};

use super::cache::Copy;
use super::sources::TRANSFORMERS;
use super::{Cause, Directory, Found, PluginError, Registry};

/// `--model-impl`: which plugin builds the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelImpl {
    /// A native plugin that claims the architecture, else `transformers`.
    #[default]
    Auto,
    /// A native plugin.
    Native,
    /// The `transformers` plugin.
    Transformers,
    /// The plugin of this name, whatever it claims.
    Named(String),
}

impl FromStr for ModelImpl {
    type Err = String;

    fn from_str(text: &str) -> Result<ModelImpl, String> {
        Ok(match text {
            "auto" => ModelImpl::Auto,
            "native" => ModelImpl::Native,
            TRANSFORMERS => ModelImpl::Transformers,
            "" => return Err("expected auto, native, transformers or the name of a plugin".to_owned()),
            name => ModelImpl::Named(name.to_owned()),
        })
    }
}

impl fmt::Display for ModelImpl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModelImpl::Auto => "auto",
            ModelImpl::Native => "native",
            ModelImpl::Transformers => TRANSFORMERS,
            ModelImpl::Named(name) => name,
        })
    }
}

/// The plugin that was chosen.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Its file in the search path.
    pub path: PathBuf,
    /// What it says about itself.
    pub description: Description,
    /// The private copy that is run: what was described, even if the file has been replaced since.
    pub(super) copy: Copy,
}

impl Selected {
    /// `native` or `transformers`, for the log and `/v1/models`.
    pub fn kind(&self) -> &'static str {
        if self.description.name == TRANSFORMERS { TRANSFORMERS } else { "native" }
    }

    /// Whether it wants to read these sources, by their name in [`Description::needs`].
    pub fn needs(&self, source: &str) -> bool {
        self.description.needs.iter().any(|need| need == source)
    }

    /// SHA-256 of the plugin's file.
    pub fn sha256(&self) -> &str {
        &self.copy.hash
    }

    /// The IR version that it was built with.
    pub(super) fn ir(&self) -> IrVersion {
        self.description.ir.parse().unwrap_or(IrVersion::CURRENT)
    }

    pub(super) fn error(&self, cause: Cause, output: String) -> PluginError {
        PluginError { path: self.path.clone(), name: Some(self.description.name.clone()), cause, output }
    }
}

impl Found {
    /// The plugin, chosen by hand; `Err`: why it cannot be used.
    pub fn select(&self) -> Result<Selected, PluginError> {
        let description = self.description.clone()?;
        match &self.copy {
            Some(copy) => Ok(Selected { path: self.path.clone(), description, copy: copy.clone() }),
            None => {
                let cause = Cause::Worker("it has no private copy".to_owned());
                Err(PluginError { path: self.path.clone(), name: Some(description.name), cause, output: String::new() })
            }
        }
    }

    fn is_native(&self) -> bool {
        self.description.as_ref().is_ok_and(|d| d.name != TRANSFORMERS)
    }
}

/// Why no plugin was chosen; several lines.
#[derive(Clone, Debug)]
pub struct SelectError {
    /// What was asked for.
    pub model_impl: ModelImpl,
    /// The model's architecture.
    pub architecture: String,
    /// Every plugin that was looked at, with the rule that it failed.
    pub tried: Vec<String>,
    /// The folders that were searched.
    pub directories: Vec<Directory>,
}

impl std::error::Error for SelectError {}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.model_impl {
            ModelImpl::Named(name) => write!(f, "there is no usable plugin called `{name}` (--model-impl {name})")?,
            other => write!(f, "no plugin can build the architecture `{}` (--model-impl {other})", self.architecture)?,
        }
        f.write_str("; tried:")?;
        for line in &self.tried {
            write!(f, "\n  {line}")?;
        }
        if self.tried.is_empty() {
            f.write_str("\n  nothing: no plugin was found")?;
        }
        f.write_str("\nsearched:")?;
        for dir in &self.directories {
            match &dir.refused {
                None => write!(f, "\n  {}", dir.path.display())?,
                Some(reason) => write!(f, "\n  {}: not used, it {reason}", dir.path.display())?,
            }
        }
        if self.directories.is_empty() {
            f.write_str("\n  nowhere: none of the usual folders exists; name one with --plugins-dir")?;
        }
        Ok(())
    }
}

impl Registry {
    /// The first of [`candidates`](Registry::candidates).
    pub fn select(&self, model_impl: &ModelImpl, architecture: &str) -> Result<Selected, SelectError> {
        // There is at least one.
        self.candidates(model_impl, architecture).map(|mut all| all.swap_remove(0))
    }

    /// The plugins that may build `architecture`, which is `architectures[0]` of the model's config.json, in the order in
    /// which they are to be asked: another one after the first only under `auto`. At least one.
    pub fn candidates(&self, model_impl: &ModelImpl, architecture: &str) -> Result<Vec<Selected>, SelectError> {
        let found = self.scan();
        for plugin in &found {
            if let Err(e) = &plugin.description {
                tracing::warn!("{e}");
            }
        }
        let usable = || found.iter().filter(|p| p.description.is_ok() && p.hidden_by.is_none());
        let named = |name: &str| usable().find(|p| p.description.as_ref().is_ok_and(|d| d.name == name));
        let claims = |p: &&Found| p.description.as_ref().is_ok_and(|d| d.claims(architecture));
        // A native plugin that tries everything is asked after those that know the architecture.
        let claims_any = |p: &&Found| p.description.as_ref().is_ok_and(Description::claims_any);
        let native = || usable().filter(|p| p.is_native());
        let first_native = || native().find(claims).or_else(|| native().find(claims_any));
        let transformers = || named(TRANSFORMERS).filter(|p| claims(p) || claims_any(p));
        let chosen = match model_impl {
            ModelImpl::Auto => [first_native(), transformers()],
            ModelImpl::Native => [first_native(), None],
            ModelImpl::Transformers => [transformers(), None],
            ModelImpl::Named(name) => [named(name), None],
        };
        let chosen: Vec<Selected> = chosen.into_iter().flatten().filter_map(|found| found.select().ok()).collect();
        if let Some(Selected { description: d, .. }) = chosen.first() {
            if !d.claims(architecture) && !d.claims_any() {
                tracing::warn!("plugin `{}` does not claim `{architecture}`; it was asked for by name", d.name);
            }
            return Ok(chosen);
        }
        let tried = found.iter().map(|p| failed_rule(p, model_impl, architecture)).chain(absent(&found, model_impl));
        Err(SelectError {
            model_impl: model_impl.clone(),
            architecture: architecture.to_owned(),
            tried: tried.collect(),
            directories: self.directories(),
        })
    }
}

/// The rule by which a plugin was not chosen.
fn failed_rule(plugin: &Found, model_impl: &ModelImpl, architecture: &str) -> String {
    let description = match &plugin.description {
        Ok(description) => description,
        Err(e) => return e.to_string(),
    };
    let rule = match (model_impl, &plugin.hidden_by) {
        (_, Some(other)) => format!("has the same name as {}, which comes first", other.display()),
        (ModelImpl::Named(name), _) => format!("is not called `{name}`"),
        (ModelImpl::Transformers, _) if description.name != TRANSFORMERS => "is not `transformers`".to_owned(),
        (ModelImpl::Native, _) if description.name == TRANSFORMERS => "is not native".to_owned(),
        _ => format!("claims {}, not `{architecture}`", some_of(&description.architectures)),
    };
    format!("{} {} ({}): {rule}", description.name, description.version, display(&plugin.path))
}

/// A line for the plugin that would have been taken, had it been there.
fn absent(found: &[Found], model_impl: &ModelImpl) -> Option<String> {
    let wanted = matches!(model_impl, ModelImpl::Auto | ModelImpl::Transformers);
    let there = found.iter().any(|p| p.description.as_ref().is_ok_and(|d| d.name == TRANSFORMERS));
    let file = format!("{}host_plugin_{TRANSFORMERS}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    (wanted && !there).then(|| format!("{TRANSFORMERS}: is not installed (no usable {file})"))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// The first few of a list.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
