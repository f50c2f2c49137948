//! Reads the first bytes of a plugin file and says in plain words why it cannot be a library of this machine.
//!
//! The dynamic linker's own messages are poor ("No such file or directory" for another machine's library), and mapping a cut
//! off file may kill the process. This is a courtesy, not a security check: only the worker ever loads the file. No unsafe,
//! no mapping; every offset is checked.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use super::error::{Cause, one_line};

const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;

/// Checks the headers of an opened file of `size` bytes.
pub(super) fn check(file: &File, size: u64) -> Result<(), Cause> {
    let mut head = Vec::new();
    At { file, at: 0 }.take(ELF_HEADER as u64).read_to_end(&mut head).map_err(|e| Cause::Unreadable(e.to_string()))?;
    if head.is_empty() {
        return Err(Cause::NotALibrary("the file is empty".to_owned()));
    }
    match foreign_format(&head) {
        Some(format) if cfg!(target_os = "linux") => {
            return Err(Cause::WrongArchitecture { found: format, host: this_host() });
        }
        _ => {}
    }
    if cfg!(target_os = "linux") { check_elf(&head, file, size) } else { Ok(()) }
}

/// Formats of other systems, by their magic numbers.
fn foreign_format(head: &[u8]) -> Option<String> {
    let magic: [u8; 4] = head.get(..4)?.try_into().ok()?;
    match magic {
        [0xcf | 0xce, 0xfa, 0xed, 0xfe] | [0xca, 0xfe, 0xba, 0xbe] => Some("macOS".to_owned()),
        [b'M', b'Z', ..] => Some("Windows".to_owned()),
        _ => None,
    }
}

fn this_host() -> String {
    format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
}

fn check_elf(head: &[u8], file: &File, size: u64) -> Result<(), Cause> {
    if head.get(..4) != Some(b"\x7fELF") {
        let start = one_line(&String::from_utf8_lossy(&head[..head.len().min(24)]), 24);
        return Err(Cause::NotALibrary(format!("it starts with `{start}`, not with the mark of an ELF file")));
    }
    if head.len() < ELF_HEADER {
        return Err(Cause::Truncated { needs: ELF_HEADER as u64, has: size });
    }
    let (class, order) = (head[4], head[5]);
    let u16_at = |i: usize| {
        let b = [head[i], head[i + 1]];
        if order == 2 { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) }
    };
    let found = machine_name(u16_at(18), class, order);
    if found != std::env::consts::ARCH {
        return Err(Cause::WrongArchitecture { found, host: std::env::consts::ARCH.to_owned() });
    }
    if u16_at(16) != 3 {
        return Err(Cause::NotALibrary(
            "it is an ELF file, but not a shared library (a program or an object file?)".into(),
        ));
    }
    if class != 2 || order != 1 {
        return Ok(()); // no machine of ours; the linker will judge
    }
    let needs = elf64_extent(head, file);
    if needs > size { Err(Cause::Truncated { needs, has: size }) } else { Ok(()) }
}

/// The end of the last thing that an ELF64 little-endian header and its program headers speak of.
fn elf64_extent(head: &[u8], file: &File) -> u64 {
    let u64_at =
        |bytes: &[u8], i: usize| bytes.get(i..i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let u16_at = |i: usize| u64::from(u16::from_le_bytes([head[i], head[i + 1]]));
    let (program, sections) = (u64_at(head, 32), u64_at(head, 40));
    let (program_size, program_count, section_size, section_count) = (u16_at(54), u16_at(56), u16_at(58), u16_at(60));
    let table_end = program.saturating_add(program_size * program_count);
    let mut end = table_end.max(sections.saturating_add(section_size * section_count));
    if program_size == PROGRAM_HEADER {
        let mut table = Vec::new();
        let mut reader = At { file, at: program }.take(PROGRAM_HEADER * program_count);
        if reader.read_to_end(&mut table).is_ok() {
            for entry in table.chunks_exact(PROGRAM_HEADER as usize) {
                end = end.max(u64_at(entry, 8).saturating_add(u64_at(entry, 32)));
            }
        }
    }
    end
}

/// Reads on from an offset without moving the file's cursor.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

/// Machine of an ELF file, by Rust's name where there is one.
fn machine_name(machine: u16, class: u8, order: u8) -> String {
    let name = match (machine, class) {
        (62, 2) => "x86_64",
        (62, 1) => "x32",
        (3, _) => "x86",
        (183, 2) => "aarch64",
        (40, _) => "arm",
        (243, 2) => "riscv64",
        (243, 1) => "riscv32",
        (21, _) if order == 1 => "powerpc64le",
        (21, _) => "powerpc64",
        (22, _) => "s390x",
        (258, 2) => "loongarch64",
        (8, _) => "mips",
        _ => return format!("an unknown machine (ELF machine {machine})"),
    };
    // Rust calls both byte orders of POWER the same.
    if name == "powerpc64le" && cfg!(target_endian = "little") { "powerpc64".to_owned() } else { name.to_owned() }
}
