//! The files of kernels, as they are in this program.

/// A file of kernels, compiled as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// Embedding, norms, softmax, rotary embedding, activations, copies.
    Rows,
    /// Elementwise primitives.
    Elementwise,
    /// Primitives along an axis.
    Lanes,
    /// Linear layers.
    Linear,
    /// Attention and the KV cache.
    Attention,
    /// Convolutions and running states.
    Recurrent,
    /// The choice of tokens.
    Sample,
}

impl Module {
    /// All of them.
    pub const ALL: [Module; 7] = [
        Module::Rows,
        Module::Elementwise,
        Module::Lanes,
        Module::Linear,
        Module::Attention,
        Module::Recurrent,
        Module::Sample,
    ];

    /// The name of the file.
    pub fn file(self) -> &'static str {
        match self {
            Module::Rows => "rows.cu",
            Module::Elementwise => "elementwise.cu",
            Module::Lanes => "lanes.cu",
            Module::Linear => "linear.cu",
            Module::Attention => "attention.cu",
            Module::Recurrent => "recurrent.cu",
            Module::Sample => "sample.cu",
        }
    }

    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Module::Rows => include_str!("../../cuda/rows.cu"),
            Module::Elementwise => include_str!("../../cuda/elementwise.cu"),
            Module::Lanes => include_str!("../../cuda/lanes.cu"),
            Module::Linear => include_str!("../../cuda/linear.cu"),
            Module::Attention => include_str!("../../cuda/attention.cu"),
            Module::Recurrent => include_str!("../../cuda/recurrent.cu"),
            Module::Sample => include_str!("../../cuda/sample.cu"),
        }
    }
}

/// What the files include on a device, by name.
pub(super) const DEVICE_HEADERS: [(&str, &str); 3] = [
    ("device.cuh", include_str!("../../cuda/device.cuh")),
    ("math.cuh", include_str!("../../cuda/math.cuh")),
    ("ptx.cuh", include_str!("../../cuda/ptx.cuh")),
];

/// What they include in the emulator.
pub(super) const EMULATOR_HEADERS: [(&str, &str); 3] = [
    ("device.cuh", include_str!("../../cuda/device.cuh")),
    ("math.cuh", include_str!("../../cuda/math.cuh")),
    ("emulator.hpp", include_str!("../../cuda/emulator.hpp")),
];
