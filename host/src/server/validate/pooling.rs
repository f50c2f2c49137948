//! Requests for vectors: texts to token ids, and how the vectors are to look. Called by the handlers of embeddings,
//! scores and rerankings.

use super::chat::Template;
use super::sampling::{self, Truncation};
use crate::llm::Pooler;
use crate::server::error::ApiError;
use crate::server::protocol::common::{Int, OneOrMany};
use crate::server::protocol::completion::RawPrompt;
use crate::server::protocol::pooling::{EmbeddingRequest, RerankRequest, ScoreRequest};
use crate::server::state::AppState;

/// Prompts to be pooled, in range.
pub(crate) struct Inputs {
    /// The name to answer with.
    pub(crate) model: String,
    /// Token ids, none of them empty.
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) priority: i32,
    pub(crate) request_id: Option<String>,
}

/// How vectors are to look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) dimensions: Option<usize>,
    pub(crate) normalize: Option<bool>,
    /// None: as a list of numbers.
    pub(crate) bytes: Option<Bytes>,
}

/// How a vector's bytes are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) element: Element,
    pub(crate) big_endian: bool,
}

/// The type of a number in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Float32,
    Float16,
    Bfloat16,
}

/// The model's pooler, if it is served for that.
pub(crate) fn pooler(state: &AppState) -> Result<&Pooler, ApiError> {
    state.llm.info().pooler.as_ref().ok_or_else(|| {
        let message = "this model is served for generation, not for embeddings, scores or reranking; serve it with \
                       --runner pooling for these";
        ApiError::bad_request(message)
    })
}

/// The opposite: what generates needs a model that does.
pub(crate) fn generates(state: &AppState) -> Result<(), ApiError> {
    match state.llm.info().pooler {
        None => Ok(()),
        Some(_) => Err(ApiError::bad_request(
            "this model is served for embeddings, scores and reranking, and generates nothing; serve it with \
             --runner generate for that",
        )),
    }
}

/// Checks an embedding request.
pub(crate) fn embedding(state: &AppState, raw: EmbeddingRequest) -> Result<(Inputs, Shape), ApiError> {
    let model = super::model(state, raw.model.as_deref())?;
    let pooler = pooler(state)?;
    let shape = shape(pooler, &raw)?;
    let truncation = truncation(state, raw.truncate_prompt_tokens, raw.truncation_side.as_deref())?;
    let priority = sampling::priority_of(raw.priority)?;
    let prompts = match (raw.input, raw.messages) {
        (Some(input), None) => {
            let chat_only = [
                ("add_generation_prompt", raw.add_generation_prompt.is_some()),
                ("continue_final_message", raw.continue_final_message.is_some()),
                ("chat_template", raw.chat_template.is_some()),
                ("chat_template_kwargs", raw.chat_template_kwargs.is_some()),
            ];
            if let Some((name, _)) = chat_only.into_iter().find(|(_, given)| *given) {
                return Err(ApiError::field(name, "goes with messages, not with input; leave it out"));
            }
            let special = raw.add_special_tokens.unwrap_or(true);
            tokens(state, "input", input.0, special, truncation)?
        }
        (None, Some(messages)) => {
            let template = Template {
                add_generation_prompt: Some(raw.add_generation_prompt.unwrap_or(false)),
                continue_final_message: raw.continue_final_message.unwrap_or(false),
                chat_template: raw.chat_template,
                kwargs: raw.chat_template_kwargs.unwrap_or_default(),
                documents: None,
                tools: None,
            };
            let text = template.render(state, messages)?.text;
            let special = raw.add_special_tokens.unwrap_or(false);
            tokens(state, "messages", vec![RawPrompt::Text(text)], special, truncation)?
        }
        (Some(_), Some(_)) => return Err(ApiError::bad_request("send either input or messages, not both")),
        (None, None) => {
            return Err(ApiError::field("input", "is missing; send a text, token ids, or a list of either"));
        }
    };
    Ok((Inputs { model, prompts, priority, request_id: raw.request_id }, shape))
}

