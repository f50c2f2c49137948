//! `POST /v1/embeddings`, `/v1/score` and `/v1/rerank`, and the paths without `/v1` that vLLM has too: prompts go to the
//! engine a few at a time, vectors come back, and are encoded or compared. Scores are cosines, as vLLM's for models of this
//! kind. Needs a model that is served with `--runner pooling`; others are refused.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::response::Response;
use base64::Engine as _;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use half::{bf16, f16};

use super::body;
use super::error::{ApiError, json};
use super::metrics::Tracker;
use super::middleware::RequestId;
use super::protocol::common::Usage;
use super::protocol::fields::RawRequest;
use super::protocol::pooling::{
    EmbeddingData, EmbeddingRequest, Encoded, ListAnswer, RerankAnswer, RerankDocument, RerankRequest, RerankResult,
    RerankUsage, ScoreData, ScoreRequest,
};
use super::run::from_llm;
use super::state::{AppState, Phase};
use super::traces::Origin;
use super::validate::pooling::{Bytes, Element, Inputs, Pairs, Rerank, Shape, embedding, rerank, score};
use super::validate::{self, pooling};
use crate::engine::{FinishReason, SubmitError};
use crate::llm::{Finish, LlmError, Pooled, Pooler, cosine};

/// `POST /v1/embeddings`.
pub(crate) async fn embeddings(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let (inputs, shape) = checked::<EmbeddingRequest, _>(&state, request, embedding).await?;
    let id = validate::request_id(&caller, inputs.request_id.clone())?;
    let origin = Origin::new(arrival, format!("embd-{id}"), &caller);
    let pooled = pool(&state, &inputs, origin).await?;
    let usage = usage(&pooled);
    let pooler = pooling::pooler(&state)?;
    let data = pooled.into_iter().enumerate().map(|(index, pooled)| EmbeddingData {
        index,
        object: "embedding",
        embedding: encoded(pooler, pooled.vector, shape),
    });
    let (id, data) = (format!("embd-{id}"), data.collect());
    Ok(json(&ListAnswer { id, object: "list", created: now(), model: &inputs.model, data, usage }))
}

/// `POST /v1/score`.
pub(crate) async fn scores(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Pairs { inputs, pairs } = checked::<ScoreRequest, _>(&state, request, score).await?;
    let id = validate::request_id(&caller, inputs.request_id.clone())?;
    let origin = Origin::new(arrival, format!("score-{id}"), &caller);
    let pooled = pool(&state, &inputs, origin).await?;
    let data = pairs.iter().enumerate().map(|(index, &(a, b))| ScoreData {
        index,
        object: "score",
        score: cosine(&pooled[a].vector, &pooled[b].vector),
    });
    let (id, data, usage) = (format!("score-{id}"), data.collect(), usage(&pooled));
    Ok(json(&ListAnswer { id, object: "list", created: now(), model: &inputs.model, data, usage }))
}

/// `POST /v1/rerank`.
pub(crate) async fn reranking(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Rerank { inputs, documents, top } = checked::<RerankRequest, _>(&state, request, rerank).await?;
    let id = validate::request_id(&caller, inputs.request_id.clone())?;
    let origin = Origin::new(arrival, format!("rerank-{id}"), &caller);
    let pooled = pool(&state, &inputs, origin).await?;
    let Usage { prompt_tokens, total_tokens, .. } = usage(&pooled);
    let result = |(index, text)| RerankResult {
        index,
        document: RerankDocument { text },
        relevance_score: cosine(&pooled[0].vector, &pooled[index + 1].vector),
    };
    let mut results: Vec<RerankResult> = documents.into_iter().enumerate().map(result).collect();
    // Stable: equals stay in the order of the request.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(top);
    let usage = RerankUsage { prompt_tokens, total_tokens };
    Ok(json(&RerankAnswer { id: format!("rerank-{id}"), model: &inputs.model, usage, results }))
}

/// Reads a request, and checks it where that holds no other up.
async fn checked<T: RawRequest + Send + 'static, W: Send + 'static>(
    state: &Arc<AppState>,
    request: Request<Body>,
    check: fn(&AppState, T) -> Result<W, ApiError>,
) -> Result<W, ApiError> {
    let (raw, size) = body::read::<T>(request, state.config.max_body_size, state.config.read_timeout).await?;
    let shared = state.clone();
    validate::off_loop(size, move || check(&shared, raw)).await
}

