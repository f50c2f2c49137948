//! The formats by name: what an operator chooses with `--tool-call-parser` and `--reasoning-parser`, or what a chat template
//! shows. Names are vLLM's. It reads no text of a model; the parsers beside it do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Format, Schemas, deepseek, harmony, json_calls, mistral, pythonic, xml};
use crate::server::protocol::fields::nearest;

/// Formats and their names, the first of each being the one that is shown.
type Names<T> = [(T, &'static [&'static str])];

fn by_name<T: Clone>(text: &str, all: &Names<T>) -> Result<T, String> {
    if let Some((format, _)) = all.iter().find(|(_, names)| names.contains(&text)) {
        return Ok(format.clone());
    }
    let names: Vec<&str> = all.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let advice = nearest(text, names.iter().copied()).map(|name| format!("; did you mean {name}?"));
    Err(format!("`{text}` is unknown{} There are {}", advice.as_deref().unwrap_or("."), names.join(", ")))
}

fn shown<T: PartialEq>(format: &T, all: &Names<T>) -> &'static str {
    all.iter().find(|(other, _)| other == format).map_or("", |(_, names)| names[0])
}

/// How a model writes tool calls; names are vLLM's for `--tool-call-parser`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`
    Hermes,
    /// `{"name": …, "parameters": …}`, with `<|python_tag|>` in front or not
    Llama3Json,
    /// `[TOOL_CALLS]` and a list of calls, or `[TOOL_CALLS]name{…}`
    Mistral,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`
    Qwen3Xml,
    /// `<｜tool▁calls▁begin｜>…`
    DeepseekV3,
    /// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`
    Glm4,
    /// `[name(key=value), …]`
    Pythonic,
    /// Messages on channels
    Harmony,
}

impl ToolFormat {
    /// All, with their names.
    pub(super) const NAMES: &'static Names<Self> = &[
        (Self::Hermes, &["hermes", "qwen2_5"]),
        (Self::Llama3Json, &["llama3_json", "llama4_json"]),
        (Self::Mistral, &["mistral"]),
        (Self::Qwen3Xml, &["qwen3_xml", "qwen3_coder", "mimo"]),
        (Self::DeepseekV3, &["deepseek_v3", "deepseek_v31"]),
        (Self::Glm4, &["glm4", "glm45", "glm47"]),
        (Self::Pythonic, &["pythonic", "llama4_pythonic", "olmo3"]),
        (Self::Harmony, &["gpt_oss", "openai", "harmony"]),
    ];

    /// The format that a chat template describes to its model.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        let has = |mark: &str| template.contains(mark);
        if has("<|channel|>") {
            Some(Self::Harmony)
        } else if has("<\u{ff5c}tool\u{2581}calls\u{2581}begin\u{ff5c}>") {
            Some(Self::DeepseekV3)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("<function=") && has("<parameter=") {
            Some(Self::Qwen3Xml)
        } else if has("<arg_key>") {
            Some(Self::Glm4)
        } else if has("<tool_call>") {
            Some(Self::Hermes)
        } else if has("<|python_start|>") {
            Some(Self::Pythonic)
        } else if has("<|python_tag|>") || has("\"parameters\": dictionary of argument name") {
            Some(Self::Llama3Json)
        } else {
            None
        }
    }

    /// Texts that must reach the parser, though they may be special tokens.
    pub(crate) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Qwen3Xml | Self::Glm4 => &["<tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::DeepseekV3 => &[deepseek::BEGIN],
            Self::Pythonic => &["<|python_start|>"],
            Self::Harmony => &["<|channel|>"],
        }
    }

    pub(super) fn parser(self, schemas: Schemas) -> Box<dyn Format> {
        match self {
            Self::Hermes => Box::new(json_calls::Hermes::default()),
            Self::Llama3Json => Box::new(json_calls::Bare::default()),
            Self::Mistral => Box::new(mistral::Mistral::default()),
            Self::Qwen3Xml => Box::new(xml::Qwen3::new(schemas)),
            Self::DeepseekV3 => Box::new(deepseek::Deepseek::default()),
            Self::Glm4 => Box::new(xml::Glm4::new(schemas)),
            Self::Pythonic => Box::new(pythonic::Pythonic::default()),
            Self::Harmony => Box::new(harmony::Harmony::default()),
        }
    }
}

impl FromStr for ToolFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(text, Self::NAMES)
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(shown(self, Self::NAMES))
    }
}

/// How a model marks its reasoning; names are vLLM's for `--reasoning-parser`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// Reasons from the start, up to `</think>`
    DeepseekR1,
    /// `<think>…</think>`, or no reasoning
    Qwen3,
    /// `<seed:think>…</seed:think>`, or no reasoning
    SeedOss,
    /// `[THINK]…[/THINK]`
    Mistral,
    /// Messages on channels
    Harmony,
    /// `tags:START,END`: between any two tags, if the model begins so; without START from the start
    Tags {
        /// Before the reasoning; empty: it reasons from the start.
        start: Arc<str>,
        /// Behind it.
        end: Arc<str>,
    },
}

impl ReasoningFormat {
    /// All that have names, with them.
    pub(super) const NAMES: &'static Names<Self> = &[
        (Self::DeepseekR1, &["deepseek_r1", "minimax_m2", "step3"]),
        (Self::Qwen3, &["qwen3", "deepseek_v3", "glm45", "glm47", "mimo", "think"]),
        (Self::SeedOss, &["seed_oss"]),
        (Self::Mistral, &["mistral"]),
        (Self::Harmony, &["gpt_oss", "openai_gptoss", "harmony"]),
    ];

    /// The format that a chat template describes.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        if template.contains("<|channel|>") {
            Some(Self::Harmony)
        } else if template.contains("[THINK]") {
            Some(Self::Mistral)
        } else if template.contains("</seed:think>") {
            Some(Self::SeedOss)
        } else if template.contains("</think>") {
            Some(Self::Qwen3)
        } else {
            None
        }
    }

    /// The marks around reasoning.
    pub(crate) fn tags(&self) -> (&str, &str) {
        match self {
            Self::DeepseekR1 | Self::Qwen3 => ("<think>", "</think>"),
            Self::SeedOss => ("<seed:think>", "</seed:think>"),
            Self::Mistral => ("[THINK]", "[/THINK]"),
            Self::Harmony => ("<|channel|>analysis<|message|>", "<|end|>"),
            Self::Tags { start, end } => (start, end),
        }
    }

    /// Whether a text begins with reasoning even without the start tag.
    pub(crate) fn is_from_the_start(&self) -> bool {
        match self {
            Self::DeepseekR1 => true,
            Self::Tags { start, .. } => start.is_empty(),
            _ => false,
        }
    }
}

impl FromStr for ReasoningFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(tags) = text.strip_prefix("tags:") else {
            return by_name(text, Self::NAMES).map_err(|error| format!("{error}, or tags:START,END"));
        };
        match tags.split(',').collect::<Vec<_>>()[..] {
            [start, end] if !end.trim().is_empty() => {
                Ok(Self::Tags { start: start.trim().into(), end: end.trim().into() })
            }
            _ => Err(format!(
                "`{text}`: expected two tags with one comma between them, such as tags:<think>,</think>; the first may be empty"
            )),
        }
    }
}

impl fmt::Display for ReasoningFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tags { start, end } => write!(f, "tags:{start},{end}"),
            named => f.write_str(shown(named, Self::NAMES)),
        }
    }
}
