//! The engine with its thread: refusals, aborts, failures, panics, shutting down.

use std::time::{Duration, Instant};

use super::request;
use crate::engine::sim::{SimExecutor, SimOptions};
use crate::engine::{
    Engine, EngineConfig, EngineError, EngineEvent, EngineHandle, EngineRequest, EngineState, EventStream,
    FinishReason, SamplingParams, SubmitError,
};
use crate::exec::BLOCK_SIZE;

const LONG: Duration = Duration::from_secs(20);

fn config() -> EngineConfig {
    EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 64, max_waiting: 8, ..EngineConfig::new(1000, 64) }
}

fn start(options: SimOptions, config: EngineConfig) -> EngineHandle {
    match Engine::start(Box::new(SimExecutor::new(options)), config) {
        Ok(handle) => handle,
        Err(error) => panic!("{error}"),
    }
}

fn slow() -> SimOptions {
    SimOptions { step_time: Duration::from_millis(2), ..SimOptions::new(50) }
}

fn tokens(count: usize) -> EngineRequest {
    request(vec![1, 2, 3], SamplingParams { max_tokens: count, seed: Some(1), ..SamplingParams::default() })
}

fn submit(handle: &EngineHandle, request: EngineRequest) -> EventStream {
    match handle.submit(request) {
        Ok(stream) => stream,
        Err(error) => panic!("{error}"),
    }
}

fn events(mut stream: EventStream) -> Vec<EngineEvent> {
    std::iter::from_fn(|| stream.blocking_next()).collect()
}

