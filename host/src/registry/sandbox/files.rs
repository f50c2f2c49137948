//! Landlock: after [`confine`], only the named files and folders can be opened, no TCP socket can be bound or connected, and
//! nobody outside can be sent a signal or reached through an abstract socket (as far as the kernel's version has these rules).

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Access;

/// The newest version whose rules are used; on older kernels those that they have.
const NEWEST: ABI = ABI::V6;

/// Where the dynamic linker looks libraries up.
const LINKER_CACHE: &str = "/etc/ld.so.cache";

/// Confines the calling thread, and those that it will make.
pub(super) fn confine(access: &Access) -> Result<(), String> {
    let status = restrict(access).map_err(|e| e.to_string())?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("the kernel did not enforce it".to_owned()),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}

/// Whether it can be done, by doing it to this thread. Gives the interface's version.
pub(super) fn probe() -> Result<u32, String> {
    let nothing = Access { files: vec![], folders: vec![], writable: None };
    let status = restrict(&nothing).map_err(|e| e.to_string())?;
    match (status.landlock, status.ruleset) {
        (LandlockStatus::NotImplemented, _) => Err("the kernel has none, or a container forbids it".to_owned()),
        (LandlockStatus::NotEnabled, _) => Err("it is switched off at boot; add it to the kernel's `lsm=`".to_owned()),
        (_, RulesetStatus::NotEnforced) => Err("the kernel did not enforce it".to_owned()),
        (LandlockStatus::Available { effective_abi, kernel_abi }, _) => {
            Ok(kernel_abi.unwrap_or(effective_abi as i32).unsigned_abs())
        }
    }
}

fn restrict(access: &Access) -> Result<RestrictionStatus, RulesetError> {
    let read_file: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    let read = read_file | AccessFs::ReadDir;
    // No links, devices or programs.
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut rules = Vec::new();
    let files = access.files.iter().map(|path| (path.as_path(), read_file));
    let folders = access.folders.iter().map(|path| (path.as_path(), read));
    let writable = access.writable.iter().map(|path| (path.as_path(), write));
    let linker = [(std::path::Path::new(LINKER_CACHE), read_file)];
    for (path, rights) in files.chain(folders).chain(writable).chain(linker) {
        // What is not there cannot be opened either: the plugin's own error says so best.
        if let Ok(file) = PathFd::new(path) {
            rules.push(PathBeneath::new(file, rights));
        }
    }
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(rules.into_iter().map(Ok::<_, RulesetError>))?
        .restrict_self()
}
