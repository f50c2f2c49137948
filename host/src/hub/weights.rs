//! The checkpoint's tensors, memory-mapped: nothing is copied until somebody reads it.
//!
//! Every header is checked before a `Weights` exists (see `header`), so views need no further checks. Tensors whose data
//! is not aligned to their element are copied once, on first use. It converts no types and knows no architecture. The
//! callers are the executors, which read views, and `llm`, which checks names and shapes against the graph.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use super::HubError;
use super::header::{Dtype, Fault, TensorInfo, parse};
use super::packed::{self, BlockMatrix, PackedSet, PackedView};
use super::resolve::{INDEX, SINGLE, read_index};

/// How many names an error lists before it only counts.
const LISTED: usize = 10;

/// The tensors of a checkpoint. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    inner: Arc<Inner>,
}

struct Inner {
    files: Arc<Vec<Source>>,
    /// Sorted by name.
    tensors: Vec<(String, Stored)>,
    /// Bytes of tensors that were released.
    released: AtomicU64,
    /// Matrices that are stored quantised, once they were looked for.
    packed: OnceLock<PackedSet>,
}

pub(super) struct Source {
    path: PathBuf,
    data: Data,
}

enum Data {
    Mapped(Mmap),
    Static(&'static [u8]),
}

struct Stored {
    file: usize,
    info: TensorInfo,
    /// The aligned copy of a misaligned tensor, made on first use.
    copy: OnceLock<Aligned>,
}

/// Bytes that start at a multiple of [`Aligned::TO`].
struct Aligned {
    buffer: Vec<u8>,
    start: usize,
}

/// One tensor: row-major, little-endian, `data` aligned to its element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// The elements' bytes.
    pub data: &'a [u8],
}

impl Weights {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Self, HubError> {
        let single = dir.join(SINGLE);
        if single.is_file() {
            return Self::from_sources(vec![Source::map(single)?]);
        }
        let index = dir.join(INDEX);
        if !index.is_file() {
            let message = format!("the folder has neither {SINGLE} nor {INDEX}; only safetensors weights are read");
            return Err(HubError::File { file: dir.into(), message });
        }
        let entries = read_index(&index)?;
        let mut names: Vec<&str> = entries.iter().map(|(_, file)| file.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut sources = Vec::with_capacity(names.len());
        for name in names {
            let path = dir.join(name);
            if !path.is_file() {
                let message = format!("names {name}, which is not in the folder; fetch it");
                return Err(HubError::File { file: index, message });
            }
            sources.push(Source::map(path)?);
        }
        let weights = Self::from_sources(sources)?;
        for (tensor, file) in &entries {
            let stored = weights.stored(tensor);
            if stored.is_none_or(|stored| weights.inner.files[stored.file].path != dir.join(file)) {
                let message = format!("the index says that it is in {file}, but it is not");
                return Err(HubError::Tensor { file: index, tensor: tensor.clone(), message });
            }
        }
        Ok(weights)
    }

    /// A checkpoint that is part of the program.
    pub fn from_static(file: &'static [u8]) -> Result<Self, HubError> {
        Self::from_sources(vec![Source { path: PathBuf::from("(built-in model)"), data: Data::Static(file) }])
    }

    fn from_sources(files: Vec<Source>) -> Result<Self, HubError> {
        let infos = files.iter().map(|source| parse(source.bytes()).map_err(|fault| source.fault(fault)));
        let infos = infos.collect::<Result<_, _>>()?;
        Self::of_tensors(files, infos)
    }

    /// The matrices of blocks among the tensors of a GGUF file.
    pub(super) fn set_blocks(&self, matrices: Vec<BlockMatrix>) {
        self.inner.packed.get_or_init(|| PackedSet::of_blocks(self, matrices));
    }

    /// Checked tensors of each file.
    pub(super) fn of_tensors(files: Vec<Source>, infos: Vec<Vec<TensorInfo>>) -> Result<Self, HubError> {
        let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
        for (file, (source, infos)) in files.iter().zip(infos).enumerate() {
            for info in infos {
                let tensor = info.name.clone();
                let stored = Stored { file, info, copy: OnceLock::new() };
                if let Some(other) = tensors.insert(tensor.clone(), stored) {
                    let message = format!("is also in {}", files[other.file].path.display());
                    return Err(HubError::Tensor { file: source.path.clone(), tensor, message });
                }
            }
        }
        let weights = Self {
            inner: Arc::new(Inner {
                files: Arc::new(files),
                tensors: tensors.into_iter().collect(),
                released: AtomicU64::new(0),
                packed: OnceLock::new(),
            }),
        };
        let misaligned = weights.inner.tensors.iter().filter(|(_, t)| !weights.is_aligned(t)).count();
        if misaligned > 0 {
            tracing::warn!(misaligned, "tensors are not aligned in their file and are copied to memory on first use");
        }
        Ok(weights)
    }

