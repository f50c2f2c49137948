//! Has a plugin build the model's graph: writes the request, decides whether the model's own code goes with it, and, where the
//! user did not name a plugin, goes on to the next when one says that it does not support the model.

use plugin_api::{BuildRequest, Model, Sources, TensorInfo};

use super::checkpoint::Checkpoint;
use super::load::about;
use super::model_code;
use super::settings::{LlmOptions, LoadError};
use crate::hub;
use crate::registry::{Cause, MODEL_CODE, PluginError, Registry, Selected};
use crate::transformers;

/// A graph and where it comes from.
pub(super) struct Built {
    /// The plugin that built it.
    pub(super) plugin: Selected,
    /// What it read beside the request.
    pub(super) sources: Sources,
    /// What it returned, verified.
    pub(super) model: Model,
}

/// Chooses a plugin and has it build the model.
pub(super) fn build(checkpoint: &Checkpoint, options: &LlmOptions) -> Result<Built, LoadError> {
    let architecture = checkpoint.architecture()?;
    let registry = Registry::new(options.registry.clone())?;
    let mut errors = Vec::new();
    let mut candidates = registry.candidates(&options.model_impl, architecture)?.into_iter().peekable();
    while let Some(plugin) = candidates.next() {
        match build_with(&registry, &plugin, checkpoint, options) {
            Ok((sources, model)) => return Ok(Built { plugin, sources, model }),
            Err(error) => {
                let next = candidates.peek().filter(|_| does_not_support(&error));
                if let Some(next) = next {
                    tracing::warn!("{error}; trying plugin `{}`", next.description.name);
                }
                let ends = next.is_none();
                errors.push(error);
                if ends {
                    break;
                }
            }
        }
    }
    Err(match (errors.len(), errors.pop()) {
        // A plugin's error does not say which model it is about.
        (1, Some(error @ LoadError::Plugin(_))) => about(checkpoint, error),
        (1, Some(error)) => error,
        (_, last) => {
            errors.extend(last);
            LoadError::Tried { name: checkpoint.name.clone(), errors }
        }
    })
}

/// Whether another plugin may do better: not after a crash or a mistake in the configuration, which the user must see.
fn does_not_support(error: &LoadError) -> bool {
    matches!(error, LoadError::Plugin(PluginError { cause: Cause::Unsupported(_), .. }))
}

fn build_with(
    registry: &Registry,
    plugin: &Selected,
    checkpoint: &Checkpoint,
    options: &LlmOptions,
) -> Result<(Sources, Model), LoadError> {
    let tensor = |(name, dtype, shape): (&str, hub::Dtype, &[usize])| TensorInfo {
        name: name.to_owned(),
        dtype: dtype.name().to_owned(),
        shape: shape.to_vec(),
    };
    let tensors = checkpoint.weights.describe().map(tensor).collect();
    let mut request = BuildRequest::new(checkpoint.config.clone(), tensors);
    let own_code = model_code::brings_code(&checkpoint.config) && plugin.needs(MODEL_CODE);
    if let Some(dir) = checkpoint.dir.as_deref().filter(|_| own_code && options.trust_remote_code) {
        request.sources.model_code = Some(model_code::files(dir)?);
    }
    let request = registry.supply(plugin, &request)?;
    if own_code {
        decide_about_code(&request, checkpoint, options)?;
    }
    let model = registry.build_model(plugin, &request)?;
    Ok((request.sources, model))
}

/// Says which code will run. Code that is not trusted is an error only where nothing else can build the model: many models
/// bring code from before transformers had their class.
fn decide_about_code(request: &BuildRequest, checkpoint: &Checkpoint, options: &LlmOptions) -> Result<(), LoadError> {
    if let Some(code) = &request.sources.model_code {
        tracing::warn!("running the model's own code ({} files of {})", code.files.len(), code.dir.display());
        for missing in crate::registry::sandbox_support().missing() {
            tracing::warn!("the sandbox of the model's code has a hole: {missing}");
        }
        return Ok(());
    }
    let package = request.sources.transformers.as_deref();
    let architecture = request.architecture().unwrap_or_default();
    if !options.trust_remote_code && !package.is_some_and(|dir| transformers::knows(dir, architecture)) {
        return Err(model_code::refused(&checkpoint.name, &checkpoint.config, &checkpoint.python_files));
    }
    tracing::info!("the model's own code is not used: transformers has the class {architecture} itself");
    Ok(())
}
