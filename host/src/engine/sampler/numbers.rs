//! The arithmetic of sampling over rows as long as a vocabulary: one pass each, written so that the
//! compiler vectorises it. Knows no parameters and no requests; called by the sampler.
//!
//! Everything gives the same result on every machine: `exp` is our own, random numbers are counted, and
//! probabilities are whole numbers wherever they are added up, so that the order of adding has no part in it.

/// With more tokens the sum of probabilities could overflow.
pub(super) const MAX_ROW: usize = 1 << 23;
const LANES: usize = 16;

/// The largest number of a row (minus infinity for none), or the first that is NaN or infinite.
pub(super) fn max(row: &[f32]) -> Result<f32, usize> {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut fine = [true; LANES];
    let mut take = |part: &[f32]| {
        for ((best, fine), &x) in best.iter_mut().zip(&mut fine).zip(part) {
            *best = if x > *best { x } else { *best };
            *fine &= x < f32::INFINITY; // false for NaN too
        }
    };
    let (parts, rest) = row.as_chunks::<LANES>();
    parts.iter().for_each(|part| take(part));
    take(rest);
    if fine.contains(&false) {
        return Err(row.iter().position(|&x| x.is_nan() || x == f32::INFINITY).unwrap_or_default());
    }
    Ok(best.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The first place of a number that is in the row. A part at a time, which the compiler vectorises, unlike a search that may
/// end anywhere.
pub(super) fn first(row: &[f32], number: f32) -> usize {
    const PART: usize = 64;
    let holds = |part: &[f32]| part.iter().fold(false, |any, &x| any | (x == number));
    let start = row.chunks(PART).position(holds).unwrap_or_default() * PART;
    start + row[start..].iter().position(|&x| x == number).unwrap_or_default()
}

/// `exp((x - max) / temperature)` of each.
pub(super) fn exp_all(row: &[f32], max: f32, temperature: f32, out: &mut Vec<f32>) {
    out.clear();
    out.extend(row.iter().map(|&x| exp((x - max) / temperature)));
}

/// exp(x) for x <= 0, to about 2e-7. Below -87 it is 1e-38.
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

/// Sum of positive numbers, always in the same order.
pub(super) fn sum(row: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let (parts, rest) = row.as_chunks::<LANES>();
    for part in parts {
        for (sum, &x) in sums.iter_mut().zip(part) {
            *sum += f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
}

/// How many come before `index` if the largest come first, and of equal ones the first.
pub(super) fn rank(row: &[f32], index: usize) -> u32 {
    let own = row[index];
    let larger: u32 = row.iter().map(|&x| u32::from(x > own)).sum();
    let equal: u32 = row[..index].iter().map(|&x| u32::from(x == own)).sum();
    larger + equal
}

/// Orders places of a row: smaller keys hold larger numbers, and of equal ones the first.
pub(super) fn key(row: &[f32], index: usize) -> u64 {
    let bits = (row[index] + 0.0).to_bits(); // -0 becomes 0
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | index as u64
}

/// The place that a key is for.
pub(super) fn index(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

/// The keys of the `count` largest numbers, in no order; fewer if the others are minus infinity. Collects
/// what beats the smallest of the largest so far, and cuts back whenever twice as many are there.
pub(super) fn largest(row: &[f32], count: usize, keys: &mut Vec<u64>) {
    keys.clear();
    if count == 0 {
        return;
    }
    let room = count.saturating_mul(2).max(256);
    let mut least = f32::NEG_INFINITY;
    for (part, numbers) in row.chunks(LANES).enumerate() {
        // Of equal ones the first stay, so an equal number is of no use.
        if !numbers.iter().fold(false, |any, &x| any | (x > least)) {
            continue;
        }
        for at in 0..numbers.len() {
            if numbers[at] > least {
                keys.push(key(row, part * LANES + at));
            }
        }
        if keys.len() + LANES > room {
            keys.select_nth_unstable(count - 1);
            keys.truncate(count);
            least = row[index(keys[count - 1])];
        }
    }
    if keys.len() > count {
        keys.select_nth_unstable(count - 1);
        keys.truncate(count);
    }
}

/// A weight from 0 to 1 in whole numbers of 2^-40; what is less than half of one is never drawn.
fn whole(weight: f32) -> u64 {
    // The last bit of numbers from 4096 to 8191 is worth 2^-40. Vectorised, unlike a cast.
    const BASE: f64 = 4096.0;
    (f64::from(weight) + BASE).to_bits() - BASE.to_bits()
}

/// Sets to 0 all weights but those of the fewest largest numbers that hold at least `share` of the weight.
pub(super) fn keep_nucleus(row: &[f32], weights: &mut [f32], share: f32, keys: &mut Vec<u64>) {
    let total: u64 = weights.iter().map(|&weight| whole(weight)).sum();
    let wanted = ((total as f64 * f64::from(share)).ceil() as u64).clamp(1, total);
    // All weights below this together are less than what may be left out: few remain to be ordered.
    let spare = ((total - wanted) / weights.len() as u64).max(1);
    let least = spare as f32 * (1.0 - 1e-6) / (1u64 << 40) as f32;
    keys.clear();
    for (part, some) in weights.chunks(LANES).enumerate() {
        if some.iter().fold(false, |any, &weight| any | (weight >= least)) {
            let likely = (0..some.len()).filter(|&at| some[at] >= least);
            keys.extend(likely.map(|at| key(row, part * LANES + at)));
        }
    }
    let at = index(last_of(keys, wanted, |at| whole(weights[at])));
    let last = row[at];
    for (weight, &x) in weights.iter_mut().zip(row) {
        *weight = if x < last { 0.0 } else { *weight };
    }
    for (weight, &x) in weights.iter_mut().zip(row).skip(at + 1) {
        *weight = if x == last { 0.0 } else { *weight };
    }
}

/// The last key of the shortest beginning (in order) that holds `wanted`, which all of them do. Halves the
/// range that it lies in, like quickselect.
fn last_of(keys: &mut [u64], mut wanted: u64, weight: impl Fn(usize) -> u64) -> u64 {
    let mut range = keys;
    while range.len() > 1 {
        let middle = range.len() / 2;
        range.select_nth_unstable(middle);
        let (first, second) = range.split_at_mut(middle);
        let held: u64 = first.iter().map(|&key| weight(index(key))).sum();
        if held >= wanted {
            range = first;
        } else {
            wanted -= held;
            range = second;
        }
    }
    range[0]
}

/// The place at `random` (as a fraction of 2^64) of the summed weights, in order.
pub(super) fn draw(weights: &[f32], random: u64) -> usize {
    const PART: usize = 256;
    let mass = |part: &[f32]| part.iter().map(|&weight| whole(weight)).sum::<u64>();
    let parts: Vec<u64> = weights.chunks(PART).map(mass).collect();
    let total: u64 = parts.iter().sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let mut start = 0;
    for part in parts {
        if left < part {
            break;
        }
        left -= part;
        start += PART;
    }
    for (at, &weight) in weights.iter().enumerate().skip(start) {
        if left < whole(weight) {
            return at;
        }
        left -= whole(weight);
    }
    // Not reached: `left` began below the sum.
    weights.len() - 1
}

/// A uniform number for a position of a sequence: splitmix64's mixer over both.
pub(super) fn random(seed: u64, position: u64) -> u64 {
    mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ position.wrapping_mul(0xD605_BBB5_8C8A_BBC9))
}

/// splitmix64's mixer.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
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

    #[test]
    fn keys_order_numbers_and_then_places() {
        let row = [1.0, -0.0, 0.0, 1.0, -3.0, f32::NEG_INFINITY, 1e-40, 2.5];
        let mut keys: Vec<u64> = (0..row.len()).map(|at| key(&row, at)).collect();
        keys.sort_unstable();
        assert_eq!(keys.into_iter().map(index).collect::<Vec<_>>(), [7, 0, 3, 6, 1, 2, 4, 5]);
        assert_eq!(rank(&row, 3), 2);
        assert_eq!(rank(&row, 2), 5);
    }
}
