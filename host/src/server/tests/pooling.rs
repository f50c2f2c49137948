//! Embeddings, scores and rerankings, over a model whose hidden states are known: (token id, position, 1).

use base64::Engine as _;

use super::*;
use crate::engine::Pooling;
use crate::llm::Matryoshka;

pub(super) fn pooler(pooling: Pooling) -> Pooler {
    Pooler { pooling, normalize: true, matryoshka: Matryoshka::No, width: 3 }
}

async fn server(pooling: Pooling) -> Server {
    Setup { pooler: Some(pooler(pooling)), ..Setup::default() }.start().await
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} instead of {expected:?}");
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

#[tokio::test]
async fn the_last_token_or_the_mean_and_a_length_of_one() {
    for (pooling, expected) in [(Pooling::Last, [99.0, 2.0, 1.0]), (Pooling::Mean, [98.0, 1.0, 1.0])] {
        let server = server(pooling).await;
        let raw = json!({"model": "copy", "input": "abc", "use_activation": false});
        let answer = server.ok("/v1/embeddings", raw).await;
        assert_close(&numbers(&answer["data"][0]["embedding"]), &expected);
        let answer = server.ok("/v1/embeddings", json!({"input": "abc"})).await;
        assert_close(&numbers(&answer["data"][0]["embedding"]), &unit(&expected));
        assert_eq!(answer["object"], "list");
        assert_eq!(answer["data"][0]["object"], "embedding");
        assert_eq!(answer["usage"]["prompt_tokens"], 3);
        assert_eq!(answer["usage"]["total_tokens"], 3);
        assert!(answer["id"].as_str().unwrap().starts_with("embd-"));
        server.idle().await;
    }
}

#[tokio::test]
async fn all_forms_of_input() {
    let server = server(Pooling::Last).await;
    let last = async |input: Value| -> Vec<f64> {
        let body = json!({"input": input, "use_activation": false});
        let answer = server.ok("/v1/embeddings", body).await;
        let data = answer["data"].as_array().unwrap();
        assert!(data.iter().enumerate().all(|(i, item)| item["index"] == i));
        data.iter().map(|item| numbers(&item["embedding"])[0]).collect()
    };
    assert_eq!(last(json!("ab")).await, [98.0]);
    assert_eq!(last(json!(["ab", "c"])).await, [98.0, 99.0]);
    assert_eq!(last(json!([5, 6])).await, [6.0]);
    assert_eq!(last(json!([[5, 6], [7]])).await, [6.0, 7.0]);
    // More than the engine runs or queues at once.
    let many: Vec<Vec<u32>> = (0..200).map(|i| vec![1, i]).collect();
    assert_eq!(last(json!(many)).await, (0..200).map(f64::from).collect::<Vec<_>>());
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "use_activation": false});
    let answer = server.ok("/v1/embeddings", chat).await;
    // The template ends the message with a line feed, and no answer is begun.
    assert_eq!(numbers(&answer["data"][0]["embedding"])[0], 10.0);
}

#[tokio::test]
async fn a_prompt_may_fill_the_context_and_be_cut() {
    let server = Setup { pooler: Some(pooler(Pooling::Mean)), max_model_len: 40, ..Setup::default() }.start().await;
    let position = async |body: Value| -> f64 {
        let answer = server.ok("/v1/embeddings", body).await;
        numbers(&answer["data"][0]["embedding"])[1]
    };
    let whole: Vec<u32> = (0..40).collect();
    assert_eq!(position(json!({"input": whole, "use_activation": false})).await, 19.5);
    let long: Vec<u32> = (0..41).collect();
    let message = server.refused("/v1/embeddings", json!({"input": long}), 400, Some("input[0]")).await;
    assert!(message.contains("40 tokens") && message.contains("has 41"), "{message}");
    let first = async |side: Value| -> f64 {
        let body =
            json!({"input": long, "use_activation": false, "truncate_prompt_tokens": 3, "truncation_side": side});
        numbers(&server.ok("/v1/embeddings", body).await["data"][0]["embedding"])[0]
    };
    assert_eq!(first(Value::Null).await, 1.0, "0, 1, 2: the end is cut off");
    assert_eq!(first(json!("left")).await, 39.0, "38, 39, 40");
    assert_eq!(position(json!({"input": long, "use_activation": false, "truncate_prompt_tokens": -1})).await, 19.5);
}