    /// The same tensors, with `prefix` in front of every name; before [`Weights::unpack`].
    pub fn below(&self, prefix: &str) -> Self {
        // One prefix for all keeps them sorted.
        let renamed = |(name, stored): &(String, Stored)| {
            let stored = Stored { file: stored.file, info: stored.info.clone(), copy: OnceLock::new() };
            (format!("{prefix}{name}"), stored)
        };
        let tensors = self.inner.tensors.iter().map(renamed).collect();
        let files = Arc::clone(&self.inner.files);
        let (released, packed) = (AtomicU64::new(0), OnceLock::new());
        Self { inner: Arc::new(Inner { files, tensors, released, packed }) }
    }

    /// Finds the matrices that are stored quantised, as `quantization_config` of the file `path` says. From then on each is
    /// there as the one matrix that it stands for, and its parts are not. Called once, before anything is read.
    pub fn unpack(&self, quantization_config: &serde_json::Value, path: &Path) -> Result<(), HubError> {
        let set = packed::find(self, quantization_config, path)?;
        self.inner.packed.get_or_init(|| set);
        Ok(())
    }

    /// The matrix of that name, if it is stored quantised.
    pub fn packed(&self, name: &str) -> Option<PackedView<'_>> {
        let packed = self.inner.packed.get()?.matrices.get(name)?;
        Some(PackedView { weights: self, packed })
    }

    /// The tensor of that name, unless it is stored quantised.
    pub fn get(&self, name: &str) -> Option<WeightView<'_>> {
        if self.packed(name).is_some() {
            return None;
        }
        self.stored(name).map(|stored| self.view(stored))
    }

    /// The name of the tensor with this number.
    pub(super) fn name(&self, index: usize) -> &str {
        &self.inner.tensors[index].0
    }

    /// Whether a tensor is only a part of a quantised matrix.
    fn is_hidden(&self, index: usize) -> bool {
        self.inner.packed.get().is_some_and(|set| set.hidden.contains(&index))
    }

    /// Where the tensor stands among all, for [`Weights::at`]: looking up by number costs nothing.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.inner.tensors.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()
    }

    /// The tensor with this number. Panics if there is none: numbers come from [`Weights::index_of`].
    pub fn at(&self, index: usize) -> WeightView<'_> {
        self.view(&self.inner.tensors[index].1)
    }

    fn stored(&self, name: &str) -> Option<&Stored> {
        self.index_of(name).map(|i| &self.inner.tensors[i].1)
    }

    /// All tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, WeightView<'_>)> {
        self.inner.tensors.iter().map(|(name, stored)| (name.as_str(), self.view(stored)))
    }

    /// Names, types and shapes of all tensors, sorted by name; touches no data. Quantised matrices have the type that they
    /// stand for.
    pub fn describe(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        let stored = self.inner.tensors.iter().enumerate().filter(|(i, _)| !self.is_hidden(*i));
        let mut all: BTreeMap<&str, (Dtype, &[usize])> =
            stored.map(|(_, (name, t))| (name.as_str(), (t.info.dtype, t.info.shape.as_slice()))).collect();
        let packed = self.inner.packed.get().map(|set| &set.matrices);
        all.extend(packed.into_iter().flatten().map(|(name, p)| (name.as_str(), (p.dtype, p.shape.as_slice()))));
        all.into_iter().map(|(name, (dtype, shape))| (name, dtype, shape))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.inner.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.inner.tensors.is_empty()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.inner.tensors.iter().map(|(_, t)| (t.info.end - t.info.begin) as u64).sum()
    }

    /// Checks that every expected tensor is there with its shape. Returns the names that were not expected.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<Vec<String>, HubError> {
        let (mut missing, mut wrong) = (Vec::new(), Vec::new());
        let all: BTreeMap<&str, &[usize]> = self.describe().map(|(name, _, shape)| (name, shape)).collect();
        let mut unexpected: std::collections::BTreeSet<&str> = all.keys().copied().collect();
        for (name, shape) in expected {
            unexpected.remove(name.as_str());
            match all.get(name.as_str()) {
                None => missing.push(name.clone()),
                Some(has) if *has != shape => wrong.push(format!("{name} has shape {has:?} instead of {shape:?}")),
                Some(_) => {}
            }
        }
        let unexpected: Vec<String> = unexpected.into_iter().map(String::from).collect();
        if missing.is_empty() && wrong.is_empty() {
            return Ok(unexpected);
        }
        let mut parts = Vec::new();
        if !missing.is_empty() {
            parts.push(format!("missing tensors ({}): {}", missing.len(), listed(&missing)));
        }
        if !wrong.is_empty() {
            parts.push(format!("wrong shapes ({}): {}", wrong.len(), listed(&wrong)));
        }
        if !unexpected.is_empty() {
            parts.push(format!("tensors that nothing asks for ({}): {}", unexpected.len(), listed(&unexpected)));
        }
        Err(HubError::Mismatch(parts.join("; ")))
    }

    /// Says that the tensor's bytes were read and are not needed again soon: they need not stay in memory. They can still
    /// be read. A hint: failure is of no consequence.
    pub fn release(&self, index: usize) {
        let stored = &self.inner.tensors[index].1;
        self.inner.files[stored.file].release(stored.info.begin, stored.info.end);
        self.inner.released.fetch_add((stored.info.end - stored.info.begin) as u64, Ordering::Relaxed);
    }

    /// Bytes of the tensors that were released.
    pub fn released_bytes(&self) -> u64 {
        self.inner.released.load(Ordering::Relaxed)
    }

    /// Asks the system to read the files ahead. A hint: failure is of no consequence.
    pub fn read_ahead(&self) {
        for source in self.inner.files.iter() {
            source.read_ahead();
        }
    }

    fn view<'a>(&'a self, stored: &'a Stored) -> WeightView<'a> {
        let data = if self.is_aligned(stored) {
            self.stored_bytes(stored)
        } else {
            stored.copy.get_or_init(|| Aligned::copy(self.stored_bytes(stored))).bytes()
        };
        WeightView { dtype: stored.info.dtype, shape: &stored.info.shape, data }
    }

    fn stored_bytes(&self, stored: &Stored) -> &[u8] {
        &self.inner.files[stored.file].bytes()[stored.info.begin..stored.info.end]
    }

    fn is_aligned(&self, stored: &Stored) -> bool {
        self.stored_bytes(stored).as_ptr().addr().is_multiple_of(stored.info.dtype.size())
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("tensors", &self.len()).field("bytes", &self.total_bytes()).finish()
    }
}

