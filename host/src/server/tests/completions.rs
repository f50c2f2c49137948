//! `/v1/completions`: shapes, streams that say the same as whole answers, prompts in every form, logprobs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{EOS, Server, Setup, VOCAB};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let server = Server::start().await;
    let reply = server.post(PATH, json!({"model": "copy", "prompt": "San", "max_tokens": 7, "temperature": 0})).await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let id = reply.header("x-request-id").unwrap().to_owned();
    let body = reply.json();
    assert_eq!(body["id"], format!("cmpl-{id}"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["model"], "copy");
    assert!(body["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = json!({"index": 0, "text": "San", "logprobs": null, "finish_reason": "stop", "stop_reason": null});
    assert_eq!(body["choices"], json!([choice]));
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(body["usage"], usage);
}

#[tokio::test]
async fn prompts_in_all_forms() {
    let server = Server::start().await;
    let texts = async |prompt: Value, n: u32| {
        let body = json!({"prompt": prompt, "temperature": 0, "n": n, "max_tokens": 50});
        let answer = server.ok(PATH, body).await;
        let choices = answer["choices"].as_array().unwrap().clone();
        for (i, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], i);
        }
        choices.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(texts(json!("one"), 1).await, ["one"]);
    assert_eq!(texts(json!(["one", "two"]), 2).await, ["one", "one", "two", "two"]);
    assert_eq!(texts(json!([72, 105]), 1).await, ["Hi"]);
    assert_eq!(texts(json!([[72, 105], [72.0, 111]]), 1).await, ["Hi", "Ho"]);
}

/// What the chunks of a stream add up to: text, finish reason and stop reason of each choice.
fn added_up(events: &[Value], n: usize) -> Vec<(String, Value, Value)> {
    let mut choices = vec![(String::new(), Value::Null, Value::Null); n];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let (text, finish, stop) = &mut choices[choice["index"].as_u64().unwrap() as usize];
        assert!(finish.is_null(), "a chunk after the end: {choice}");
        text.push_str(choice["text"].as_str().unwrap());
        (*finish, *stop) = (choice["finish_reason"].clone(), choice["stop_reason"].clone());
    }
    choices
}

#[tokio::test]
async fn streams_say_what_whole_answers_say() {
    let server = Server::start().await;
    let cases = [
        json!({"prompt": "héllo 🙂 wörld", "max_tokens": 100}),
        json!({"prompt": "abcdefgh", "max_tokens": 5}),
        json!({"prompt": ["abc", "🙂🙂"], "n": 2, "max_tokens": 9, "temperature": 1.5, "seed": 11}),
        json!({"prompt": "one two three", "max_tokens": 100, "stop": ["wo t", "zzz"]}),
        json!({"prompt": "one two three", "max_tokens": 100, "stop": "two", "include_stop_str_in_output": true}),
        json!({"prompt": "one", "max_tokens": 100, "stop_token_ids": [110]}),
        json!({"prompt": "echo", "max_tokens": 3, "echo": true}),
        json!({"prompt": "ignore", "max_tokens": 20, "ignore_eos": true, "temperature": 0}),
    ];
    for mut case in cases {
        if case.get("temperature").is_none() {
            case["temperature"] = json!(0);
        }
        let whole = server.ok(PATH, case.clone()).await;
        case["stream"] = json!(true);
        case["stream_options"] = json!({"include_usage": true});
        let mut events = server.events(PATH, case.clone()).await;
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(last["usage"][count], whole["usage"][count], "{case}");
        }
        let choices = whole["choices"].as_array().unwrap();
        let got = added_up(&events, choices.len());
        for (choice, (text, finish, stop)) in choices.iter().zip(got) {
            assert_eq!(
                (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]),
                (&json!(text), &finish, &stop)
            );
        }
    }
}

