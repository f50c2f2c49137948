//! The arithmetic of sampling over rows as long as a vocabulary: single passes over slices, plain Rust that the compiler
//! vectorises, compiled for AVX2 too. It knows no parameters and no order of tokens; called by the engine's sampler.
//!
//! Unlike the other kernels, everything here gives the same bits with every instruction set: nothing is contracted to
//! fused multiply-adds, sums have one order, and probabilities are whole numbers wherever they are added up.

const LANES: usize = 16;

/// Defines functions that run as compiled for AVX2 where the processor has it.
macro_rules! passes {
    ($($(#[$meta:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $visibility fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}

passes! {
    /// The largest number of a row (minus infinity for none); the first that is NaN or infinite is an error.
    pub fn max(row: &[f32]) -> Result<f32, usize> {
        let mut best = [f32::NEG_INFINITY; LANES];
        let mut fine = [true; LANES];
        let (parts, rest) = row.as_chunks::<LANES>();
        for part in parts {
            for lane in 0..LANES {
                best[lane] = if part[lane] > best[lane] { part[lane] } else { best[lane] };
                fine[lane] &= part[lane] < f32::INFINITY; // false for NaN too
            }
        }
        if fine.contains(&false) || !rest.iter().all(|&x| x < f32::INFINITY) {
            return Err(row.iter().position(|&x| x.is_nan() || x == f32::INFINITY).unwrap_or_default());
        }
        Ok(best.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &x| best.max(x)))
    }

    /// The smallest number of a row without NaN (infinity for none).
    pub fn min(row: &[f32]) -> f32 {
        let mut least = [f32::INFINITY; LANES];
        let (parts, rest) = row.as_chunks::<LANES>();
        for part in parts {
            for lane in 0..LANES {
                least[lane] = if part[lane] < least[lane] { part[lane] } else { least[lane] };
            }
        }
        least.iter().chain(rest).fold(f32::INFINITY, |least, &x| least.min(x))
    }

    /// The first place of a number that is in the row. A part at a time, which the compiler vectorises, unlike a search
    /// that may end anywhere.
    pub fn first(row: &[f32], number: f32) -> usize {
        const PART: usize = 64;
        let start = row.chunks(PART).position(|part| part.iter().fold(false, |any, &x| any | (x == number)));
        let start = start.unwrap_or_default() * PART;
        start + row[start..].iter().position(|&x| x == number).unwrap_or_default()
    }

    /// `exp((x - max) / temperature)` of each: weights from 0 to 1.
    pub fn exp_all(row: &[f32], max: f32, temperature: f32, out: &mut Vec<f32>) {
        out.resize(row.len(), 0.0);
        out.iter_mut().zip(row).for_each(|(out, &x)| *out = exp((x - max) / temperature));
    }

    /// Sum of positive numbers, always in the same order.
    pub fn sum(row: &[f32]) -> f64 {
        let mut sums = [0f64; LANES];
        let (parts, rest) = row.as_chunks::<LANES>();
        for part in parts {
            for (sum, &x) in sums.iter_mut().zip(part) {
                *sum += f64::from(x);
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
    }

    /// How many numbers are larger than `number`, and how many of the first `before` are equal to it.
    pub fn count(row: &[f32], number: f32, before: usize) -> (u32, u32) {
        (row.iter().map(|&x| u32::from(x > number)).sum(), row[..before].iter().map(|&x| u32::from(x == number)).sum())
    }

    /// The sum of [`whole`] weights.
    pub fn mass(weights: &[f32]) -> u64 {
        weights.iter().map(|&weight| whole(weight)).sum()
    }

    /// The sum of [`whole`] weights whose numbers in `row` are at least `least`.
    pub fn mass_from(row: &[f32], weights: &[f32], least: f32) -> u64 {
        row.iter().zip(weights).map(|(&x, &weight)| whole(if_true(x >= least, weight))).sum()
    }

    /// Sets weights to 0 whose numbers in `row` are less than `least`.
    pub fn keep_from(row: &[f32], weights: &mut [f32], least: f32) {
        // A product, of which the compiler cannot make a (slow) masked load or store.
        weights.iter_mut().zip(row).for_each(|(weight, &x)| *weight *= if x >= least { 1.0 } else { 0.0 });
    }

    /// Sets weights to 0 whose numbers in `row` are not more than `bound`.
    pub fn keep_above(row: &[f32], weights: &mut [f32], bound: f32) {
        weights.iter_mut().zip(row).for_each(|(weight, &x)| *weight *= if x > bound { 1.0 } else { 0.0 });
    }

    /// Calls `act` with the places of numbers from `low` to less than `high`, in order.
    fn each_within(row: &[f32], low: f32, high: f32, act: &mut dyn FnMut(usize)) {
        for (part, some) in row.chunks(LANES).enumerate() {
            if some.iter().fold(false, |any, &x| any | ((x >= low) & (x < high))) {
                (0..some.len()).filter(|&at| some[at] >= low && some[at] < high).for_each(|at| act(part * LANES + at));
            }
        }
    }
}

/// The places of numbers from `low` to less than `high`, in order, for each of which `act` is called.
pub fn places_within(row: &[f32], low: f32, high: f32, mut act: impl FnMut(usize)) {
    each_within(row, low, high, &mut act);
}

/// A weight from 0 to 1 in whole numbers of 2^-40; what is less than half of one is never drawn.
#[inline(always)]
pub fn whole(weight: f32) -> u64 {
    // The last bit of numbers from 4096 to 8191 is worth 2^-40. Vectorised, unlike a cast.
    const BASE: f64 = 4096.0;
    (f64::from(weight) + BASE).to_bits() - BASE.to_bits()
}

/// `x` or 0. Without a branch, which the compiler makes of the obvious way to write it, and which could not be foretold.
#[inline(always)]
fn if_true(condition: bool, x: f32) -> f32 {
    f32::from_bits(x.to_bits() & u32::from(condition).wrapping_neg())
}

/// exp(x) for x <= 0, to about 2e-7. Below -87 it is 1e-38.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding this rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    // ln(2) in two parts: the first times a small whole number is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = x - whole * LN2_HIGH - whole * LN2_LOW;
    let mut poly = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        poly = poly * rest + coefficient;
    }
    let poly = poly * rest * rest + rest + 1.0;
    poly * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in 0..870_000 {
            let x = -1e-4 * i as f32;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / expected - 1.0).abs() < 3e-7, "exp({x}) = {got}, expected {expected}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn first_is_the_first_of_equal_ones_wherever_it_is() {
        for len in [1, 63, 64, 65, 300] {
            for at in (0..len).step_by(7) {
                let mut row = vec![-1.0; len];
                row[at..].fill(2.5);
                assert_eq!(first(&row, 2.5), at);
            }
        }
    }

    /// As compiled for AVX2 (where there is one) and by their definitions, for lengths around the number of lanes.
    #[test]
    fn passes_are_what_they_say() {
        for len in [0, 1, 15, 16, 17, 40, 129] {
            let row: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0).collect();
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&row), Ok(best));
            assert_eq!(min(&row), row.iter().copied().fold(f32::INFINITY, f32::min));
            let mut weights = vec![7.0; 3];
            exp_all(&row, best, 1.7, &mut weights);
            assert_eq!(weights, row.iter().map(|&x| exp((x - best) / 1.7)).collect::<Vec<_>>());
            assert!((sum(&weights) - weights.iter().map(|&x| f64::from(x)).sum::<f64>()).abs() < 1e-9);
            assert_eq!(mass(&weights), weights.iter().map(|&weight| whole(weight)).sum::<u64>());
            for bound in [-9.0, -1.5, 0.0, 0.125, 5.0, 9.0] {
                let (from, above) = (|x: f32| x >= bound, |x: f32| x > bound);
                let kept = |keep: &dyn Fn(f32) -> bool| -> Vec<f32> {
                    row.iter().zip(&weights).map(|(&x, &weight)| if keep(x) { weight } else { 0.0 }).collect()
                };
                assert_eq!(mass_from(&row, &weights, bound), mass(&kept(&from)));
                let (mut at_least, mut more) = (weights.clone(), weights.clone());
                keep_from(&row, &mut at_least, bound);
                keep_above(&row, &mut more, bound);
                assert_eq!((at_least, more), (kept(&from), kept(&above)));
                let half = len / 2;
                let equal = row[..half].iter().filter(|&&x| x == bound).count();
                assert_eq!(count(&row, bound, half), (row.iter().filter(|&&x| x > bound).count() as u32, equal as u32));
                let mut places = vec![];
                places_within(&row, bound, bound + 2.0, |at| places.push(at));
                let expected = (0..len).filter(|&at| row[at] >= bound && row[at] < bound + 2.0);
                assert_eq!(places, expected.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_first_number_that_is_none_is_found() {
        for at in [0, 15, 16, 38] {
            for broken in [f32::NAN, f32::INFINITY] {
                let mut row = vec![1.0; 39];
                row[at..].fill(broken);
                assert_eq!(max(&row), Err(at));
            }
        }
        assert_eq!(max(&[f32::NEG_INFINITY; 3]), Ok(f32::NEG_INFINITY));
    }
}