#[tokio::test]
async fn bytes_in_base64() {
    let server = server(Pooling::Last).await;
    let bytes = async |more: Value| -> Vec<u8> {
        let mut body = json!({"input": [5, 6], "use_activation": false, "encoding_format": "base64"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.ok("/v1/embeddings", body).await;
        let text = answer["data"][0]["embedding"].as_str().unwrap().to_owned();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    };
    let floats = |numbers: [f32; 3]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(bytes(json!({})).await, floats([6.0, 1.0, 1.0]));
    assert_eq!(bytes(json!({"embed_dtype": "float16", "endianness": "big"})).await, [0x46, 0, 0x3c, 0, 0x3c, 0]);
}

#[tokio::test]
async fn dimensions_of_matryoshka_models() {
    let matryoshka = Pooler { matryoshka: Matryoshka::Lengths(vec![2]), ..pooler(Pooling::Last) };
    let server = Setup { pooler: Some(matryoshka), ..Setup::default() }.start().await;
    let answer = server.ok("/v1/embeddings", json!({"input": [3, 4], "dimensions": 2})).await;
    assert_close(&numbers(&answer["data"][0]["embedding"]), &unit(&[4.0, 1.0]));
    server.refused("/v1/embeddings", json!({"input": [3], "dimensions": 1}), 400, Some("dimensions")).await;
    let server = super::pooling::server(Pooling::Last).await;
    let message =
        server.refused("/v1/embeddings", json!({"input": [3], "dimensions": 2}), 400, Some("dimensions")).await;
    assert!(message.contains("3 numbers") && message.contains("matryoshka"), "{message}");
}

#[tokio::test]
async fn scores_are_cosines() {
    let server = server(Pooling::Last).await;
    // Last states: a (97, 0, 1), ab (98, 1, 1), abc (99, 2, 1).
    let cosine = |a: [f64; 3], b: [f64; 3]| unit(&a).iter().zip(unit(&b)).map(|(x, y)| x * y).sum::<f64>();
    let (a, ab, abc) = ([97.0, 0.0, 1.0], [98.0, 1.0, 1.0], [99.0, 2.0, 1.0]);
    let scores = |answer: &Value| -> Vec<f64> {
        answer["data"].as_array().unwrap().iter().map(|item| item["score"].as_f64().unwrap()).collect()
    };
    for path in ["/v1/score", "/score"] {
        let answer = server.ok(path, json!({"model": "copy", "queries": "a", "documents": ["ab", "abc"]})).await;
        assert_close(&scores(&answer), &[cosine(a, ab), cosine(a, abc)]);
        assert_eq!(answer["usage"]["prompt_tokens"], 6);
        assert_eq!(answer["data"][1]["object"], "score");
    }
    let answer = server.ok("/v1/score", json!({"text_1": ["a", "ab"], "text_2": ["ab", "abc"]})).await;
    assert_close(&scores(&answer), &[cosine(a, ab), cosine(ab, abc)]);
    let refused = async |body: Value, param: Option<&str>| server.refused("/v1/score", body, 400, param).await;
    refused(json!({"queries": ["a", "b"], "documents": ["a", "b", "c"]}), Some("queries")).await;
    refused(json!({"queries": "a", "documents": []}), Some("documents")).await;
    refused(json!({"queries": "a"}), None).await;
    refused(json!({"queries": "a", "text_2": "b"}), Some("text_2")).await;
    refused(json!({"queries": "a", "documents": "b", "items": "c"}), Some("items")).await;
    refused(json!({"queries": "a", "documents": "b", "use_activation": false}), Some("use_activation")).await;
}

#[tokio::test]
async fn rerankings_are_in_order() {
    let server = server(Pooling::Last).await;
    for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
        let body = json!({"model": "copy", "query": "a", "documents": ["abc", "a", "ab"], "top_n": 2});
        let answer = server.ok(path, body).await;
        let results = answer["results"].as_array().unwrap();
        let order: Vec<u64> = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
        assert_eq!(order, [1, 2]);
        assert_eq!(results[1]["document"]["text"], "ab");
        assert!((results[0]["relevance_score"].as_f64().unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(answer["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
    }
    let all = server.ok("/rerank", json!({"query": "a", "documents": ["b", "c"], "top_n": 0})).await;
    assert_eq!(all["results"].as_array().unwrap().len(), 2);
    let refused = async |body: Value, param: &str| server.refused("/rerank", body, 400, Some(param)).await;
    refused(json!({"query": "a", "documents": []}), "documents").await;
    refused(json!({"query": "a", "documents": ["b"], "top_n": -1}), "top_n").await;
    refused(json!({"query": "a", "documents": ["b"], "return_documents": false}), "return_documents").await;
    refused(json!({"query": "a", "documents": [""]}), "documents[0]").await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let server = server(Pooling::Last).await;
    let refused = async |body: Value, param: Option<&str>| server.refused("/v1/embeddings", body, 400, param).await;
    refused(json!({}), Some("input")).await;
    refused(json!({"input": []}), Some("input")).await;
    refused(json!({"input": ""}), Some("input[0]")).await;
    refused(json!({"input": [[1], []]}), Some("input[1]")).await;
    refused(json!({"input": [999]}), Some("input[0][0]")).await;
    refused(json!({"input": "a", "messages": []}), None).await;
    refused(json!({"input": "a", "chat_template": "x"}), Some("chat_template")).await;
    refused(json!({"input": "a", "encoding_format": "bytes"}), Some("encoding_format")).await;
    refused(json!({"input": "a", "embed_dtype": "float16"}), Some("embed_dtype")).await;
    refused(json!({"input": "a", "encoding_format": "base64", "embed_dtype": "fp8_e4m3"}), Some("embed_dtype")).await;
    let message = refused(json!({"input": "a", "normalize": true}), Some("normalize")).await;
    assert!(message.contains("use_activation"), "{message}");
    refused(json!({"input": "a", "truncate_prompt_tokens": 0}), Some("truncate_prompt_tokens")).await;
    refused(json!({"input": "a", "priority": 1u64 << 40}), Some("priority")).await;
    server.refused("/v1/embeddings", json!({"model": "other", "input": "a"}), 404, Some("model")).await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/completions/render", json!({"prompt": "a"})),
        ("/v1/chat/completions", chat.clone()),
        ("/v1/responses", json!({"input": "a"})),
        ("/v1/messages", json!({"max_tokens": 1, "messages": chat["messages"]})),
    ] {
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, 400, "{path}");
        assert!(reply.text().contains("--runner generate"), "{path}: {}", reply.text());
    }
    assert_eq!(server.ok("/tokenize", json!({"prompt": "ab"})).await["count"], 2);
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["host"]["runner"], "pooling");
}

#[tokio::test]
async fn models_that_generate_say_which_flag_serves_vectors() {
    let server = Server::start().await;
    for (path, body) in [
        ("/v1/embeddings", json!({"input": "a"})),
        ("/v1/score", json!({"queries": "a", "documents": "b"})),
        ("/rerank", json!({"query": "a", "documents": ["b"]})),
    ] {
        let message = server.refused(path, body, 400, None).await;
        assert!(message.contains("--runner pooling"), "{path}: {message}");
    }
}
