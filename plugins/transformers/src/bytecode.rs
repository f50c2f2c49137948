//! Compiled Python files, and notes on what was found out about them, kept between loads in the folder that the request names.
//!
//! An entry's name is a hash of everything that the compiled form depends on, and its first bytes are a hash of the rest: a
//! file that was cut off or changed is as good as none. A note's name is a hash of the request and of all code that ran. Never
//! there for a model with code of its own, which could write it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustpython_vm::builtins::PyCode;
use rustpython_vm::bytecode::CodeObject;
use rustpython_vm::frozen::FrozenCodeObject;
use rustpython_vm::{PyRef, VirtualMachine};
use sha2::{Digest, Sha256};

/// Changes when the form of the bytecode does: with the version of RustPython, above all.
const FORM: &str = "rustpython-0.5.0 host-1";
/// Length of a SHA-256.
const HASH: usize = 32;

/// The cache; without a folder it holds nothing.
pub(crate) struct Cache {
    folder: Option<PathBuf>,
    /// Names of the entries of all files that were asked for.
    asked: RefCell<BTreeSet<String>>,
}

impl Cache {
    pub(crate) fn new(folder: Option<PathBuf>) -> Cache {
        Cache { folder, asked: RefCell::default() }
    }

    /// A hash of this request and of all code that was asked for so far; `None` without a folder.
    pub(crate) fn inputs(&self, request: &str) -> Option<String> {
        self.folder.as_ref()?;
        let mut hash = Sha256::new();
        hash.update((request.len() as u64).to_le_bytes());
        hash.update(request);
        self.asked.borrow().iter().for_each(|name| hash.update(name));
        Some(hex(&hash.finalize()))
    }

    /// The note of this name.
    pub(crate) fn recall(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.as_ref()?.join(format!("{name}.note"))).ok()
    }

    /// Keeps a note.
    pub(crate) fn remember(&self, name: &str, note: &str) {
        if let Some(folder) = &self.folder {
            replace(&folder.join(format!("{name}.note")), note.as_bytes());
        }
    }

    /// Where the compiled form of this source is, or would be.
    fn file(&self, source: &str, shown: &str) -> Option<PathBuf> {
        let mut hash = Sha256::new();
        for part in [FORM, shown, source] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let folder = self.folder.as_ref()?;
        let name = hex(&hash.finalize());
        let file = folder.join(format!("{name}.pyc"));
        self.asked.borrow_mut().insert(name);
        Some(file)
    }

    /// The compiled form, if it is there and whole.
    pub(crate) fn get(&self, source: &str, shown: &str, vm: &VirtualMachine) -> Option<PyRef<PyCode>> {
        let bytes = fs::read(self.file(source, shown)?).ok()?;
        let (hash, code) = bytes.split_at_checked(HASH)?;
        (Sha256::digest(code).as_slice() == hash).then(|| vm.ctx.new_code(FrozenCodeObject { bytes: code }))
    }

    /// Keeps a compiled form. That it cannot be written is nobody's problem: the next load compiles again.
    pub(crate) fn put(&self, source: &str, shown: &str, code: &CodeObject) {
        let Some(file) = self.file(source, shown) else { return };
        let code = FrozenCodeObject::encode(code).bytes;
        let mut bytes = Sha256::digest(&code).to_vec();
        bytes.extend(code);
        replace(&file, &bytes);
    }
}

/// Two loads at once write the same; a reader sees the whole file or none.
fn replace(file: &Path, bytes: &[u8]) {
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    let written = write(&temporary, bytes).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
