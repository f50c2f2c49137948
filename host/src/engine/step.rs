//! The step loop: takes requests, asks the scheduler, runs the executor, chooses tokens, sends events.
//! The only place where the parts of the engine meet. Runs on the engine's thread ([`run`]); tests call
//! [`Core::step`] themselves. It never waits for a client: every event has its room in the channel. Nor for a
//! guide: a sequence whose mask is not there yet keeps its logits and stays out of the next steps.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::crew::Crew;
use super::guide::Guide;
use super::handle::{Command, Submission};
use super::params::{EngineEvent, FinishReason, SamplingParams, Timings, TokenLogprobs};
use super::pool::{Pool, Pooling};
use super::sampler::{self, History, SampleError, Sampler};
use super::scheduler::{Limits, Outcome, Scheduler};
use super::sequence::Sequence;
use super::stats::{EngineState, Shared};
use crate::exec::{Draw, Drawn, ExecError, Executor, Step, StepRows, StepSeq};

/// How long the engine sleeps when all that runs waits for masks: less than most of them take.
const NAP: Duration = Duration::from_micros(50);

/// The thread's main function.
pub(super) fn run(mut core: Core, commands: Receiver<Command>) {
    let shared = Arc::clone(&core.shared);
    let ended = catch_unwind(AssertUnwindSafe(|| core.serve(&commands)));
    if let Err(panic) = ended {
        let what = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!("the engine panicked and has stopped: {what}");
        // Before the clients hear of it: who then asks for the health must not be told that all is well.
        shared.advance_to(EngineState::Stopping);
        core.fail_all(&format!("the engine stopped after an internal error: {what}"));
    }
    shared.advance_to(EngineState::Stopping);
    // Whatever is left in the channel: its streams report that the engine has stopped.
    drop(commands);
    // The executor may panic again when it is dropped.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(core)));
    shared.busy.store(false, Relaxed);
    shared.running.store(0, Relaxed);
    shared.waiting.store(0, Relaxed);
    shared.kv_blocks_used.store(0, Relaxed);
    shared.advance_to(EngineState::Stopped);
}

/// What the scheduler does not need to know of a request.
struct Request {
    params: SamplingParams,
    priority: i32,
    seed: u64,
    /// The sequence ends at this length.
    max_len: usize,
    history: History,
    guide: Option<Box<dyn Guide>>,
    /// The logits that its next token is chosen from, while the guide is not ready.
    late: Option<Vec<f32>>,
    /// Not a token but a vector is wanted.
    pool: Option<Pool>,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    events: Sender<EngineEvent>,
    /// Counts towards `Shared::queued`, with this many tokens.
    queued: bool,
    prompt_len: usize,
    arrival: Instant,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
}

impl Request {
    /// There is room for every event, and whether anyone listens is looked up before each step.
    fn send(&self, event: EngineEvent) {
        let _ = self.events.try_send(event);
    }

    fn timings(&self) -> Timings {
        let Self { arrival, first_scheduled, first_token, .. } = *self;
        Timings { arrival, first_scheduled, first_token, finished: Instant::now() }
    }

    /// How the executor may choose its next token in this step; none if it does not, or if its logits are wanted.
    fn draw(&self, seq: &Sequence) -> Option<Draw> {
        let Self { params, history, pool, guide, .. } = self;
        let wants_row = pool.is_some() || guide.is_some() || params.logprobs.is_some() || seq.prompt_rows.is_some();
        if !seq.samples() || wants_row { None } else { sampler::draw(params, history, self.seed) }
    }

    /// Takes what the step gave for `seq`: reports on its prompt, chooses its next token or pools.
    fn take(&mut self, seq: &Sequence, given: Given<'_>, sampler: &mut Sampler, shared: &Shared) -> Outcome {
        if self.pool.is_some() {
            return self.take_hidden(seq, given.rows, given.width, shared);
        }
        let outcome = self.try_take_logits(seq, given, sampler, shared);
        self.or_fail(outcome)
    }

    /// Chooses the next token from logits that waited for the guide, if that is ready.
    fn take_late(&mut self, seq: &Sequence, sampler: &mut Sampler, shared: &Shared) -> Outcome {
        if !self.is_ready() {
            return Outcome::Wait;
        }
        let Some(row) = self.late.take() else { return Outcome::Wait };
        let outcome = self.choose(seq, &row, sampler, shared);
        self.or_fail(outcome)
    }

