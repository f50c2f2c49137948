//! Times the shapes of `tests/table` and holds them against what this machine can do, measured in the same run:
//!
//!     cargo bench -p kernels -- <part of a name>
//!     HOST_BENCH_ISA=portable HOST_BENCH_THREADS=1 cargo bench -p kernels -- linear/Int4
//!
//! Beside criterion's own lines each case prints its median as bytes read and written a second and, for matrix products and
//! attention, as operations a second, both with the share of the ceiling. With one thread the time in which it runs is what
//! counts; with more, nothing else should run on the machine meanwhile.

mod ceiling;
#[path = "../../tests/table/mod.rs"]
mod table;

use std::time::Duration;

use ceiling::{Ceilings, clock};
use criterion::{Criterion, criterion_group, criterion_main};
use kernels::cpu::{Cpu, CpuOptions, KernelError, default_threads};
use table::Timed;

/// The processor as the environment wants it used.
fn cpu() -> Result<Cpu, KernelError> {
    let variable = |name| std::env::var(name).ok();
    let threads = variable("HOST_BENCH_THREADS").and_then(|t| t.parse().ok()).unwrap_or_else(default_threads);
    let isa = variable("HOST_BENCH_ISA").map(|isa| isa.parse()).transpose()?;
    Cpu::with_options(CpuOptions { threads, isa, pin: false })
}

fn all(criterion: &mut Criterion) {
    let cpu = match cpu() {
        Ok(cpu) => cpu,
        Err(error) => return eprintln!("{error}"),
    };
    let ceilings = Ceilings::measure(&cpu);
    println!("{}, {} threads; {ceilings}", cpu.isa(), cpu.threads());
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for Timed { name, make } in table::bench_cases() {
        let (mut make, mut case, mut seconds) = (Some(make), None, vec![]);
        group.bench_function(&name, |bencher| {
            // Called only if the name was asked for.
            let case = case.get_or_insert_with(|| make.take().expect("is made once")());
            let mut out = vec![0.0; case.outputs];
            bencher.iter_custom(|calls| {
                let start = clock(cpu.threads());
                for _ in 0..calls {
                    (case.run)(&table::On::Cpu(&cpu), &mut out);
                }
                let spent = clock(cpu.threads()) - start;
                seconds.push(spent.as_secs_f64() / calls as f64);
                spent
            });
        });
        if let Some(case) = case {
            seconds.sort_by(f64::total_cmp);
            let median = seconds[seconds.len() / 2];
            println!("{name}: {:.3} ms, {}", median * 1e3, ceilings.rates(&name, case.bytes, case.flops, median));
        }
    }
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