fn failure(stream: EventStream) -> String {
    match events(stream).pop() {
        Some(EngineEvent::Failed(message)) => message,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < LONG, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn events_come_in_order_with_their_instants() {
    let handle = start(SimOptions::new(50), config());
    let events = events(submit(&handle, tokens(5)));
    assert!(matches!(events[0], EngineEvent::Started { cached_tokens: 0, .. }));
    assert!(events[1..6].iter().all(|event| matches!(event, EngineEvent::Token { .. })), "{events:?}");
    let EngineEvent::Finished { reason: FinishReason::Length, stop_token: None, timings, .. } = &events[6] else {
        panic!("{events:?}");
    };
    let instants = [Some(timings.arrival), timings.first_scheduled, timings.first_token, Some(timings.finished)];
    assert!(instants.iter().all(Option::is_some) && instants.is_sorted(), "{instants:?}");
    assert_eq!(events.len(), 7);
    let stats = handle.stats();
    assert_eq!((stats.prompt_tokens, stats.generation_tokens, stats.steps), (3, 5, 5));
}

#[test]
fn what_can_never_run_is_refused_and_told_why() {
    let handle = start(SimOptions::new(50), EngineConfig { max_model_len: 100, kv_blocks: 4, ..config() });
    let refuse = |request| handle.submit(request).err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(handle.submit(request(vec![], SamplingParams::default())).err(), Some(SubmitError::EmptyPrompt));
    let text = refuse(request(vec![1; 100], SamplingParams::default()));
    assert!(text.contains("has 100 tokens") && text.contains("context length is 100"), "{text}");
    let text = refuse(request(vec![1; 60], SamplingParams { max_tokens: 20, ..SamplingParams::default() }));
    assert!(
        text.contains("need 5 KV blocks") && text.contains("the cache has 4") && text.contains("--kv-cache-memory"),
        "{text}"
    );
    let text = refuse(request(vec![50], SamplingParams::default()));
    assert!(text.contains("prompt: token id 50 is out of range"), "{text}");
    let text = refuse(request(vec![1], SamplingParams { logit_bias: vec![(99, 1.0)], ..SamplingParams::default() }));
    assert!(text.contains("logit_bias: token id 99"), "{text}");
    // What just fits: the last token is never computed, so 65 tokens take 4 blocks.
    assert_eq!(handle.max_request_tokens(), 4 * BLOCK_SIZE + 1);
    let fits = submit(&handle, request(vec![1; 60], SamplingParams { max_tokens: 5, ..SamplingParams::default() }));
    assert_eq!(events(fits).len(), 7);
}

#[test]
fn a_generation_ends_at_the_context_length() {
    let handle = start(SimOptions::new(50), EngineConfig { max_model_len: 10, ..config() });
    let events = events(submit(&handle, tokens(500)));
    assert_eq!(events.len(), 1 + 7 + 1);
    assert!(matches!(events[8], EngineEvent::Finished { reason: FinishReason::Length, .. }));
}

#[test]
fn the_queue_is_bounded_and_has_room_again_when_requests_are_dropped() {
    let handle = start(slow(), EngineConfig { max_num_seqs: 1, max_model_len: 10_000, kv_blocks: 1000, ..config() });
    let first = submit(&handle, tokens(9000));
    wait_for("the first request runs", || handle.stats().running == 1 && handle.stats().waiting == 0);
    let waiting: Vec<EventStream> = (0..8).map(|_| submit(&handle, tokens(5))).collect();
    assert_eq!(handle.submit(tokens(5)).err(), Some(SubmitError::QueueFull { limit: 8 }));
    assert_eq!(handle.stats().waiting, 8);
    // Dropping makes room while they still wait, and frees the blocks of the one that runs.
    drop(waiting);
    wait_for("the queue is empty", || handle.stats().waiting == 0);
    let next = submit(&handle, tokens(5));
    assert_eq!(handle.stats().running, 1);
    drop(first);
    assert_eq!(events(next).len(), 7);
    wait_for("all blocks are free", || handle.stats().kv_blocks_used == 0);
    assert!(handle.stats().generation_tokens < 9000);
    assert_eq!(handle.submit_all(vec![tokens(1); 9]).err(), Some(SubmitError::QueueFull { limit: 8 }));
    assert_eq!(handle.submit_all(vec![tokens(1); 8]).map(|streams| streams.into_iter().map(events).count()), Ok(8));
}

#[test]
fn a_failed_step_fails_its_requests_only() {
    let handle = start(SimOptions { failing_steps: vec![1], ..SimOptions::new(50) }, config());
    let text = failure(submit(&handle, tokens(5)));
    assert!(text.contains("simulated failure in step 1"), "{text}");
    assert_eq!(events(submit(&handle, tokens(5))).len(), 7);
    wait_for("all blocks are free", || handle.stats().kv_blocks_used == 0);
    assert_eq!(handle.stats().failed_steps, 1);
}

#[test]
fn a_request_with_broken_logits_fails_alone() {
    let handle = start(SimOptions { poison: Some(9), ..slow() }, config());
    let fine = submit(&handle, request_of(SamplingParams { bad_words: vec![vec![9]], ..tokens(50).params }));
    let text = failure(submit(&handle, request(vec![3, 9], SamplingParams::default())));
    assert!(text.contains("NaN as the logit of token 0"), "{text}");
    let text = failure(submit(
        &handle,
        request(vec![9, 3], SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::default() }),
    ));
    assert!(text.contains("NaN"), "{text}");
    assert_eq!(events(fine).len(), 52);
}

fn request_of(params: SamplingParams) -> EngineRequest {
    request(vec![1, 2, 3], params)
}

#[test]
fn after_a_panic_everyone_is_told_and_later_requests_are_refused() {
    let handle = start(SimOptions { panicking_step: Some(20), ..slow() }, EngineConfig { max_num_seqs: 1, ..config() });
    let (running, waiting) = (submit(&handle, tokens(100)), submit(&handle, tokens(100)));
    for stream in [running, waiting] {
        let text = failure(stream);
        assert!(text.contains("simulated panic in step 20"), "{text}");
    }
    assert!(handle.wait_stopped(LONG));
    assert_eq!(handle.submit(tokens(1)).err(), Some(SubmitError::Stopped));
    let stats = handle.stats();
    assert_eq!((stats.state, stats.running, stats.waiting, stats.busy), (EngineState::Stopped, 0, 0, false));
}

#[test]
fn draining_finishes_what_there_is_and_shutdown_ends_it() {
    let handle = start(slow(), EngineConfig { max_num_seqs: 1, ..config() });
    let (running, waiting) = (submit(&handle, tokens(20)), submit(&handle, tokens(3)));
    handle.drain();
    assert_eq!(handle.submit(tokens(1)).err(), Some(SubmitError::Draining));
    assert_eq!((events(running).len(), events(waiting).len()), (22, 5));
    assert!(handle.wait_stopped(LONG));

    let handle = start(slow(), EngineConfig { max_num_seqs: 1, ..config() });
    let streams = [submit(&handle, tokens(900)), submit(&handle, tokens(900))];
    wait_for("one runs", || handle.stats().running == 1);
    assert!(!handle.wait_stopped(Duration::from_millis(5)));
    handle.shutdown();
    for stream in streams {
        assert!(matches!(events(stream).pop(), Some(EngineEvent::Finished { reason: FinishReason::Abort, .. })));
    }
    assert!(handle.wait_stopped(LONG));
    assert_eq!(handle.submit(tokens(1)).err(), Some(SubmitError::Stopped));
}

#[test]
fn without_handles_the_engine_ends_when_its_requests_have() {
    let handle = start(slow(), config());
    let stream = submit(&handle, tokens(20));
    drop(handle);
    assert_eq!(events(stream).len(), 22);
}

#[test]
fn a_heartbeat_shows_a_hanging_step() {
    let options = SimOptions { step_time: Duration::from_millis(1000), ..SimOptions::new(50) };
    let handle = start(options, config());
    assert!(!handle.stats().busy);
    let stream = submit(&handle, tokens(1));
    wait_for("the step hangs", || handle.stats().busy && handle.stats().since_heartbeat > Duration::from_millis(50));
    assert_eq!(events(stream).len(), 3);
    wait_for("it is idle", || !handle.stats().busy);
}

#[test]
fn contradicting_configurations_are_refused() {
    let refuse = |change: &dyn Fn(&mut EngineConfig)| {
        let mut config = config();
        change(&mut config);
        let mut options = SimOptions::new(50);
        (options.spec.max_seqs, options.spec.max_tokens) = (100, 1000);
        match Engine::start(Box::new(SimExecutor::new(options)), config) {
            Err(EngineError::Config(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    assert!(refuse(&|config| config.max_num_seqs = 0).contains("max_num_seqs is 0"));
    assert!(refuse(&|config| config.max_num_seqs = 65).contains("(64) is below max_num_seqs (65)"));
    assert!(refuse(&|config| config.max_num_batched_tokens = 1001).contains("built for 1000"));
    assert!(
        refuse(&|config| (config.max_num_seqs, config.max_num_batched_tokens) = (101, 500)).contains("built for 100")
    );
    assert!(refuse(&|config| config.kv_blocks = 0).contains("--kv-cache-memory"));
}

#[test]
fn unseeded_requests_differ_and_seeded_ones_do_not() {
    let handle = start(SimOptions::new(50), config());
    let run = |seed| {
        let params = SamplingParams { max_tokens: 40, seed, ..SamplingParams::default() };
        format!(
            "{:?}",
            events(submit(&handle, request_of(params)))
                .iter()
                .filter(|event| matches!(event, EngineEvent::Token { .. }))
                .collect::<Vec<_>>()
        )
    };
    assert_eq!(run(Some(3)), run(Some(3)));
    assert_ne!(run(Some(3)), run(Some(4)));
    assert_ne!(run(None), run(None));
}

/// Heads may be narrower than embeddings: ids without a column of logits may be read, but neither asked about nor chosen.
#[test]
fn ids_of_the_embedding_go_in_and_ids_of_the_head_come_out() {
    let mut options = SimOptions::new(50);
    options.spec.input_vocab_size = 56;
    let engine = start(options, config());
    let of = |prompt: &[u32], params: SamplingParams| {
        let params = SamplingParams { max_tokens: 4, seed: Some(1), ..params };
        engine.submit(request(prompt.to_vec(), params))
    };
    let tokens: Vec<u32> = events(
        of(&[1, 55, 2], SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() })
            .expect("ids of the embedding are a prompt"),
    )
    .iter()
    .filter_map(|event| match event {
        EngineEvent::Token { token, .. } => Some(*token),
        _ => None,
    })
    .collect();
    assert_eq!(tokens.len(), 4);
    assert!(tokens.iter().all(|&token| token < 50), "{tokens:?}");

    let refused = |prompt: &[u32], params| of(prompt, params).map(|_| ()).unwrap_err().to_string();
    let text = refused(&[1, 56], SamplingParams::default());
    assert!(text.contains("prompt: token id 56 is out of range; the model has 56 tokens"), "{text}");
    let text = refused(&[1, 55], SamplingParams { prompt_logprobs: Some(1), ..SamplingParams::default() });
    assert!(text.contains("prompt_logprobs: token id 55 is out of range; the model has 50 tokens"), "{text}");
    let text = refused(&[1], SamplingParams { stop_token_ids: vec![55], ..SamplingParams::default() });
    assert!(text.contains("stop_token_ids: token id 55 is out of range; the model has 50 tokens"), "{text}");
}