    fn is_ready(&mut self) -> bool {
        self.guide.as_mut().is_none_or(|guide| guide.is_ready())
    }

    fn or_fail(&self, outcome: Result<Outcome, SampleError>) -> Outcome {
        outcome.unwrap_or_else(|error| {
            self.send(EngineEvent::Failed(error.to_string()));
            Outcome::Finish
        })
    }

    fn take_hidden(&mut self, seq: &Sequence, rows: &[f32], width: usize, shared: &Shared) -> Outcome {
        let Some(pool) = &mut self.pool else { return Outcome::Finish };
        pool.push(rows, width);
        if !seq.samples() {
            return Outcome::Continue;
        }
        let vector = pool.finish();
        shared.prompt_tokens.fetch_add(seq.prompt_len as u64, Relaxed);
        shared.prompt_cached.fetch_add(seq.cached_tokens as u64, Relaxed);
        if vector.iter().all(|x| x.is_finite()) {
            self.send(EngineEvent::Pooled(vector));
            self.send_finished(seq, FinishReason::Stop, None);
        } else {
            self.send(EngineEvent::Failed("the model gave a hidden state that is not finite".into()));
        }
        Outcome::Finish
    }

    fn send_finished(&self, seq: &Sequence, reason: FinishReason, stop_token: Option<u32>) {
        let Sequence { cached_tokens, preemptions, .. } = *seq;
        self.send(EngineEvent::Finished { reason, stop_token, cached_tokens, preemptions, timings: self.timings() });
    }

    fn try_take_logits(
        &mut self,
        seq: &Sequence,
        Given { rows, width: vocab, drawn }: Given<'_>,
        sampler: &mut Sampler,
        shared: &Shared,
    ) -> Result<Outcome, SampleError> {
        if let (Some(count), Some(_)) = (self.params.prompt_logprobs, seq.prompt_rows) {
            for (position, row) in seq.logit_positions().zip(rows.chunks_exact(vocab)) {
                if position + 1 < seq.prompt_len {
                    self.prompt_logprobs.push(Some(sampler.logprobs(row, seq.tokens[position + 1], count)?));
                }
            }
        }
        if !seq.samples() {
            return Ok(Outcome::Continue);
        }
        if let Some(drawn) = drawn {
            self.note_prompt(seq, shared);
            return self.take_token(seq, sampler::token_of(drawn)?, None, shared);
        }
        let row = &rows[rows.len() - vocab..];
        if !self.is_ready() {
            self.late = Some(row.to_vec());
            return Ok(Outcome::Wait);
        }
        self.choose(seq, row, sampler, shared)
    }

    /// Counts and reports its prompt, before its first token.
    fn note_prompt(&mut self, seq: &Sequence, shared: &Shared) {
        if seq.output_len() == 0 {
            shared.prompt_tokens.fetch_add(seq.prompt_len as u64, Relaxed);
            shared.prompt_cached.fetch_add(seq.cached_tokens as u64, Relaxed);
            self.first_token = Some(Instant::now());
            if self.params.prompt_logprobs.is_some() {
                let prompt_logprobs = std::mem::take(&mut self.prompt_logprobs);
                self.send(EngineEvent::PromptLogprobs(prompt_logprobs));
            }
        }
    }

    /// Chooses the next token and reports it.
    fn choose(
        &mut self,
        seq: &Sequence,
        row: &[f32],
        sampler: &mut Sampler,
        shared: &Shared,
    ) -> Result<Outcome, SampleError> {
        self.note_prompt(seq, shared);
        let allowed = match &mut self.guide {
            Some(guide) => guide.allowed()?,
            None => None,
        };
        let token = sampler.sample(row, allowed, &self.params, &self.history, self.seed)?;
        let logprobs = match (self.params.logprobs, self.params.logprob_token_ids.as_slice()) {
            (None, _) => None,
            (Some(count), []) => Some(sampler.logprobs(row, token, count)?),
            (Some(_), others) => Some(sampler.logprobs_of(row, token, others)?),
        };
        self.take_token(seq, token, logprobs, shared)
    }

