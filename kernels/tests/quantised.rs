//! Quantised weights beyond the table: the largest codes there are, values that are no numbers, and what is refused.

use kernels::cpu::{
    CodeRow, Compute, Cpu, CpuOptions, Epilogue, Isa, KernelError, QuantCodes, QuantFormat, Quantised, Rows, RowsMut,
    Scratch, Segment, WeightRef, embed, linear,
};

fn cpus() -> Vec<Cpu> {
    let cpu = |isa| Cpu::with_options(CpuOptions { threads: 2, isa: Some(isa), pin: false }).unwrap();
    Isa::available().into_iter().map(cpu).collect()
}

fn formats() -> Vec<QuantFormat> {
    let mut all = vec![QuantFormat::INT8];
    for group in [32, 64, 128] {
        all.extend([QuantFormat::int8(group), QuantFormat::int4(group, false), QuantFormat::int4(group, true)]);
    }
    all
}

fn product(cpu: &Cpu, w: &Quantised, x: &[f32], rows: usize) -> Result<Vec<f32>, KernelError> {
    let (n, k) = (w.view().n(), w.view().k());
    let mut out = vec![0.0; rows * n];
    let weight = WeightRef::Quantised(w.view());
    let segment = Segment { weight, bias: None, n, out_offset: 0, activation: None };
    let mut scratch = Scratch::with_capacity(rows, k);
    let (x, to) = (Rows::dense(x, rows, k), RowsMut::dense(&mut out, rows, n));
    linear(cpu, &mut scratch, x, &[segment], Compute::Int8, Epilogue::None, to)?;
    Ok(out)
}

#[test]
fn the_largest_products_do_not_overflow() {
    let (n, k) = (5, 4096);
    for cpu in cpus() {
        for format in formats() {
            // All codes at either end, all of X at either end: integer sums are as large as they can be.
            for (code, x) in [(0i8, 1.0f32), (1, 1.0), (0, -1.0), (1, -1.0)] {
                let (code, zero) = match (format.codes, code) {
                    (QuantCodes::Int8(_), 0) => (-128, 0.0),
                    (QuantCodes::Int8(_), _) => (127, 0.0),
                    (QuantCodes::Int4(_), 0) => (0, 8.0),
                    (QuantCodes::Int4(_), _) => (15, 8.0),
                };
                let fill = |_: usize, rows: &mut [CodeRow<'_>]| {
                    for row in rows {
                        row.codes.fill(code);
                        row.scales.fill(0.5);
                        row.zeros.fill(8.0);
                    }
                };
                let w = Quantised::from_codes(&cpu, n, k, format, &fill).unwrap();
                let want = k as f32 * 0.5 * (f32::from(code) - zero) * x;
                for y in product(&cpu, &w, &vec![x; 3 * k], 3).unwrap() {
                    assert!((y - want).abs() <= want.abs() * 1e-6, "{} {format:?} {code} {x}: {y}, {want}", cpu.isa());
                }
            }
        }
    }
}