/// Pools all prompts, as many at a time as keep the engine busy. The queue's limit decides about the first; the others
/// of a request that has begun wait for their turn.
async fn pool(state: &Arc<AppState>, inputs: &Inputs, origin: Origin) -> Result<Vec<Pooled>, ApiError> {
    if state.phase() != Phase::Serving {
        return Err(ApiError::unavailable("the server is shutting down and takes no more requests"));
    }
    let origin = origin.with(None);
    let _load = state.load.enter();
    let mut aborted = Box::pin(state.aborted());
    let at_once = 2 * state.llm.engine().config().max_num_seqs;
    let mut trackers: Vec<Tracker> = Vec::with_capacity(inputs.prompts.len());
    let mut done: Vec<Option<Pooled>> = vec![None; inputs.prompts.len()];
    let mut running = FuturesUnordered::new();
    while trackers.len() < done.len() || !running.is_empty() {
        let mut full = false;
        while !full && running.len() < at_once && trackers.len() < done.len() {
            let index = trackers.len();
            match state.llm.submit_embedding(inputs.prompts[index].clone(), inputs.priority, origin.arrival) {
                Ok(embedding) => {
                    trackers.push(Tracker::new(state, &origin));
                    running.push(async move { (index, embedding.finish().await) });
                }
                Err(LlmError::Submit(SubmitError::QueueFull { .. } | SubmitError::TokensQueued { .. }))
                    if index > 0 =>
                {
                    full = true;
                }
                Err(error) => {
                    if let LlmError::Submit(error) = &error {
                        state.metrics.rejected(error);
                    }
                    return Err(from_llm(error));
                }
            }
        }
        let next = async {
            // Others' requests fill the queue, and none of ours will make room.
            if running.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                return None;
            }
            running.next().await
        };
        let (index, result) = tokio::select! {
            biased;
            next = next => match next { Some(next) => next, None => continue },
            () = &mut aborted => {
                return Err(ApiError::unavailable("the server is shutting down and ended this request"));
            }
        };
        match result {
            Ok(pooled) => {
                trackers[index].finish(&finish(&pooled));
                done[index] = Some(pooled);
            }
            Err(error) => {
                trackers[index].fail();
                return Err(from_llm(error));
            }
        }
    }
    Ok(done.into_iter().flatten().collect())
}

/// What the metrics want to know.
fn finish(pooled: &Pooled) -> Finish {
    Finish {
        reason: FinishReason::Stop,
        stop_reason: None,
        prompt_tokens: pooled.prompt_tokens,
        completion_tokens: 0,
        cached_tokens: pooled.cached_tokens,
        timings: pooled.timings,
    }
}

fn usage(pooled: &[Pooled]) -> Usage {
    let sum = |count: fn(&Pooled) -> usize| pooled.iter().map(count).sum();
    Usage::new(sum(|pooled| pooled.prompt_tokens), 0, sum(|pooled| pooled.cached_tokens))
}

fn encoded(pooler: &Pooler, vector: Vec<f32>, shape: Shape) -> Encoded {
    let vector = pooler.shape(vector, shape.dimensions, shape.normalize);
    match shape.bytes {
        None => Encoded::Numbers(vector),
        Some(bytes) => Encoded::Base64(base64::engine::general_purpose::STANDARD.encode(laid_out(&vector, bytes))),
    }
}

fn laid_out(vector: &[f32], Bytes { element, big_endian }: Bytes) -> Vec<u8> {
    let each = |x: &f32| -> Vec<u8> {
        let mut bytes = match element {
            Element::Float32 => x.to_le_bytes().to_vec(),
            Element::Float16 => f16::from_f32(*x).to_le_bytes().to_vec(),
            Element::Bfloat16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        };
        if big_endian {
            bytes.reverse();
        }
        bytes
    };
    vector.iter().flat_map(each).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_vectors() {
        let bytes = |element, big_endian| laid_out(&[1.0, -2.0], Bytes { element, big_endian });
        assert_eq!(bytes(Element::Float32, false), [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(bytes(Element::Float32, true), [0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0]);
        assert_eq!(bytes(Element::Float16, false), [0, 0x3c, 0, 0xc0]);
        assert_eq!(bytes(Element::Bfloat16, true), [0x3f, 0x80, 0xc0, 0]);
    }
}