    /// Reports its next token, and whether it is the last.
    fn take_token(
        &mut self,
        seq: &Sequence,
        token: u32,
        logprobs: Option<TokenLogprobs>,
        shared: &Shared,
    ) -> Result<Outcome, SampleError> {
        let whole = self.guide.as_mut().map_or(Ok(false), |guide| guide.push(token))?;
        self.history.push(token);
        shared.generation_tokens.fetch_add(1, Relaxed);
        self.send(EngineEvent::Token { token, logprobs });

        let stop_token =
            (self.history.output().len() >= self.params.min_tokens && self.params.is_stop(token)).then_some(token);
        let reason = match stop_token {
            Some(_) => FinishReason::Stop,
            None if whole => FinishReason::Stop,
            None if seq.tokens.len() + 1 >= self.max_len => FinishReason::Length,
            None => return Ok(Outcome::Token(token)),
        };
        self.send_finished(seq, reason, stop_token);
        Ok(Outcome::Finish)
    }
}

/// What one sequence has in a step's result.
struct Turn<'a> {
    seq: &'a Sequence,
    request: Option<&'a mut Request>,
    given: Given<'a>,
    outcome: Outcome,
}

/// What a step gave for a sequence.
#[derive(Clone, Copy)]
struct Given<'a> {
    /// Rows without gaps; none if the executor has chosen.
    rows: &'a [f32],
    width: usize,
    drawn: Option<Drawn>,
}

fn step_seq(seq: &Sequence) -> StepSeq<'_> {
    StepSeq {
        id: seq.id,
        tokens: &seq.tokens[..seq.step_end()],
        computed: seq.computed,
        context_len: seq.tokens.len(),
        blocks: &seq.blocks,
        logits: seq.logit_rows(),
    }
}

/// Who takes which rows, in the order of `scheduled`.
fn turns<'a>(
    scheduled: &[&'a Sequence],
    requests: &'a mut BTreeMap<u64, Request>,
    (mut rows, width): (&'a [f32], usize),
    drawn: &[Option<Drawn>],
) -> Vec<Turn<'a>> {
    let mut turns: Vec<Turn<'_>> = scheduled
        .iter()
        .zip(drawn)
        .map(|(seq, &drawn)| {
            let count = if drawn.is_some() { 0 } else { seq.logit_positions().len() };
            let (own, after) = rows.split_at(count * width);
            rows = after;
            Turn { seq, request: None, given: Given { rows: own, width, drawn }, outcome: Outcome::Finish }
        })
        .collect();
    // The requests of those, each borrowed once: the map and the turns are gone through together, by id.
    let mut by_id: Vec<(u64, usize)> = scheduled.iter().enumerate().map(|(at, seq)| (seq.id, at)).collect();
    by_id.sort_unstable();
    if let (Some(&(first, _)), Some(&(last, _))) = (by_id.first(), by_id.last()) {
        let mut wanted = by_id.into_iter().peekable();
        for (&id, request) in requests.range_mut(first..=last) {
            while wanted.next_if(|&(other, _)| other < id).is_some() {}
            if let Some((_, at)) = wanted.next_if(|&(other, _)| other == id) {
                turns[at].request = Some(request);
            }
        }
    }
    turns
}

/// What came of each, without what it borrows.
fn outcomes(turns: Vec<Turn<'_>>) -> Vec<(u64, Outcome)> {
    turns.into_iter().map(|turn| (turn.seq.id, turn.outcome)).collect()
}

/// Everything that the engine's thread owns.
pub(super) struct Core {
    executor: Box<dyn Executor>,
    row_width: usize,
    scheduler: Scheduler,
    crew: Crew,
    requests: BTreeMap<u64, Request>,
    shared: Arc<Shared>,
}

impl Core {
    pub(super) fn new(executor: Box<dyn Executor>, limits: Limits, shared: Arc<Shared>) -> Self {
        let row_width = executor.spec().row_width;
        let (scheduler, crew) = (Scheduler::new(limits), Crew::new(executor.threads()));
        Self { executor, row_width, scheduler, crew, requests: BTreeMap::new(), shared }
    }

