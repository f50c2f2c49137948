//! The order of tokens, the nucleus and the draw over rows as long as a vocabulary. Knows no parameters and no requests;
//! called by the sampler. The passes over rows are those of [`kernels::cpu::logits`].
//!
//! Everything gives the same result on every machine: random numbers are counted, and probabilities are whole numbers
//! wherever they are added up, so that the order of adding has no part in it.

use kernels::cpu::logits::{self, whole};

/// With more tokens the sum of probabilities could overflow.
pub(super) const MAX_ROW: usize = 1 << 23;
const LANES: usize = 16;

/// How many come before `index` if the largest come first, and of equal ones the first.
pub(super) fn rank(row: &[f32], index: usize) -> u32 {
    let (larger, equal) = logits::count(row, row[index], index);
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

/// Sets to 0 all weights but those of the fewest largest numbers that hold at least `share` of the weight. `best` is the
/// largest number; one that is less by `reach` or more has no weight in whole numbers.
///
/// Halves the range of numbers in which the last of them lies until few numbers are in it. No branch depends on a single
/// number, as none could be foretold: a pass over the row costs less than wrong guesses.
pub(super) fn keep_nucleus(
    row: &[f32],
    (best, reach): (f32, f32),
    weights: &mut [f32],
    share: f32,
    keys: &mut Vec<u64>,
) {
    const HALVINGS: usize = 8;
    let (mut low, mut high) = ((best - reach).max(logits::min(row)), best.next_up());
    let (total, mut above) = (logits::mass(weights), 0);
    let wanted = ((total as f64 * f64::from(share)).ceil() as u64).clamp(1, total);
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        match logits::mass_from(row, weights, middle) {
            enough if enough >= wanted => low = middle,
            less => (high, above) = (middle, less),
        }
    }
    keys.clear();
    logits::places_within(row, low, high, |at| keys.push(key(row, at)));
    let at = index(last_of(keys, wanted - above, |at| whole(weights[at])));
    // Of equal ones the first stay.
    let (first, rest) = weights.split_at_mut(at + 1);
    logits::keep_from(&row[..=at], first, row[at]);
    logits::keep_above(&row[at + 1..], rest, row[at]);
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
    let parts: Vec<u64> = weights.chunks(PART).map(logits::mass).collect();
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

    /// Against sorting, with ties, rows that are flat, steep and all equal, and shares from almost nothing to almost all.
    #[test]
    fn the_nucleus_is_the_shortest_beginning_that_holds_its_share() {
        let mut state = 1u64;
        let mut uniform = || {
            state = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        let mut keys = vec![];
        for case in 0..400 {
            let len = [1, 2, 15, 16, 17, 300, 5000][case % 7];
            let spread = [0.0, 1e-6, 0.1, 3.0, 40.0, 300.0][case % 6];
            let temperature = [1.0, 0.01, 1e-9, 7.0][case % 4];
            let mut row: Vec<f32> = (0..len).map(|_| uniform() * spread).collect();
            if case % 3 == 0 {
                row.iter_mut().for_each(|x| *x = x.round());
            }
            if case % 5 == 0 && len > 2 {
                row[len / 2] = f32::NEG_INFINITY;
            }
            let best = logits::max(&row).expect("finite");
            for share in [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0 - 1e-7] {
                let mut weights = vec![];
                logits::exp_all(&row, best, temperature, &mut weights);
                let mut order: Vec<usize> = (0..len).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
                let total: u64 = weights.iter().map(|&weight| whole(weight)).sum();
                let wanted = ((total as f64 * f64::from(share)).ceil() as u64).clamp(1, total);
                let mut expected = vec![0.0; len];
                let mut held = 0;
                for at in order {
                    if held < wanted {
                        expected[at] = weights[at];
                    }
                    held += whole(weights[at]);
                }
                keep_nucleus(&row, (best, super::super::REACH * temperature), &mut weights, share, &mut keys);
                assert_eq!(weights, expected, "case {case}, share {share}");
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
