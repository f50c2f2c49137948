//! Linear layers whose weight each row chooses: mixtures of experts.
//!
//! Rows are sorted by expert, packed group by group, and each group goes through the inner loops of [`super::linear`] with
//! the weights of its expert; only experts that some row chose are read. An output has the same order of summation as
//! there, whatever else its expert computes.

use std::ops::Range;

use super::pack::{Form, Packed, Panels};
use super::tile::{Part, Target, UNIT};
use super::{Compute, Epilogue, PACK_IN_PARALLEL, Scratch, Segment, check_segments, isa_for, pack, run_part};
use crate::cpu::error::check_eq;
use crate::cpu::{Cpu, Isa, KernelError, Rows, RowsMut, simd};

/// Choices sorted by expert. Allocated once, for the largest step.
#[derive(Debug)]
pub struct Groups {
    /// Which choices, by expert and then in order.
    order: Vec<u32>,
    /// Where each expert's choices begin in `order`, and where the last one's end.
    starts: Vec<u32>,
}

impl Groups {
    /// Enough for this many choices in a call and experts of a layer.
    pub fn with_capacity(choices: usize, experts: usize) -> Self {
        Self { order: Vec::with_capacity(choices), starts: Vec::with_capacity(experts.saturating_add(1)) }
    }

    /// Sorts the choices of a call, each the index of one of `experts`.
    pub fn sort(&mut self, ids: &[i64], experts: usize) -> Result<(), KernelError> {
        let outside = |&id: &i64| usize::try_from(id).map_or(true, |id| id >= experts);
        if let Some(place) = ids.iter().position(outside) {
            // A negative index shows as what it is modulo 2^64.
            let index = ids[place] as u64;
            return Err(KernelError::Index { argument: "ids", place, index, limit: experts });
        }
        let too_small = |needed: usize, capacity: usize| {
            let bytes = |n: usize| n.saturating_mul(size_of::<u32>());
            Err(KernelError::Scratch { needed: bytes(needed), capacity: bytes(capacity) })
        };
        if ids.len() > self.order.capacity() {
            return too_small(ids.len(), self.order.capacity());
        }
        if experts >= self.starts.capacity() {
            return too_small(experts + 1, self.starts.capacity());
        }
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        ids.iter().for_each(|&id| self.starts[id as usize + 1] += 1);
        for e in 0..experts {
            self.starts[e + 1] += self.starts[e];
        }
        self.order.clear();
        self.order.resize(ids.len(), 0);
        for (choice, &id) in ids.iter().enumerate() {
            let at = &mut self.starts[id as usize];
            self.order[*at as usize] = choice as u32;
            *at += 1;
        }
        // Every start has moved to its end: the start of the next.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
        Ok(())
    }

    /// The experts that some choice fell on, in order.
    pub fn chosen(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.starts.len().saturating_sub(1)).filter(|&e| !self.rows(e).is_empty())
    }

    /// The places in `order` of an expert's choices.
    fn rows(&self, expert: usize) -> Range<usize> {
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }
}