fn shape(pooler: &Pooler, raw: &EmbeddingRequest) -> Result<Shape, ApiError> {
    let dimensions = raw.dimensions.map(|value| sampling::count("dimensions", value)).transpose()?;
    if let Some(dimensions) = dimensions {
        pooler.check_dimensions(dimensions).map_err(|message| ApiError::field("dimensions", message))?;
    }
    let element = match raw.embed_dtype.as_deref() {
        None | Some("float32") => Element::Float32,
        Some("float16") => Element::Float16,
        Some("bfloat16") => Element::Bfloat16,
        Some(other) => return Err(one_of("embed_dtype", "\"float32\", \"float16\" or \"bfloat16\"", other)),
    };
    let big_endian = match raw.endianness.as_deref() {
        None | Some("native") => cfg!(target_endian = "big"),
        Some("little") => false,
        Some("big") => true,
        Some(other) => return Err(one_of("endianness", "\"native\", \"little\" or \"big\"", other)),
    };
    let bytes = match raw.encoding_format.as_deref() {
        None | Some("float") => None,
        Some("base64") => Some(Bytes { element, big_endian }),
        Some(other) => return Err(one_of("encoding_format", "\"float\" or \"base64\"", other)),
    };
    // vLLM ignores them there.
    let given = [("embed_dtype", raw.embed_dtype.is_some()), ("endianness", raw.endianness.is_some())];
    if let (None, Some((name, _))) = (bytes, given.into_iter().find(|(_, given)| *given)) {
        return Err(ApiError::field(name, "goes with encoding_format \"base64\" only; numbers in JSON have no bytes"));
    }
    Ok(Shape { dimensions, normalize: raw.use_activation, bytes })
}

fn one_of(field: &str, expected: &str, got: &str) -> ApiError {
    let shown: String = got.chars().take(40).collect();
    ApiError::field(field, format!("expected {expected}, got {shown:?}"))
}

/// Texts of a score request: those asked about first, `first` of them, then what they are compared with.
pub(crate) struct Pairs {
    pub(crate) inputs: Inputs,
    /// Indices into the prompts.
    pub(crate) pairs: Vec<(usize, usize)>,
}

/// Checks a score request.
pub(crate) fn score(state: &AppState, raw: ScoreRequest) -> Result<Pairs, ApiError> {
    let model = super::model(state, raw.model.as_deref())?;
    pooler(state)?;
    let ScoreRequest { queries, documents, items, text_1, text_2, data_1, data_2, .. } = raw;
    let queries = [("queries", queries), ("text_1", text_1), ("data_1", data_1)];
    let others = [("documents", documents), ("items", items), ("text_2", text_2), ("data_2", data_2)];
    let one = |given: &mut dyn Iterator<Item = (&'static str, Option<OneOrMany>)>, names: &str| {
        let mut given = given.filter_map(|(name, texts)| Some((name, texts?.0)));
        match (given.next(), given.next()) {
            (Some(one), None) => Ok(one),
            (Some((a, _)), Some((b, _))) => Err(ApiError::field(b, format!("is the same as {a}; leave one out"))),
            (None, _) => Err(ApiError::bad_request(format!("{names} is missing; it is a text or a list of texts"))),
        }
    };
    let (first, left) = one(&mut queries.into_iter(), "queries (or text_1, data_1)")?;
    let (second, right) = one(&mut others.into_iter(), "documents (or items, text_2, data_2)")?;
    let partners: &[&str] = match first {
        "queries" => &["documents", "items"],
        "text_1" => &["text_2"],
        _ => &["data_2"],
    };
    if !partners.contains(&second) {
        return Err(ApiError::field(second, format!("{first} goes with {}", partners.join(" or "))));
    }
    let (rows, columns) = (left.len(), right.len());
    if rows == 0 || columns == 0 {
        return Err(ApiError::field(
            if rows == 0 { first } else { second },
            "is empty; it must have at least one text",
        ));
    }
    if rows != 1 && rows != columns {
        let message = format!("{first} has {rows} texts and {second} {columns}; send one of the former, or as many");
        return Err(ApiError::field(first, message));
    }
    let truncation = truncation(state, raw.truncate_prompt_tokens, raw.truncation_side.as_deref())?;
    let priority = sampling::priority_of(raw.priority)?;
    check_count(state, first, rows + columns)?;
    let mut prompts = tokens(state, first, texts(left), true, truncation)?;
    prompts.extend(tokens(state, second, texts(right), true, truncation)?);
    let pairs = (0..columns).map(|i| (if rows == 1 { 0 } else { i }, rows + i)).collect();
    Ok(Pairs { inputs: Inputs { model, prompts, priority, request_id: raw.request_id }, pairs })
}

