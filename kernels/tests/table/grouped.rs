//! Linear layers by expert: few and many rows an expert, experts without rows, weights in one piece and in several.

use std::ops::Range;

use kernels::cpu::{Epilogue, Groups, Rows, RowsMut, Scratch, Segment};

use super::linear::{Kind, Weight};
use super::on::{grouped_linear, linear};
use super::{Case, Expected, On, Random, Timed};

/// One grouped linear.
#[derive(Clone, Debug)]
pub struct Experts {
    pub kind: Kind,
    pub tokens: usize,
    pub choices: usize,
    pub experts: usize,
    /// Rows of the weights of an expert.
    pub n: Vec<usize>,
    pub k: usize,
    pub bias: bool,
    /// Whether every choice has a row of x, or every token.
    pub per_choice: bool,
}

impl Experts {
    pub fn new(kind: Kind, tokens: usize, choices: usize, experts: usize, n: &[usize], k: usize) -> Self {
        Experts { kind, tokens, choices, experts, n: n.into(), k, bias: false, per_choice: false }
    }
}

/// The operands of an [`Experts`].
pub struct Operands {
    pub spec: Experts,
    x: Vec<f32>,
    ids: Vec<i64>,
    /// By expert, then by segment.
    weights: Vec<Vec<Weight>>,
    biases: Vec<Vec<Vec<f32>>>,
    scratch: Scratch,
    groups: Groups,
}

impl Operands {
    pub fn new(spec: Experts) -> Self {
        let mut r = Random(31);
        let all = spec.tokens * spec.choices;
        let x = r.vec(if spec.per_choice { all } else { spec.tokens } * spec.k);
        // The last expert gets nothing if there are several, the first more than its share.
        let ids =
            (0..all).map(|_| (r.next() % spec.experts as u64).min(r.next() % spec.experts as u64) as i64).collect();
        let weights =
            (0..spec.experts).map(|_| spec.n.iter().map(|n| spec.kind.weight(&mut r, *n, spec.k)).collect()).collect();
        let biases = (0..spec.experts).map(|_| spec.n.iter().map(|&n| r.vec(n)).collect()).collect();
        let scratch = Scratch::with_capacity(all, spec.k);
        let groups = Groups::with_capacity(all, spec.experts);
        Operands { spec, x, ids, weights, biases, scratch, groups }
    }

    pub fn width(&self) -> usize {
        self.spec.n.iter().sum()
    }

    pub fn outputs(&self) -> usize {
        self.spec.tokens * self.spec.choices * self.width()
    }

    fn segments<'a>(weights: &'a [Weight], biases: &'a [Vec<f32>], spec: &Experts) -> Vec<Segment<'a>> {
        let mut out_offset = 0;
        let one = |(w, (b, &n)): (&'a Weight, (&'a Vec<f32>, &usize))| {
            out_offset += n;
            let bias = spec.bias.then_some(&b[..]);
            Segment { weight: w.view(), bias, n, out_offset: out_offset - n, activation: None }
        };
        weights.iter().zip(biases.iter().zip(&spec.n)).map(one).collect()
    }

    fn x_rows(&self, tokens: Range<usize>) -> Rows<'_> {
        let each = if self.spec.per_choice { self.spec.choices } else { 1 };
        let k = self.spec.k;
        Rows::dense(&self.x[tokens.start * each * k..], tokens.len() * each, k)
    }

    /// Runs some tokens.
    pub fn run(&mut self, cpu: &On<'_>, tokens: Range<usize>, out: &mut [f32]) {
        let choices = self.spec.choices;
        let ids = &self.ids[tokens.start * choices..tokens.end * choices];
        self.groups.sort(ids, self.spec.experts).unwrap();
        let (weights, biases, spec) = (&self.weights, &self.biases, &self.spec);
        let segments = |e: usize| Self::segments(&weights[e], &biases[e], spec);
        let rows = RowsMut::dense(out, tokens.len() * choices, self.width());
        let each = if self.spec.per_choice { choices } else { 1 };
        let x = Rows::dense(&self.x[tokens.start * each * self.spec.k..], tokens.len() * each, self.spec.k);
        let groups = (&self.groups, ids, self.spec.experts);
        grouped_linear(cpu, &mut self.scratch, x, groups, &segments, self.spec.kind.compute(), rows).unwrap();
    }

    /// All choices, one by one.
    pub fn by_plain_linears(&mut self, cpu: &On<'_>) -> Vec<f32> {
        let width = self.width();
        let mut out = vec![0.0; self.outputs()];
        let mut scratch = Scratch::with_capacity(1, self.spec.k);
        for (choice, to) in out.chunks_exact_mut(width).enumerate() {
            let e = self.ids[choice] as usize;
            let segments = Self::segments(&self.weights[e], &self.biases[e], &self.spec);
            let all = self.x_rows(0..self.spec.tokens);
            let row = if self.spec.per_choice { choice } else { choice / self.spec.choices };
            let x = Rows::dense(&all.data[row * self.spec.k..], 1, self.spec.k);
            let to = RowsMut::dense(to, 1, width);
            linear(cpu, &mut scratch, x, &segments, self.spec.kind.compute(), Epilogue::None, to).unwrap();
        }
        out
    }

    fn reference(&self) -> Vec<Expected> {
        let mut out = vec![];
        let all = self.x_rows(0..self.spec.tokens);
        for (choice, &e) in self.ids.iter().enumerate() {
            let row = if self.spec.per_choice { choice } else { choice / self.spec.choices };
            let x = self.spec.kind.rounded(&all.data[row * self.spec.k..][..self.spec.k]);
            for (s, &n) in self.spec.n.iter().enumerate() {
                for column in 0..n {
                    let mut y = Expected { value: 0.0, scale: 1e-6 };
                    for (i, &x) in x.iter().enumerate() {
                        let product = x * self.weights[e as usize][s].at(column * self.spec.k + i);
                        y.value += product;
                        y.scale += product.abs();
                    }
                    if self.spec.bias {
                        y.value += f64::from(self.biases[e as usize][s][column]);
                        y.scale += 1.0;
                    }
                    out.push(y);
                }
            }
        }
        out
    }
}

