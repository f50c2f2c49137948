//! Tensors of a checkpoint as f32 or i64, whatever type they are stored in. Never scales: that is the graph's part.

use half::{bf16, f16};

use super::Tensor;
use plugin_api::ConstData;

use crate::hub::{Dtype, PackedView, WeightView, Weights, e4m3, e5m2};

/// The tensors of `weights` as a [`super::WeightSource`].
pub fn checkpoint(weights: &Weights) -> impl Fn(&str) -> Result<Tensor, String> + '_ {
    |name| match weights.packed(name) {
        Some(packed) => Ok(read_packed(&packed)),
        None => read_tensor(&weights.get(name).ok_or("the checkpoint has no tensor of that name")?),
    }
}

/// The values of a matrix that is stored quantised.
pub fn read_packed(packed: &PackedView<'_>) -> Tensor {
    Tensor::f32(packed.shape(), packed.values())
}

/// A tensor as it is stored: integers and truth values exactly, floats as f32, where numbers that f32 cannot hold are
/// rounded to the nearest that it can.
pub fn read_tensor(view: &WeightView<'_>) -> Result<Tensor, String> {
    let data = match integers(view)? {
        Some(data) => ConstData::I64(data),
        None => ConstData::F32(floats(view)),
    };
    let elements = view.shape.iter().product::<usize>();
    if data.len() != elements {
        return Err(format!("{} bytes of {} do not fill shape {:?}", view.data.len(), view.dtype, view.shape));
    }
    Ok(Tensor { shape: view.shape.to_vec(), data })
}

/// The numbers of a tensor that is stored as integers.
fn integers(view: &WeightView<'_>) -> Result<Option<Vec<i64>>, String> {
    macro_rules! number {
        ($number:ty) => {
            read(view.data, |bytes| i64::from(<$number>::from_le_bytes(bytes)))
        };
    }
    Ok(Some(match view.dtype {
        Dtype::I64 => number!(i64),
        Dtype::I32 => number!(i32),
        Dtype::I16 => number!(i16),
        Dtype::I8 => number!(i8),
        Dtype::U32 => number!(u32),
        Dtype::U16 => number!(u16),
        Dtype::U8 | Dtype::BOOL => number!(u8),
        Dtype::U64 => {
            let data: Vec<u64> = read(view.data, u64::from_le_bytes);
            let signed = |x: u64| i64::try_from(x).map_err(|_| format!("holds {x}, which i64 cannot represent"));
            data.into_iter().map(signed).collect::<Result<_, _>>()?
        }
        _ => return Ok(None),
    }))
}

fn floats(view: &WeightView<'_>) -> Vec<f32> {
    match view.dtype {
        Dtype::F64 => read(view.data, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F32 => read(view.data, f32::from_le_bytes),
        Dtype::F16 => read(view.data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => read(view.data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F8E4M3 => read(view.data, |[byte]: [u8; 1]| e4m3(byte)),
        Dtype::F8E5M2 => read(view.data, |[byte]: [u8; 1]| e5m2(byte)),
        Dtype::F8E8M0 => read(view.data, |[byte]: [u8; 1]| e8m0(byte)),
        // The others are integers.
        _ => vec![],
    }
}

fn read<const N: usize, E>(data: &[u8], number: impl Fn([u8; N]) -> E) -> Vec<E> {
    data.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}

/// A power of two, bias 127; all ones are NaN.
fn e8m0(byte: u8) -> f32 {
    if byte == 255 { f32::NAN } else { 2f32.powi(i32::from(byte) - 127) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_type_is_read() {
        let cases: &[(Dtype, &[u8], &[f32])] = &[
            (Dtype::F64, &1.1f64.to_le_bytes(), &[1.1]),
            (Dtype::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &[1.0, -2.0]),
            (Dtype::F16, &[0x00, 0x3c, 0x01, 0x00], &[1.0, 5.960_464_5e-8]),
            (Dtype::BF16, &[0x80, 0x3f, 0x49, 0xc0], &[1.0, -3.140_625]),
            (Dtype::F8E4M3, &[0x38, 0xbc, 0x7e, 0x01, 0x08], &[1.0, -1.5, 448.0, 0.001_953_125, 0.015_625]),
            (Dtype::F8E5M2, &[0x3c, 0xc2, 0x7b], &[1.0, -3.0, 57344.0]),
            (Dtype::F8E8M0, &[127, 128, 0], &[1.0, 2.0, 5.877_472e-39]),
        ];
        for (dtype, data, expected) in cases {
            let shape = [expected.len()];
            let got = read_tensor(&WeightView { dtype: *dtype, shape: &shape, data });
            assert_eq!(got, Ok(Tensor::f32(shape, expected.to_vec())), "{dtype}");
        }
        let integers: &[(Dtype, &[u8], &[i64])] = &[
            (Dtype::I64, &(-7i64 << 53 | 1).to_le_bytes(), &[-7i64 << 53 | 1]),
            (Dtype::I32, &(-8i32).to_le_bytes(), &[-8]),
            (Dtype::I16, &(-300i16).to_le_bytes(), &[-300]),
            (Dtype::I8, &[0xff, 5], &[-1, 5]),
            (Dtype::U64, &9u64.to_le_bytes(), &[9]),
            (Dtype::U32, &u32::MAX.to_le_bytes(), &[4_294_967_295]),
            (Dtype::U16, &[0xff, 0xff], &[65535]),
            (Dtype::U8, &[200], &[200]),
            (Dtype::BOOL, &[0, 1], &[0, 1]),
        ];
        for (dtype, data, expected) in integers {
            let shape = [expected.len()];
            let got = read_tensor(&WeightView { dtype: *dtype, shape: &shape, data });
            assert_eq!(got, Ok(Tensor::i64(shape, expected.to_vec())), "{dtype}");
        }
        let large = WeightView { dtype: Dtype::U64, shape: &[1], data: &u64::MAX.to_le_bytes() };
        assert!(read_tensor(&large).unwrap_err().contains("holds 18446744073709551615"));
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e8m0(255).is_nan());
        let short = WeightView { dtype: Dtype::F32, shape: &[2], data: &[0; 7] };
        assert!(read_tensor(&short).unwrap_err().contains("7 bytes of F32"));
    }
}