#[tokio::test]
async fn streams_never_cut_characters() {
    let setup = Setup { delay: Duration::from_millis(2), ..Setup::default() };
    let server = setup.start().await;
    // Six bytes: the second character is cut off by max_tokens.
    let events =
        server.events(PATH, json!({"prompt": "🙂🙂", "max_tokens": 6, "temperature": 0, "stream": true})).await;
    let texts: Vec<&str> = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts.first(), Some(&"🙂"));
    assert!(texts.concat().trim_end_matches('\u{fffd}') == "🙂", "{texts:?}");
    // With the token ids asked for, every token is reported, text or not.
    let body = json!({"prompt": "🙂", "max_tokens": 9, "temperature": 0, "stream": true, "return_token_ids": true});
    let events = server.events(PATH, body).await;
    let ids: Vec<u64> = events
        .iter()
        .flat_map(|e| e["choices"][0]["token_ids"].as_array().unwrap())
        .map(|id| id.as_u64().unwrap())
        .collect();
    let bytes: Vec<u64> = "🙂".bytes().map(u64::from).chain([u64::from(EOS)]).collect();
    assert_eq!(ids, bytes);
    assert_eq!(events[0]["choices"][0]["prompt_token_ids"], json!(bytes[..4]));
    assert!(events[1..].iter().all(|e| e["choices"][0].get("prompt_token_ids").is_none()));
}

#[tokio::test]
async fn stop_reasons_tell_what_stopped_it() {
    let server = Server::start().await;
    let choice = async |extra: Value| {
        let mut body = json!({"prompt": "abcdef", "temperature": 0, "max_tokens": 50});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.ok(PATH, body).await["choices"][0].clone()
    };
    let by_text = choice(json!({"stop": "de"})).await;
    assert_eq!((&by_text["text"], &by_text["stop_reason"]), (&json!("abc"), &json!("de")));
    let by_token = choice(json!({"stop_token_ids": [100]})).await;
    assert_eq!((&by_token["text"], &by_token["stop_reason"]), (&json!("abc"), &json!(100)));
    assert_eq!(by_token["finish_reason"], "stop");
    let by_length = choice(json!({"max_tokens": 2})).await;
    assert_eq!((&by_length["finish_reason"], &by_length["stop_reason"]), (&json!("length"), &Value::Null));
}

#[tokio::test]
async fn logprobs_in_parallel_lists() {
    let server = Server::start().await;
    let body = json!({"prompt": "abc", "temperature": 0, "max_tokens": 2, "logprobs": 2});
    let lists = server.ok(PATH, body.clone()).await["choices"][0]["logprobs"].clone();
    assert_eq!(lists["tokens"], json!(["a", "b"]));
    assert_eq!(lists["text_offset"], json!([0, 1]));
    let top = lists["top_logprobs"][0].as_object().unwrap();
    assert_eq!((top.len(), top.keys().next().unwrap().as_str()), (2, "a"));
    assert_eq!(top["a"], lists["token_logprobs"][0]);
    assert!(lists["token_logprobs"][0].as_f64().unwrap() < 0.0);

    // The same, named by id, and in a stream.
    let mut streamed = body;
    streamed["stream"] = json!(true);
    streamed["return_tokens_as_token_ids"] = json!(true);
    let events = server.events(PATH, streamed).await;
    let all = |name: &str| -> Vec<Value> {
        let lists = events.iter().map(|e| &e["choices"][0]["logprobs"]).filter(|l| !l.is_null());
        lists.flat_map(|l| l[name].as_array().unwrap().clone()).collect()
    };
    assert_eq!(all("tokens"), [json!("token_id:97"), json!("token_id:98")]);
    assert_eq!(json!(all("token_logprobs")), lists["token_logprobs"]);
}

