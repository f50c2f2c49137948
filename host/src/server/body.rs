//! From bytes on the wire to a raw protocol type: size limit, content type, UTF-8, JSON, and then serde with
//! the path of whatever is wrong. Fields are checked by name first (see [`super::protocol::fields`]), so that a
//! misspelt field is never ignored. It knows nothing of what the fields mean. Called by the handlers.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::protocol::fields::{self, RawRequest};

/// How much of a body that is too large we read and throw away, so that its sender gets to see our answer
/// instead of a reset connection.
const DISCARD_LIMIT: usize = 64 << 20;

/// Reads and parses a request of type `T`; also gives the body's size.
pub(crate) async fn read<T: RawRequest>(
    request: Request<Body>,
    limit: usize,
    timeout: Duration,
) -> Result<(T, usize), ApiError> {
    check_content_type(request.headers())?;
    let bytes = tokio::time::timeout(timeout, collect(request, limit)).await.map_err(|_| {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request body did not arrive within {} s; send it faster", timeout.as_secs()),
        )
    })??;
    Ok((parse(&bytes)?, bytes.len()))
}

/// Parses a request of type `T`, naming the field at fault where there is one.
pub(crate) fn parse<T: RawRequest>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        ApiError::bad_request(format!(
            "the request body is not valid UTF-8 (at byte {}); send JSON encoded as UTF-8",
            e.valid_up_to()
        ))
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let object: Map<String, Value> = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        if inner.is_data() {
            return ApiError::bad_request("the request body must be a JSON object, such as {\"prompt\": \"Hello\"}");
        }
        let message = format!("the request body is not valid JSON: {inner}");
        ApiError { param: (path != ".").then_some(path), ..ApiError::bad_request(message) }
    })?;
    reader.end().map_err(|e| ApiError::bad_request(format!("the request body is not valid JSON: {e}")))?;
    fields::check::<T>(&object)?;
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|e| {
        let path = e.path().to_string();
        let message = e.into_inner().to_string();
        if path == "." { ApiError::bad_request(message) } else { ApiError::field(path, message) }
    })
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let media_type = given.split(';').next().unwrap_or("").trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let shown = if given.is_empty() { "none" } else { given };
        let message = format!("the request's Content-Type is {shown}; send Content-Type: application/json");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    match headers.get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("?")) {
        None | Some("identity") => Ok(()),
        Some(encoding) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("Content-Encoding {encoding} is not supported; send the body uncompressed"),
        )),
    }
}

async fn collect(request: Request<Body>, limit: usize) -> Result<Vec<u8>, ApiError> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok());
    let waits = request.headers().contains_key(header::EXPECT);
    let mut stream = request.into_body().into_data_stream();
    let mut bytes = Vec::new();
    if announced.is_none_or(|length| length <= limit) {
        bytes.reserve(announced.unwrap_or(0).min(limit));
        let mut over = false;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| ApiError::bad_request(format!("the request body broke off: {e}")))?;
            if bytes.len() + chunk.len() > limit {
                over = true;
                break;
            }
            bytes.extend_from_slice(&chunk);
        }
        if !over {
            return Ok(bytes);
        }
    }
    drop(bytes);
    // A sender that waits for "100 Continue" has sent nothing yet and will not.
    if !waits {
        let mut discarded = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            discarded += chunk.len();
            if discarded > DISCARD_LIMIT {
                break;
            }
        }
    }
    let given = announced.map_or_else(|| format!("more than {limit}"), |length| length.to_string());
    Err(ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!(
            "the request body has {given} bytes, the limit is {limit}; send less, or raise the server's --max-body-size"
        ),
    ))
}
