//! The choice of tokens, against a slow one that sorts every row, in f64. For devices only: the CPU's sampler is `host`'s,
//! whose tests compare both, number for number.

use kernels::cuda::{self, Draw, Drawn, View};

use super::{Case, Expected, On, Random};

/// Nothing but the most likely token, or the draw.
pub fn plain(random: u64, temperature: f32) -> Draw {
    Draw {
        random,
        temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        seen: vec![],
    }
}

fn some(random: &mut Random, cols: usize) -> Draw {
    let mut chance = |one_in: u64| random.next().is_multiple_of(one_in);
    let [cool, few, most, least, penalties] = [4, 2, 2, 3, 2].map(&mut chance);
    let mut below = |n: usize| (random.next() % n as u64) as usize;
    let mut seen: Vec<(u32, u32)> = (0..below(6)).map(|_| (below(cols + 2) as u32, below(3) as u32)).collect();
    seen.sort_unstable();
    seen.dedup_by_key(|seen| seen.0);
    let top_k = if few { 1 + below(cols + 2) } else { 0 };
    let unit = |random: &mut Random| f64::from(random.unit()) as f32 * 0.5 + 0.5;
    Draw {
        temperature: if cool { 0.0 } else { 0.2 + 2.0 * unit(random) },
        top_k,
        top_p: if most { 0.05 + 0.95 * unit(random) } else { 1.0 },
        min_p: if least { 0.3 * unit(random) } else { 0.0 },
        repetition_penalty: if penalties { 0.5 + unit(random) } else { 1.0 },
        frequency_penalty: if penalties { 4.0 * random.unit() } else { 0.0 },
        presence_penalty: if penalties { 4.0 * random.unit() } else { 0.0 },
        seen: if penalties { seen } else { vec![] },
        random: random.next(),
    }
}

/// A token; -1 if none is left, -2 - token where that one's logit is not a number.
fn number(drawn: Drawn) -> f32 {
    match drawn {
        Drawn::Token(token) => token as f32,
        Drawn::NothingLeft => -1.0,
        Drawn::NotFinite { token, .. } => -2.0 - token as f32,
    }
}

fn naive(row: &[f32], draw: &Draw) -> Drawn {
    let mut row: Vec<f64> = row.iter().map(|&x| f64::from(x) + 0.0).collect(); // -0 is 0
    if let Some(token) = row.iter().position(|x| x.is_nan() || *x == f64::INFINITY) {
        return Drawn::NotFinite { token, value: row[token] as f32 };
    }
    for &(token, count) in &draw.seen {
        let Some(x) = row.get_mut(token as usize) else { continue };
        let factor = f64::from(draw.repetition_penalty);
        *x = if *x > 0.0 { *x / factor } else { *x * factor };
        if count > 0 {
            *x -= f64::from(draw.frequency_penalty) * f64::from(count) + f64::from(draw.presence_penalty);
        }
    }
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    let best = row[order[0]];
    if best == f64::NEG_INFINITY {
        return Drawn::NothingLeft;
    }
    if draw.temperature == 0.0 {
        return Drawn::Token(order[0] as u32);
    }
    let weight = |at: usize| ((row[at] - best) / f64::from(draw.temperature)).exp();
    order.retain(|&at| weight(at) > 1e-12 && weight(at) >= f64::from(draw.min_p));
    order.truncate(if draw.top_k == 0 { usize::MAX } else { draw.top_k });
    let total: f64 = order.iter().map(|&at| weight(at)).sum();
    let mut held = 0.0;
    order.retain(|&at| {
        let wanted = held < f64::from(draw.top_p) * total;
        held += if wanted { weight(at) } else { 0.0 };
        wanted
    });
    order.sort_unstable();
    let mut left = draw.random as f64 / 2f64.powi(64) * held;
    let place = order.iter().position(|&at| {
        left -= weight(at);
        left < 0.0
    });
    Drawn::Token(order[place.unwrap_or(order.len() - 1)] as u32)
}

/// Rows of `cols` logits, one draw each; the rows lie apart, and are drawn from in another order.
fn case(name: &str, cols: usize, rows: Vec<Vec<f32>>, draws: Vec<Draw>) -> Case {
    let stride = cols + 3;
    let flat: Vec<u8> =
        rows.iter().flat_map(|row| row.iter().copied().chain([f32::NAN; 3])).flat_map(f32::to_ne_bytes).collect();
    let (count, device_draws) = (rows.len(), draws.clone());
    let run = move |on: &On<'_>, out: &mut [f32]| {
        let On::Cuda(cuda) = on else { panic!("the choice of tokens is a device's") };
        let memory = cuda.upload(&flat).unwrap();
        let view = View::<f32>::strided(&memory, 0, count, cols, stride);
        let all: Vec<(usize, &Draw)> = device_draws.iter().enumerate().rev().collect();
        let drawn = cuda::sample(cuda, view, &all).unwrap();
        out.iter_mut().rev().zip(drawn).for_each(|(to, drawn)| *to = number(drawn));
    };
    let reference = move || {
        let value = |(row, draw): (&Vec<f32>, &Draw)| f64::from(number(naive(row, draw)));
        rows.iter().zip(&draws).map(value).map(|value| Expected { value, scale: 1.0 }).collect()
    };
    Case {
        name: format!("sample/{name}/{cols}"),
        tolerance: 0.0,
        flops: (20 * count * cols) as f64,
        bytes: (80 * count * cols) as f64,
        outputs: count,
        run: Box::new(run),
        reference: Box::new(reference),
    }
}

pub fn device_cases() -> Vec<Case> {
    let mut random = Random(77);
    let mut all = vec![];
    for (cols, count) in [(1, 2), (7, 12), (40, 24), (513, 6), (2000, 2)] {
        // Halves, so that equal ones are frequent.
        let row = |random: &mut Random| (0..cols).map(|_| (random.next() % 24) as f32 / 2.0 - 6.0).collect();
        let rows: Vec<Vec<f32>> = (0..count).map(|_| row(&mut random)).collect();
        let draws = (0..count).map(|_| some(&mut random, cols)).collect();
        all.push(case("all_parameters", cols, rows, draws));
    }
    let (none, infinite) = (f32::NEG_INFINITY, f32::INFINITY);
    let odd = vec![
        vec![none, none, none, none],
        vec![0.0, f32::NAN, infinite, 1.0],
        vec![1.0, 2.0, infinite, none],
        vec![none, 3.0, none, 3.0],
        vec![-0.0, 0.0, none, -1.0],
        vec![none, -1e38, 1e38, 0.0],
    ];
    for (name, temperature) in [("greedy_odd", 0.0), ("drawn_odd", 0.7)] {
        let few =
            |i: usize| Draw { top_k: i % 3, top_p: 0.9, ..plain((u64::MAX / 3).wrapping_mul(i as u64), temperature) };
        all.push(case(name, 4, odd.clone(), (0..odd.len()).map(few).collect()));
    }
    all
}