#[tokio::test]
async fn echo_with_logprobs_as_lm_eval_asks() {
    let server = Server::start().await;
    for max_tokens in [0, 1] {
        let body =
            json!({"prompt": [97, 98, 99], "temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "echo": true});
        let answer = server.ok(PATH, body.clone()).await;
        let choice = &answer["choices"][0];
        let tokens = 3 + max_tokens;
        let text = &"abca"[..tokens];
        assert_eq!(choice["text"], text);
        let lists = &choice["logprobs"];
        assert_eq!(lists["tokens"].as_array().unwrap().len(), tokens);
        assert_eq!(lists["token_logprobs"][0], Value::Null);
        assert_eq!(lists["top_logprobs"][0], Value::Null);
        assert!(lists["token_logprobs"][1].as_f64().unwrap() < 0.0);
        assert_eq!(lists["text_offset"], json!((0..tokens).collect::<Vec<_>>()));
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);

        let mut streamed = body;
        streamed["stream"] = json!(true);
        let events = server.events(PATH, streamed).await;
        let texts: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(texts, text);
        let got: Vec<Value> = events
            .iter()
            .filter_map(|e| e["choices"][0]["logprobs"]["token_logprobs"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(json!(got), lists["token_logprobs"]);
    }
}

#[tokio::test]
async fn prompt_logprobs_for_every_choice() {
    let server = Server::start().await;
    let body = json!({"prompt": "abc", "max_tokens": 1, "prompt_logprobs": 1, "n": 2});
    let answer = server.ok(PATH, body).await;
    for choice in answer["choices"].as_array().unwrap() {
        let entries = choice["prompt_logprobs"].as_array().unwrap();
        assert_eq!((entries.len(), &entries[0]), (3, &Value::Null));
        // The model favours the byte after "a", which is what comes.
        assert_eq!(entries[1]["98"]["rank"], 1);
        assert_eq!(entries[1]["98"]["decoded_token"], "b");
    }
}

#[tokio::test]
async fn usage_in_every_chunk_if_asked() {
    let server = Setup { delay: Duration::from_millis(2), ..Setup::default() }.start().await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "abc", "max_tokens": 3, "temperature": 0, "stream": true, "stream_options": options});
    let events = server.events(PATH, body).await;
    let counts: Vec<u64> = events.iter().map(|e| e["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts.last() == Some(&3), "{counts:?}");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text() {
    let server = Server::start().await;
    let run = async |seed: i64| {
        let body = json!({"prompt": "abcdefgh", "temperature": 3.0, "seed": seed, "max_tokens": 20, "ignore_eos": true,
                          "return_token_ids": true});
        server.ok(PATH, body).await["choices"][0]["token_ids"].clone()
    };
    assert_eq!(run(5).await, run(5).await);
    assert_ne!(run(5).await, run(-6).await);
}

#[tokio::test]
async fn many_at_once_are_not_mixed_up() {
    let server = Setup { max_waiting: 128, ..Setup::default() }.start().await;
    let one = async |i: usize| {
        let prompt = format!("request {i} of many");
        let stream = i.is_multiple_of(2);
        let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 40, "stream": stream});
        let text = if stream {
            added_up(&server.events(PATH, body).await, 1).remove(0).0
        } else {
            server.ok(PATH, body).await["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        assert_eq!(text, prompt);
    };
    futures_util::future::join_all((0..64).map(one)).await;
    server.idle().await;
}

#[tokio::test]
async fn long_prompts_can_be_cut() {
    let server = Setup { max_model_len: 32, ..Setup::default() }.start().await;
    let run = async |side: Value| {
        let body = json!({"prompt": "abcdefghijklmnopqrstuvwxyz0123456789", "truncate_prompt_tokens": 4, "max_tokens": 9,
                          "temperature": 0, "truncation_side": side, "echo": true});
        server.ok(PATH, body).await["choices"][0]["text"].clone()
    };
    assert_eq!(run(Value::Null).await, "67896789");
    assert_eq!(run(json!("right")).await, "abcdabcd");
    // Without max_tokens the default of 16 gives way to what the context holds.
    let body = json!({"prompt": "abcdefghijklmnopqrstuvwxyz0", "temperature": 0, "ignore_eos": true});
    assert_eq!(server.ok(PATH, body).await["usage"]["completion_tokens"], 5);
}

#[tokio::test]
async fn without_a_tokenizer_tokens_go_in_and_out() {
    let server = Setup { tokenizer: None, ..Setup::default() }.start().await;
    let body = json!({"prompt": [97, 98], "temperature": 0, "max_tokens": 9, "return_token_ids": true, "logprobs": 0});
    let answer = server.ok(PATH, body).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["token_ids"]), (&json!(""), &json!([97, 98, EOS])));
    assert_eq!(choice["prompt_token_ids"], json!([97, 98]));
    assert_eq!(choice["logprobs"]["tokens"][0], "token_id:97");
    for (path, body) in [
        (PATH, json!({"prompt": "text"})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]})),
        ("/tokenize", json!({"prompt": "text"})),
        ("/detokenize", json!({"tokens": [1]})),
    ] {
        let message = server.refused(path, body, 400, None).await;
        assert!(message.contains("tokenizer"), "{message}");
    }
    for field in ["stop", "bad_words"] {
        server.refused(PATH, json!({"prompt": [97], field: ["x"]}), 400, Some(field)).await;
    }
    server.refused(PATH, json!({"prompt": [97, VOCAB]}), 400, Some("prompt[0][1]")).await;
}