    fn serve(&mut self, commands: &Receiver<Command>) {
        loop {
            if self.scheduler.is_idle() {
                self.publish(false);
                if self.shared.state() != EngineState::Running {
                    match commands.try_recv() {
                        Ok(command) => self.obey(command),
                        Err(_) => return,
                    }
                    continue;
                }
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return, // every handle is gone
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            if matches!(self.shared.state(), EngineState::Stopping | EngineState::Stopped) {
                self.abort_all();
                continue;
            }
            if !self.step() {
                self.nap(commands);
            }
        }
    }

    /// Gives guides a moment, or less if a command comes.
    fn nap(&mut self, commands: &Receiver<Command>) {
        match commands.recv_timeout(NAP) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(NAP),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.add(*submission),
            Command::Wake => {}
        }
    }

    /// Queues a request.
    pub(super) fn add(&mut self, submission: Submission) {
        let Submission { id, seed, request, guide, max_len, events } = submission;
        let super::EngineRequest { prompt, params, pooling, restriction: _, priority, arrival } = request;
        let history = History::new(&prompt, &params);
        let prompt_len = prompt.len();
        let all_rows = params.prompt_logprobs.is_some() || pooling.is_some_and(Pooling::wants_all);
        self.scheduler.add(Sequence::new(id, priority, prompt, all_rows));
        let prompt_logprobs = if params.prompt_logprobs.is_some() { vec![None] } else { Vec::new() };
        let request = Request {
            params,
            priority,
            seed,
            max_len,
            history,
            guide,
            late: None,
            pool: pooling.map(Pool::new),
            prompt_logprobs,
            events,
            queued: true,
            prompt_len,
            arrival,
            first_scheduled: None,
            first_token: None,
        };
        self.requests.insert(id, request);
    }

    /// One step. Nothing happens if nothing is queued, or if all that runs waits for guides; then it returns false.
    pub(super) fn step(&mut self) -> bool {
        self.drop_abandoned();
        self.choose_late();
        let decision = self.scheduler.schedule();
        let now = Instant::now();
        for id in &decision.preempted {
            self.executor.forget(*id);
            // Its logits are computed again.
            if let Some(request) = self.requests.get_mut(id) {
                request.late = None;
            }
        }
        for id in decision.impossible {
            let what = "the KV cache cannot hold this sequence alone";
            self.fail(id, &format!("{what}: raise --kv-cache-memory or lower max_tokens"));
        }
        for id in decision.admitted {
            self.note_start(id, now);
        }
        self.publish(true);
        if decision.tokens > 0 {
            self.shared.count_step(decision.tokens);
            if let Err(error) = self.execute() {
                tracing::error!("a step failed: {error}");
                self.shared.failed_steps.fetch_add(1, Relaxed);
                for id in self.scheduler.fail_step() {
                    self.fail(id, &format!("the model could not be run: {error}"));
                }
            }
        }
        self.publish(true);
        decision.tokens > 0
    }

    /// Chooses the tokens of those whose guides were not ready when their logits were.
    fn choose_late(&mut self) {
        let Self { scheduler, crew, requests, shared, row_width: width, .. } = self;
        let waiting: Vec<&Sequence> = scheduler.running().iter().filter(|seq| seq.waits()).collect();
        if waiting.is_empty() {
            return;
        }
        let numbers = waiting.len() * *width;
        let mut turns = turns(&waiting, requests, (&[], 0), &vec![None; waiting.len()]);
        crew.take_all(&mut turns, numbers, |turn, sampler| {
            if let Some(request) = &mut turn.request {
                turn.outcome = request.take_late(turn.seq, sampler, shared);
            }
        });
        let outcomes = outcomes(turns);
        let mut next = outcomes.iter();
        scheduler.decide(|_| next.next().map_or(Outcome::Finish, |&(_, outcome)| outcome));
        self.forget_finished(&outcomes);
    }