/// `out[c, s.out_offset..][..s.n] = x[c or its token] · s.weightᵀ + s.bias` for every choice `c` and segment `s` of the
/// expert that `groups` has it under.
///
/// `x` has a row for every choice, or one for every `choices / x.rows` choices in turn (a token's). `segments` are those of
/// the experts in [`Groups::chosen`], each with the same number of them. Otherwise as [`super::linear`], without an
/// epilogue.
pub fn grouped_linear(
    cpu: &Cpu,
    scratch: &mut Scratch,
    x: Rows<'_>,
    groups: &Groups,
    segments: &[Segment<'_>],
    compute: Compute,
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    let choices = groups.order.len();
    let chosen = groups.chosen().count();
    out.check_shape("out", choices, out.cols)?;
    if choices == 0 {
        return Ok(());
    }
    if x.rows == 0 || !choices.is_multiple_of(x.rows) {
        let why = "must divide the number of choices";
        return Err(KernelError::Option { argument: "x.rows", got: x.rows.to_string(), why });
    }
    if segments.is_empty() || !segments.len().is_multiple_of(chosen) {
        return Err(KernelError::Shape {
            argument: "segments",
            what: "length (experts chosen * segments of one)",
            expected: chosen,
            got: segments.len(),
        });
    }
    x.check("x")?;
    let each = segments.len() / chosen;
    for own in segments.chunks_exact(each) {
        check_segments(x.cols, own, compute, &Epilogue::None, out.cols)?;
        for (segment, first) in own.iter().zip(segments) {
            check_eq("segment.n", "rows, as those of the first expert,", first.n, segment.n)?;
            if segment.weight.dtype() != segments[0].weight.dtype() {
                let (got, why) = (segment.weight.dtype().name(), "all experts of one call have the same dtype");
                return Err(KernelError::Dtype { argument: "segment.weight", got, why });
            }
        }
    }
    let isa = isa_for(cpu, segments[0].weight.dtype());
    let form = Form::of(isa, segments[0].weight.dtype(), compute);
    let packed = scratch.take(choices, x.cols, form)?;
    let call = Call { groups, x, per_row: choices / x.rows, form, packed, segments, each };
    let pack = |part, parts| call.pack(isa, part, parts);
    if choices * x.cols < PACK_IN_PARALLEL {
        pack(0, 1)
    } else {
        cpu.pool().run(&pack)
    }
    let target = Target { out: out.share(), epilogue: Epilogue::None };
    cpu.pool().run(&|part, parts| call.compute(isa, target, part, parts));
    Ok(())
}

/// A checked call.
struct Call<'a> {
    groups: &'a Groups,
    x: Rows<'a>,
    /// Choices for each row of x.
    per_row: usize,
    form: Form,
    packed: Packed,
    segments: &'a [Segment<'a>],
    /// Segments of an expert.
    each: usize,
}

/// What a row of a group costs beside reading the weights once, in rows: shares of experts with few rows and with many
/// should take the same time.
const READING: usize = 8;

impl Call<'_> {
    /// Packs one thread's panels: dealt out in turn, since most experts have few.
    fn pack(&self, isa: Isa, part: usize, parts: usize) {
        let mut turn = 0;
        for expert in self.groups.chosen() {
            let rows = self.groups.rows(expert);
            let chosen = &self.groups.order[rows.clone()];
            let panels = Panels::of(rows.len(), simd::panel_rows(isa));
            for index in 0..panels.count() {
                if turn == part {
                    let source = pack::Source::Chosen { rows: chosen, per_row: self.per_row };
                    let (x, form, to) = (self.x, self.form, self.packed.from(rows.start));
                    simd::dispatch(isa, pack::Pack { x, source, form, panels, which: index..index + 1, to });
                }
                turn = if turn + 1 == parts { 0 } else { turn + 1 };
            }
        }
    }

    /// Computes one thread's share: units of the experts' weights one after the other, cut where the work is equal.
    fn compute(&self, isa: Isa, target: Target<'_>, part: usize, parts: usize) {
        let units: usize = self.segments[..self.each].iter().map(|s| s.n.div_ceil(UNIT)).sum();
        let cost = |expert: usize| self.groups.rows(expert).len() + READING;
        let all: usize = self.groups.chosen().map(cost).sum::<usize>() * units;
        let share = all / parts * part + all % parts * part / parts
            ..all / parts * (part + 1) + all % parts * (part + 1) / parts;
        let mut before = 0;
        for (expert, segments) in self.groups.chosen().zip(self.segments.chunks_exact(self.each)) {
            // Units that begin inside of the share.
            let begin = |limit: usize| limit.saturating_sub(before).div_ceil(cost(expert)).min(units);
            let own = begin(share.start)..begin(share.end);
            before += cost(expert) * units;
            if own.is_empty() {
                continue;
            }
            let rows = self.groups.rows(expert);
            let part = Part {
                packed: self.packed.from(rows.start),
                panels: Panels::of(rows.len(), simd::panel_rows(isa)),
                k: self.x.cols,
                segments,
                target,
                rows: Some(&self.groups.order[rows]),
                units: own,
            };
            run_part(isa, self.form, part);
        }
    }
}