impl Source {
    #[allow(unsafe_code)] // mapping a file; see the SAFETY comment
    pub(super) fn map(path: PathBuf) -> Result<Self, HubError> {
        let file = File::open(&path).map_err(HubError::io(&path))?;
        let length = file.metadata().map_err(HubError::io(&path))?.len();
        if length == 0 {
            return Err(HubError::File { file: path, message: "the file is empty; fetch it again".into() });
        }
        // SAFETY: the map is read-only and private to this process. Its bytes change under us only if another process
        // writes into or truncates the file while it is served; that breaks every memory-mapping loader. Files of the
        // hub cache are replaced by renaming and never written in place. No type but `u8` is read through the map here.
        let map = unsafe { Mmap::map(&file) }.map_err(HubError::io(&path))?;
        Ok(Self { path, data: Data::Mapped(map) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Static(bytes) => bytes,
        }
    }

    fn fault(&self, fault: Fault) -> HubError {
        let file = self.path.clone();
        match fault.tensor {
            Some(tensor) => HubError::Tensor { file, tensor, message: fault.message },
            None => HubError::File { file, message: fault.message },
        }
    }

    #[cfg(unix)]
    #[allow(unsafe_code)] // see the SAFETY comment
    fn release(&self, begin: usize, end: usize) {
        const PAGE: usize = 4096;
        // Whole pages only: neighbours share the others.
        let (begin, end) = (begin.next_multiple_of(PAGE), end / PAGE * PAGE);
        if let (Data::Mapped(map), true) = (&self.data, begin < end) {
            // SAFETY: the map is of a file and read-only: dropped pages are read from the file again.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, begin, end - begin) };
        }
    }

    #[cfg(not(unix))]
    fn release(&self, _: usize, _: usize) {}

    #[cfg(unix)]
    fn read_ahead(&self) {
        if let Data::Mapped(map) = &self.data {
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }

    #[cfg(not(unix))]
    fn read_ahead(&self) {}
}

impl Aligned {
    /// A cache line; enough for every element type and vector load.
    const TO: usize = 64;

    fn copy(bytes: &[u8]) -> Self {
        let mut buffer: Vec<u8> = Vec::with_capacity(bytes.len() + Self::TO);
        // The buffer does not grow below, so its address stays.
        let start = (Self::TO - buffer.as_ptr().addr() % Self::TO) % Self::TO;
        buffer.resize(start, 0);
        buffer.extend_from_slice(bytes);
        Self { buffer, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(LISTED);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A safetensors file: names, types, shapes, bytes; `pad` spaces end the header.
    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])], pad: usize) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut body = Vec::new();
        for (name, dtype, shape, data) in tensors {
            let begin = body.len();
            body.extend_from_slice(data);
            let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [begin, body.len()]});
            header.insert(name.to_string(), entry);
        }
        let mut header = serde_json::Value::Object(header).to_string();
        header.push_str(&" ".repeat(pad));
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &body].concat()
    }

    const A: (&str, Dtype, &[usize], &[u8]) = ("a", Dtype::U8, &[3], &[1, 2, 3]);
    const B: (&str, Dtype, &[usize], &[u8]) = ("b", Dtype::F32, &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]);

    #[test]
    fn single_file_with_misaligned_tensor() {
        let dir = tempfile::tempdir().unwrap();
        // Whatever the header's length, one of eight paddings misaligns the float tensor.
        for pad in 0..8 {
            fs::write(dir.path().join(SINGLE), file(&[A, B], pad)).unwrap();
            let weights = Weights::open(dir.path()).unwrap();
            let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["a", "b"]);
            let b = weights.get("b").unwrap();
            assert_eq!((b.dtype, b.shape, b.data), (B.1, B.2, B.3));
            assert!(b.data.as_ptr().addr().is_multiple_of(4));
            assert_eq!(weights.get("b").unwrap().data.as_ptr(), b.data.as_ptr(), "copied once");
            assert_eq!(weights.get("a").unwrap().data, A.3);
            assert!(weights.get("c").is_none());
            assert_eq!((weights.len(), weights.total_bytes()), (2, 11));
            weights.read_ahead();
        }
        fn shared<T: Send + Sync + Clone>() {}
        shared::<Weights>();
    }

    #[test]
    fn built_in() {
        static EMPTY: &[u8] = b"\x02\0\0\0\0\0\0\0{}";
        assert!(Weights::from_static(EMPTY).unwrap().is_empty());
        let error = Weights::from_static(b"\x03\0\0\0\0\0\0\0{}").unwrap_err().to_string();
        assert!(error.contains("built-in") && error.contains("cut off"), "{error}");
    }

    #[test]
    fn sharded() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        let fails = |parts: &[&str]| {
            let error = Weights::open(dir.path()).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        fails(&["neither model.safetensors nor"]);
        write(INDEX, b"{");
        fails(&["index.json", "not valid JSON"]);
        write(INDEX, b"{}");
        fails(&["index.json", "weight_map"]);
        write(INDEX, br#"{"weight_map": {}}"#);
        fails(&["index.json", "is empty"]);
        for file in ["\"../x.safetensors\"", "\"x.bin\"", "7", "\"/x.safetensors\""] {
            write(INDEX, format!(r#"{{"weight_map": {{"a": {file}}}}}"#).as_bytes());
            fails(&["index.json", "tensor \"a\"", file]);
        }
        write(INDEX, br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
        write("1.safetensors", &file(&[A], 0));
        fails(&["index.json", "2.safetensors", "not in the folder"]);
        write("2.safetensors", b"");
        fails(&["2.safetensors", "empty"]);
        write("2.safetensors", &file(&[A], 0));
        fails(&["2.safetensors", "tensor \"a\"", "is also in", "1.safetensors"]);
        write("2.safetensors", &file(&[("c", A.1, A.2, A.3)], 0));
        fails(&["index.json", "tensor \"b\"", "2.safetensors"]);
        write("2.safetensors", &file(&[("c", A.1, A.2, A.3), B], 0));
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.describe().map(|(name, ..)| name).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(weights.get("b").unwrap().data, B.3);
        // The wrong shard: named with the tensor.
        write(INDEX, br#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}"#);
        fails(&["tensor \"a\"", "2.safetensors"]);
        // Faults in a header name the file.
        let cut = file(&[B], 0);
        write("2.safetensors", &cut[..cut.len() - 1]);
        fails(&["2.safetensors", "tensor \"b\"", "cut off"]);
    }

    #[test]
    fn expected_tensors() {
        let bytes: &'static [u8] = file(&[A, B], 0).leak();
        let weights = Weights::from_static(bytes).unwrap();
        let expect = |list: &[(&str, &[usize])]| {
            weights.check(&list.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect::<Vec<_>>())
        };
        assert!(expect(&[("a", &[3]), ("b", &[1, 2])]).unwrap().is_empty());
        assert_eq!(expect(&[("a", &[3])]).unwrap(), ["b"]);
        let error = expect(&[("b", &[2, 1]), ("x", &[1])]).unwrap_err().to_string();
        assert!(error.contains("missing tensors (1): x;"), "{error}");
        assert!(error.contains("b has shape [1, 2] instead of [2, 1]"), "{error}");
        let many: Vec<(String, Vec<usize>)> = (0..25).map(|i| (format!("layer.{i:02}"), vec![1])).collect();
        let error = weights.check(&many).unwrap_err().to_string();
        assert!(error.contains("missing tensors (25): layer.00") && error.contains("layer.09 and 15 more"), "{error}");
        assert!(!error.contains("layer.10"), "{error}");
    }
}