fn case(spec: Experts) -> Case {
    let Experts { kind, tokens, choices, experts, n, k, bias, per_choice } = spec.clone();
    let mut operands = Operands::new(spec);
    let shared = std::rc::Rc::new(Operands::new(operands.spec.clone()));
    let mut used = operands.ids.clone();
    used.sort_unstable();
    used.dedup();
    let width = operands.width();
    Case {
        name: format!("grouped_linear/{kind:?}/t{tokens}x{choices}of{experts}/k{k}/n{n:?}/{bias}/{per_choice}")
            .replace(' ', ""),
        tolerance: 1e-6,
        flops: 2.0 * (tokens * choices * k * width) as f64,
        bytes: (used.len() * width * k) as f64 * kind.element() + (4 * tokens * choices * (k + width)) as f64,
        outputs: operands.outputs(),
        run: Box::new(move |cpu, out| operands.run(cpu, 0..tokens, out)),
        reference: Box::new(move || shared.reference()),
    }
}

pub fn test_cases() -> Vec<Case> {
    let mut specs = vec![];
    for kind in Kind::ALL {
        for (tokens, choices, experts) in [(0, 2, 3), (1, 1, 1), (1, 2, 4), (3, 2, 8), (40, 3, 4), (100, 1, 2)] {
            specs.push(Experts::new(kind, tokens, choices, experts, &[17], 67));
            specs.push(Experts { per_choice: true, ..Experts::new(kind, tokens, choices, experts, &[5, 12, 3], 64) });
        }
        specs.push(Experts { bias: true, ..Experts::new(kind, 9, 2, 3, &[9, 4], 40) });
        // More than the threads' threshold for packing, and several blocks of rows.
        specs.push(Experts { bias: true, per_choice: true, ..Experts::new(kind, 75, 2, 2, &[6], 1100) });
    }
    specs.into_iter().map(case).collect()
}

pub fn bench_cases() -> Vec<Timed> {
    let mut all = vec![];
    let timed = |what: &str, spec: Experts| {
        let name = format!("grouped_linear/{:?}/{what}/m{}", spec.kind, spec.tokens);
        Timed::new(name, move || case(spec))
    };
    // Gate and up, then down, of a model like Qwen3-30B-A3B.
    for tokens in [1, 16, 256] {
        for kind in [Kind::Bf16, Kind::Bf16Dot] {
            all.push(timed("gate_up", Experts::new(kind, tokens, 8, 128, &[768, 768], 2048)));
            let down = Experts { per_choice: true, ..Experts::new(kind, tokens, 8, 128, &[2048], 768) };
            all.push(timed("down", down));
        }
    }
    all
}
