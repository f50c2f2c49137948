//! Takes the rows of a step on several threads: those of the executor, which rests meanwhile. A row costs its own request's
//! time only, and what a request gets does not depend on which thread takes its row. Called by the step loop.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use kernels::cpu::Pool;

use super::sampler::Sampler;

/// With fewer numbers in all rows together, one thread has taken them before another has woken up.
const WORTH_SHARING: usize = 1 << 16;

/// Threads, and working memory for each.
pub(super) struct Crew {
    pool: Option<Arc<Pool>>,
    samplers: Vec<Mutex<Sampler>>,
}

impl Crew {
    /// Without a pool, the caller does everything.
    pub(super) fn new(pool: Option<Arc<Pool>>) -> Self {
        let threads = pool.as_ref().map_or(1, |pool| pool.threads());
        Self { pool, samplers: (0..threads).map(|_| Mutex::default()).collect() }
    }

    /// Calls `take` once with each of `turns`, which have `numbers` logits together.
    pub(super) fn take_all<T: Send>(
        &self,
        turns: &mut [T],
        numbers: usize,
        take: impl Fn(&mut T, &mut Sampler) + Sync,
    ) {
        // After a panic working memory is as good as new: every use begins by clearing it.
        let sampler = |part: usize| self.samplers[part].lock().unwrap_or_else(PoisonError::into_inner);
        match &self.pool {
            Some(pool) if turns.len() > 1 && numbers >= WORTH_SHARING => {
                // Turns take unequal times, so each thread takes the next one that is left. The locks are never waited for.
                let turns: Vec<Mutex<&mut T>> = turns.iter_mut().map(Mutex::new).collect();
                let next = AtomicUsize::new(0);
                pool.run(&|part, _| {
                    let mut sampler = sampler(part);
                    while let Some(turn) = turns.get(next.fetch_add(1, Relaxed)) {
                        take(&mut turn.lock().unwrap_or_else(PoisonError::into_inner), &mut sampler);
                    }
                });
            }
            _ => {
                let mut sampler = sampler(0);
                turns.iter_mut().for_each(|turn| take(turn, &mut sampler));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_turn_is_taken_once_on_any_number_of_threads() {
        for threads in [None, Some(1), Some(2), Some(5)] {
            let pool = threads.map(|threads| Arc::new(Pool::new(threads, false).expect("a pool")));
            let crew = Crew::new(pool);
            for (count, numbers) in [(0, 0), (1, WORTH_SHARING), (7, WORTH_SHARING), (7, 0), (300, usize::MAX)] {
                let mut turns: Vec<usize> = (0..count).collect();
                crew.take_all(&mut turns, numbers, |turn, _| *turn += 1000);
                assert_eq!(turns, (1000..1000 + count).collect::<Vec<_>>(), "{threads:?} threads, {count} turns");
            }
        }
    }

    #[test]
    fn a_panic_in_one_turn_comes_out_and_the_next_step_works() {
        let crew = Crew::new(Some(Arc::new(Pool::new(3, false).expect("a pool"))));
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            crew.take_all(&mut [1, 2, 3, 4], WORTH_SHARING, |turn, _| assert_ne!(*turn, 3));
        }));
        assert!(panics.is_err());
        let mut turns = [1, 2, 3];
        crew.take_all(&mut turns, WORTH_SHARING, |turn, _| *turn *= 2);
        assert_eq!(turns, [2, 4, 6]);
    }
}