#[test]
fn rounding_errs_by_half_a_step_at_most() {
    let cpu = Cpu::new(2).unwrap();
    let (n, k) = (70, 77);
    let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.5 - 1.0;
    for format in formats().into_iter().filter(|f| !f.zeros) {
        let fill = |first: usize, out: &mut [f32]| {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = value(first * k + i));
        };
        let w = Quantised::from_rows(&cpu, n, k, format, &fill).unwrap();
        // Steps of a row or group whose largest magnitude is at most 1; int4 may cut the ends off.
        let (step, cut) = match format.codes {
            QuantCodes::Int8(_) => (1.0 / 127.0, 0.5),
            QuantCodes::Int4(_) => (1.0 / 7.0, 1.0),
        };
        for row in 0..n {
            for (i, got) in w.view().row(row).enumerate() {
                let error = (got - f64::from(value(row * k + i))).abs();
                assert!(error <= step * cut * 1.001, "{format:?} row {row} [{i}]: off by {error}");
            }
        }
        assert_eq!(
            w.view().elements(2 * k, 3 * k).unwrap().row(1).collect::<Vec<_>>(),
            w.view().row(3).collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let (n, k) = (4, 96);
    for cpu in cpus() {
        for format in formats().into_iter().filter(|f| !f.zeros) {
            for bad in [f32::NAN, f32::INFINITY] {
                let ones = |_: usize, out: &mut [f32]| out.fill(1.0);
                let w = Quantised::from_rows(&cpu, n, k, format, &ones).unwrap();
                let mut x = vec![1.0; 2 * k];
                x[k + 40] = bad;
                let y = product(&cpu, &w, &x, 2).unwrap();
                assert!(y[..n].iter().all(|y| y.is_finite()) && y[n..].iter().all(|y| y.is_nan()), "{format:?}: {y:?}");
                let broken = |first: usize, out: &mut [f32]| {
                    out.fill(1.0);
                    out[(2 - first) * k + 3] = bad;
                };
                let w = Quantised::from_rows(&cpu, n, k, format, &broken).unwrap();
                let y = product(&cpu, &w, &vec![1.0; k], 1).unwrap();
                assert!(y[2].is_nan() && y[1].is_finite(), "{format:?}: {y:?}");
            }
            // Zeros, and what is so small that its inverse is not finite.
            let tiny = |_: usize, out: &mut [f32]| out.fill(1e-40);
            let w = Quantised::from_rows(&cpu, n, k, format, &tiny).unwrap();
            for x in [0.0, 1.0, 1e-40] {
                let y = product(&cpu, &w, &vec![x; k], 1).unwrap();
                assert!(y.iter().all(|y| y.abs() < 1e-30), "{format:?}: {y:?}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let cpu = Cpu::new(1).unwrap();
    let ones = |_: usize, out: &mut [f32]| out.fill(1.0);
    let make = |format| Quantised::from_rows(&cpu, 2, 64, format, &ones);
    let error = |format| make(format).unwrap_err().to_string();
    assert!(error(QuantFormat::int8(48)).contains("32, 64 or 128"));
    assert!(error(QuantFormat { grouped: false, ..QuantFormat::int4(32, false) }).contains("int4 has a scale"));
    assert!(error(QuantFormat { zeros: true, ..QuantFormat::int8(32) }).contains("int8 no zeros"));
    assert!(error(QuantFormat::int4(32, true)).contains("format.zeros"));

    let w = make(QuantFormat::INT8).unwrap();
    assert!(w.view().elements(3, 64).unwrap_err().to_string().contains("within a row"));
    assert!(w.view().elements(64, 65).unwrap_err().to_string().contains("whole rows"));
    assert!(w.view().elements(64, 128).is_err());

    let mut scratch = Scratch::with_capacity(1, 128);
    let (x, mut out) = (vec![0.0; 128], vec![0.0; 4]);
    let weight = WeightRef::Quantised(w.view());
    let mut call = |k: usize, n: usize, weight, compute| {
        let segment = Segment { weight, bias: None, n, out_offset: 0, activation: None };
        let (x, out) = (Rows::dense(&x, 1, k), RowsMut::dense(&mut out, 1, 4));
        linear(&cpu, &mut scratch, x, &[segment], compute, Epilogue::None, out).map_err(|e| e.to_string())
    };
    call(64, 2, weight, Compute::Int8).unwrap();
    assert!(call(64, 2, weight, Compute::F32).unwrap_err().contains("Compute::Int8"));
    assert!(call(64, 1, WeightRef::F32(&[0.0; 64]), Compute::Int8).unwrap_err().contains("Compute::Int8"));
    assert!(call(32, 4, weight, Compute::Int8).unwrap_err().contains("number of columns"));
    let mut row = vec![0.0; 64];
    let table = embed(&cpu, weight, &[0], RowsMut::dense(&mut row, 1, 64)).unwrap_err();
    assert!(table.to_string().contains("a table is not quantised"), "{table}");
}
