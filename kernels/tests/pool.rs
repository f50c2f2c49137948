//! The thread pool under load: many runs, uneven work, panics, several callers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use kernels::cpu::{KernelError, Pool, split};

#[test]
fn every_part_runs_once_in_thousands_of_runs() {
    for threads in [1, 2, 3, 7] {
        let pool = Pool::new(threads, threads == 2).unwrap();
        assert_eq!(pool.threads(), threads);
        let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        for run in 0..5000 {
            pool.run(&|part, parts| {
                assert_eq!(parts, threads);
                counts[part].fetch_add(1, Relaxed);
            });
            // All parts have ended when `run` returns.
            assert!(counts.iter().all(|c| c.load(Relaxed) == run + 1));
        }
    }
}

#[test]
fn uneven_work_and_pauses_long_enough_to_park() {
    let pool = Pool::new(4, false).unwrap();
    let total = AtomicUsize::new(0);
    for run in 0..60 {
        if run % 3 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        pool.run(&|part, _| {
            if part == run % 4 {
                std::thread::sleep(Duration::from_micros(300));
            }
            total.fetch_add(part, Relaxed);
        });
    }
    assert_eq!(total.load(Relaxed), 60 * 6);
}

#[test]
fn a_panic_in_any_part_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(3, false).unwrap();
    for run in 0..300 {
        let done = AtomicUsize::new(0);
        let guilty = run % 4;
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|part, _| {
                if part == guilty {
                    std::panic::resume_unwind(Box::new(format!("part {part}")));
                }
                done.fetch_add(1, Relaxed);
            });
        }));
        if guilty == 3 {
            assert!(result.is_ok());
            assert_eq!(done.load(Relaxed), 3);
        } else {
            let message = result.unwrap_err();
            assert_eq!(message.downcast_ref::<String>(), Some(&format!("part {guilty}")));
            assert_eq!(done.load(Relaxed), 2);
        }
    }
    // All parts at once: one of the panics arrives.
    assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&|_, _| std::panic::resume_unwind(Box::new(1))))).is_err());
    let ran = AtomicUsize::new(0);
    pool.run(&|_, _| {
        ran.fetch_add(1, Relaxed);
    });
    assert_eq!(ran.load(Relaxed), 3);
}

#[test]
fn a_nested_run_is_inline() {
    let pool = Pool::new(2, false).unwrap();
    let inner = AtomicUsize::new(0);
    pool.run(&|_, _| {
        pool.run(&|part, parts| {
            assert_eq!((part, parts), (0, 1));
            inner.fetch_add(1, Relaxed);
        });
    });
    assert_eq!(inner.load(Relaxed), 2);
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = Pool::new(3, false).unwrap();
    let (running, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.run(&|_, _| {
                        assert!(running.fetch_add(1, Relaxed) < 3);
                        total.fetch_add(1, Relaxed);
                        running.fetch_sub(1, Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.load(Relaxed), 4 * 500 * 3);
}

#[test]
fn pools_come_and_go() {
    for i in 0..200 {
        let pool = Pool::new(1 + i % 5, false).unwrap();
        if i % 2 == 0 {
            pool.run(&|_, _| {});
        }
    }
    assert!(matches!(Pool::new(0, false), Err(KernelError::Option { argument: "threads", .. })));
}

#[test]
fn split_covers_everything_in_order() {
    for n in [0, 1, 2, 7, 100, 101] {
        for parts in [1, 2, 3, 8, 200] {
            let ranges: Vec<_> = (0..parts).map(|p| split(n, p, parts)).collect();
            let all: Vec<usize> = ranges.iter().cloned().flatten().collect();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            let sizes = ranges.iter().map(ExactSizeIterator::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        }
    }
}