/// A reranking request in range.
pub(crate) struct Rerank {
    /// The query, then the documents.
    pub(crate) inputs: Inputs,
    pub(crate) documents: Vec<String>,
    /// How many are wanted.
    pub(crate) top: usize,
}

/// Checks a reranking request.
pub(crate) fn rerank(state: &AppState, raw: RerankRequest) -> Result<Rerank, ApiError> {
    let model = super::model(state, raw.model.as_deref())?;
    pooler(state)?;
    let documents = raw.documents.0;
    if documents.is_empty() {
        return Err(ApiError::field("documents", "is empty; it must have at least one text"));
    }
    let top = match raw.top_n.map(|value| sampling::count("top_n", value)).transpose()? {
        None | Some(0) => documents.len(),
        Some(top) => top.min(documents.len()),
    };
    let truncation = truncation(state, raw.truncate_prompt_tokens, raw.truncation_side.as_deref())?;
    let priority = sampling::priority_of(raw.priority)?;
    check_count(state, "documents", documents.len() + 1)?;
    let mut prompts = tokens(state, "query", vec![RawPrompt::Text(raw.query)], true, truncation)?;
    prompts.extend(tokens(state, "documents", texts(documents.clone()), true, truncation)?);
    Ok(Rerank { inputs: Inputs { model, prompts, priority, request_id: raw.request_id }, documents, top })
}

fn texts(texts: Vec<String>) -> Vec<RawPrompt> {
    texts.into_iter().map(RawPrompt::Text).collect()
}

/// The longest prompt is the whole context: nothing comes after it. The end is cut off, as tokenizers do.
fn truncation(state: &AppState, keep: Option<Int>, side: Option<&str>) -> Result<Option<Truncation>, ApiError> {
    let limit = state.llm.info().max_model_len;
    Truncation::of(keep, side.or(Some("right")), limit, limit)
}

fn check_count(state: &AppState, field: &str, count: usize) -> Result<(), ApiError> {
    let limit = state.config.max_choices;
    if count <= limit {
        return Ok(());
    }
    let message =
        format!("the request has {count} texts, the limit is {limit}; send several requests, or raise --max-choices");
    Err(ApiError::field(field, message))
}

/// Token ids of all prompts.
fn tokens(
    state: &AppState,
    field: &str,
    prompts: Vec<RawPrompt>,
    add_special_tokens: bool,
    truncation: Option<Truncation>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    if prompts.is_empty() {
        return Err(ApiError::field(field, "is empty; send a text, token ids, or a list of either"));
    }
    check_count(state, field, prompts.len())?;
    let limit = state.llm.info().max_model_len;
    let one = |(i, prompt): (usize, RawPrompt)| {
        let field = if field == "messages" { field.to_owned() } else { format!("{field}[{i}]") };
        let mut tokens = match prompt {
            RawPrompt::Text(text) => super::tokenizer(state, "a text")?
                .encode(&text, add_special_tokens)
                .map_err(|e| ApiError::field(&*field, e.to_string()))?,
            RawPrompt::Tokens(tokens) => {
                super::token_ids(&field, &tokens, state.llm.info().input_vocab_size)?;
                tokens
            }
        };
        if let Some(truncation) = truncation {
            truncation.apply(&mut tokens);
        }
        if tokens.is_empty() {
            return Err(ApiError::field(field, "has no tokens; it must have at least one"));
        }
        if tokens.len() > limit {
            let message = format!(
                "This model's maximum context length is {limit} tokens, and {field} has {}. Shorten it, or set \
                 truncate_prompt_tokens",
                tokens.len()
            );
            return Err(ApiError { param: Some(field), ..ApiError::bad_request(message) });
        }
        Ok(tokens)
    };
    prompts.into_iter().enumerate().map(one).collect()
}