    fn forget_finished(&mut self, outcomes: &[(u64, Outcome)]) {
        for (id, _) in outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Finish) {
            self.requests.remove(id);
            self.executor.forget(*id);
        }
    }

    /// A request runs for the first time, or again after preemption.
    fn note_start(&mut self, id: u64, now: Instant) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut request.queued) {
            self.shared.unqueue(request.prompt_len);
            request.first_scheduled = Some(now);
            let cached_tokens =
                self.scheduler.running().iter().find(|seq| seq.id == id).map_or(0, |seq| seq.cached_tokens);
            request.send(EngineEvent::Started { cached_tokens, at: now });
        }
    }

    /// Frees what nobody listens to any more.
    fn drop_abandoned(&mut self) {
        let abandoned: Vec<u64> =
            self.requests.iter().filter(|(_, request)| request.events.is_closed()).map(|(&id, _)| id).collect();
        for id in abandoned {
            self.end(id, None);
        }
    }

    fn abort_all(&mut self) {
        let all: Vec<(u64, Timings)> = self.requests.iter().map(|(&id, request)| (id, request.timings())).collect();
        for (id, timings) in all {
            let reason = FinishReason::Abort;
            let event = EngineEvent::Finished { reason, stop_token: None, cached_tokens: 0, preemptions: 0, timings };
            self.end(id, Some(event));
        }
    }

    fn fail_all(&mut self, message: &str) {
        for (_, request) in std::mem::take(&mut self.requests) {
            request.send(EngineEvent::Failed(message.to_owned()));
        }
    }

    fn fail(&mut self, id: u64, message: &str) {
        self.end(id, Some(EngineEvent::Failed(message.to_owned())));
    }

    /// Ends a request, wherever it is.
    fn end(&mut self, id: u64, event: Option<EngineEvent>) {
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        self.scheduler.abort(request.priority, id);
        if request.first_scheduled.is_some() {
            self.executor.forget(id);
        }
        if request.queued {
            self.shared.unqueue(request.prompt_len);
        }
        if let Some(event) = event {
            request.send(event);
        }
    }

    /// Runs what is scheduled.
    fn execute(&mut self) -> Result<(), ExecError> {
        let Self { executor, scheduler, crew, requests, shared, row_width: width, .. } = self;
        let scheduled: Vec<&Sequence> = scheduler.running().iter().filter(|seq| seq.scheduled > 0).collect();
        let seqs: Vec<StepSeq<'_>> = scheduled.iter().map(|seq| step_seq(seq)).collect();
        let (step, width) = (Step { seqs: &seqs }, *width);
        let draw = |seq: &&Sequence| requests.get(&seq.id).and_then(|request| request.draw(seq));
        let draws: Vec<Option<Draw>> = match executor.draws() {
            true => scheduled.iter().map(draw).collect(),
            false => vec![None; scheduled.len()],
        };
        let StepRows { rows: logits, drawn } = executor.execute_and_draw(&step, &draws)?;
        let undrawn = scheduled.iter().zip(&draws).filter(|(_, draw)| draw.is_none());
        let rows: usize = undrawn.map(|(seq, _)| seq.logit_positions().len()).sum();
        let asked = draws.iter().flatten().count();
        if logits.len() != rows * width || drawn.len() != asked {
            let got = format!("{} and {}", logits.len(), drawn.len());
            let wanted = format!("{rows} rows of {width} numbers and {asked} tokens");
            return Err(ExecError::Failed(format!("expected {wanted}, got {got}")));
        }
        let mut drawn = drawn.into_iter();
        let drawn: Vec<Option<Drawn>> = draws.iter().map(|draw| draw.as_ref().and_then(|_| drawn.next())).collect();
        let mut turns = turns(&scheduled, requests, (logits, width), &drawn);
        crew.take_all(&mut turns, logits.len(), |turn, sampler| {
            if let Some(request) = &mut turn.request {
                turn.outcome = request.take(turn.seq, turn.given, sampler, shared);
            }
        });
        let outcomes = outcomes(turns);
        let mut next = outcomes.iter();
        scheduler.complete(|_| next.next().map_or(Outcome::Finish, |&(_, outcome)| outcome));
        self.forget_finished(&outcomes);
        Ok(())
    }

    fn publish(&self, busy: bool) {
        let shared = &self.shared;
        let (used, _) = self.scheduler.block_usage();
        let counts = self.scheduler.counts();
        shared.running.store(self.scheduler.running().len(), Relaxed);
        shared.waiting.store(self.scheduler.waiting(), Relaxed);
        shared.kv_blocks_used.store(used, Relaxed);
        shared.prefix_queries.store(counts.queries, Relaxed);
        shared.prefix_hits.store(counts.hits, Relaxed);
        shared.preemptions.store(counts.preemptions, Relaxed);
        shared.busy.store(busy, Relaxed);
        shared.beat();
    }

    #[cfg(test)]
    pub(super) fn requests(&self) -> usize {
        self.requests.len()
    }

    #[cfg(test)]
    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }
}
