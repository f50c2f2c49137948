//! The layers that checkpoints are made of, with their weights: what `nn.Linear` and the norms are in modelling code.
//!
//! Each method reads the weights below the scope `name` and appends one composite. Nothing here that a plugin could
//! not write itself with [`Builder::weight`].

use crate::builder::Builder;
use crate::dim::Dim;
use crate::model::Value;

impl Builder {
    /// `name.weight[features, size of x's last axis]`, and `name.bias[features]` if `bias`: x W^T + b.
    pub fn linear_layer(&mut self, name: &str, x: Value, features: usize, bias: bool) -> Value {
        let width = self.last_size(x);
        self.scope(name, |b| {
            let weight = b.weight("weight", [features, width]);
            if !bias {
                return b.linear(x, weight);
            }
            let bias = b.weight("bias", [features]);
            b.linear_bias(x, weight, bias)
        })
    }

    /// Root mean square norm with `name.weight`.
    pub fn rms_norm_layer(&mut self, name: &str, x: Value, eps: f32) -> Value {
        let width = self.last_size(x);
        self.scope(name, |b| {
            let weight = b.weight("weight", [width]);
            b.rms_norm(x, weight, eps)
        })
    }

    /// Layer norm with `name.weight` and `name.bias`.
    pub fn layer_norm_layer(&mut self, name: &str, x: Value, eps: f32) -> Value {
        let width = self.last_size(x);
        self.scope(name, |b| {
            let (weight, bias) = (b.weight("weight", [width]), b.weight("bias", [width]));
            b.layer_norm(x, weight, bias, eps)
        })
    }

    /// Size of the last axis; 0 where it is no constant, which the following op then reports.
    fn last_size(&self, x: Value) -> usize {
        self.ty(x).shape.0.last().and_then(Dim::as_const).and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    }
}
