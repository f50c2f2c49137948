//! What a plugin tries in its sandbox fails there, by name, and the host goes on.
//!
//! Where the kernel lacks a part of the sandbox, what that part would prevent is not tried; the tests say so on stderr.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use host::registry::{Registry, Selected, sandbox_support};
use plugin_api::{BuildRequest, ModelCode, Sources};
use serde_json::json;

use crate::support::*;

/// What the plugin says about an attempt: `DEED=OBJECT: done` or `refused, ...`.
fn attempt(registry: &Registry, plugin: &Selected, sources: &Sources, order: &str) -> String {
    let request = BuildRequest { sources: sources.clone(), ..request(json!({ "order": order })) };
    let error = registry.build_model(plugin, &request).unwrap_err().to_string();
    error.rsplit_once(&format!("{order}: ")).unwrap_or_else(|| panic!("{order}: {error}")).1.to_owned()
}

fn has(part: &str, there: bool) -> bool {
    if !there {
        eprintln!("this kernel has no {part}: not tried");
    }
    there
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn calls_that_plugins_do_not_need_are_refused() {
    if !has("seccomp", sandbox_support().seccomp.is_ok()) {
        return;
    }
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    let plugin = selected(&registry);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let socket = folder.dir.join("socket");
    let unix = UnixListener::bind(&socket).unwrap();
    unix.set_nonblocking(true).unwrap();
    for order in [
        format!("connect={}", tcp.local_addr().unwrap()),
        format!("send={}", udp.local_addr().unwrap()),
        format!("connect-unix={}", text(&socket)),
        "listen=127.0.0.1:0".to_owned(),
        "run=/bin/true".to_owned(),
        "become=/bin/true".to_owned(),
        "fork=".to_owned(),
        "thread=".to_owned(),
        "signal=parent".to_owned(),
        "signal=1".to_owned(),
    ] {
        let said = attempt(&registry, &plugin, &Sources::default(), &order);
        assert_eq!(said, "refused, Operation not permitted (os error 1)", "{order}");
    }
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(unix.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_no_zombies();
    registry.build_model(&plugin, &request(json!({}))).unwrap();
}

/// A plugin that needs everything, a package, a model with code, and files that are none of its business.
struct World {
    folder: Folder,
    root: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { folder: Folder::new(&[("bad", &bad("needs"))]), root: tempfile::tempdir().unwrap() };
        for (name, content) in [
            ("site/transformers/__init__.py", "__version__ = \"5.1.0\"\n"),
            ("site/transformers/models/a.py", "a"),
            ("site/other.py", "secret"),
            ("model/modeling.py", "m"),
            ("model/sub/more.py", "n"),
            ("model/weights", "secret"),
        ] {
            let path = world.root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().canonicalize().unwrap().join(name)
    }

    fn registry(&self) -> Registry {
        self.folder.registry_with(|o| o.transformers.path = Some(self.path("site")))
    }

    fn model_code(&self) -> Sources {
        let files = ["modeling.py", "sub/more.py"].map(PathBuf::from).to_vec();
        Sources { model_code: Some(ModelCode { dir: self.path("model"), files }), ..Sources::default() }
    }
}

#[test]
fn only_the_files_that_were_handed_over_can_be_read() {
    if !has("landlock", sandbox_support().landlock.is_ok()) {
        return;
    }
    let world = World::new();
    let registry = world.registry();
    let plugin = selected(&registry);
    let code = world.model_code();
    let said = |sources: &Sources, order: String| attempt(&registry, &plugin, sources, &order);
    for (deed, name) in [
        ("read", "site/transformers/__init__.py"),
        ("read", "site/transformers/models/a.py"),
        ("list", "site/transformers/models"),
        ("read", "model/modeling.py"),
        ("read", "model/sub/more.py"),
    ] {
        assert_eq!(said(&code, format!("{deed}={}", text(&world.path(name)))), "done", "{name}");
    }
    let denied = "refused, Permission denied (os error 13)";
    for name in ["site/other.py", "model/weights"] {
        assert_eq!(said(&code, format!("read={}", text(&world.path(name)))), denied, "{name}");
    }
    for order in ["read=/etc/passwd", "read=/proc/self/environ", "read=/proc/1/cmdline", "list=/tmp", "list=/"] {
        assert_eq!(said(&code, order.to_owned()), denied, "{order}");
    }
    // Without leave, the model's code is not readable either.
    let read = format!("read={}", text(&world.path("model/modeling.py")));
    assert_eq!(said(&Sources::default(), read), denied);
}

#[test]
fn nothing_can_be_written_but_derived_files_in_their_folder() {
    if !has("landlock", sandbox_support().landlock.is_ok()) || !has("seccomp", sandbox_support().seccomp.is_ok()) {
        return;
    }
    let world = World::new();
    let registry = world.registry();
    let plugin = selected(&registry);
    let supplied = registry.supply(&plugin, &request(json!({}))).unwrap().sources;
    let cache = supplied.cache.clone().unwrap();
    let code = world.model_code();
    let with_code = BuildRequest { sources: code.clone(), ..request(json!({})) };
    assert_eq!(registry.supply(&plugin, &with_code).unwrap().sources.cache, None, "never together with a model's code");
    fs::write(cache.join("there"), "x").unwrap();
    let outside =
        [world.path("new"), world.path("model/new.py"), world.path("site/transformers/new.py"), cache.join("new")];
    // A model's code can write nowhere, not even there.
    for path in &outside {
        for deed in ["write", "link"] {
            let said = attempt(&registry, &plugin, &code, &format!("{deed}={}", text(path)));
            assert_eq!(said, "refused, Operation not permitted (os error 1)", "{deed} {}", path.display());
        }
        assert!(!path.exists());
    }
    for deed in ["remove", "rename"] {
        let said = attempt(&registry, &plugin, &code, &format!("{deed}={}", text(&world.path("model/weights"))));
        assert_eq!(said, "refused, Operation not permitted (os error 1)");
    }
    // The package's own code has its folder, and that alone.
    let none = Sources::default();
    for path in &outside[..3] {
        let said = attempt(&registry, &plugin, &none, &format!("write={}", text(path)));
        assert_eq!(said, "refused, Permission denied (os error 13)", "{}", path.display());
    }
    let said = attempt(&registry, &plugin, &none, &format!("link={}", text(&outside[3])));
    assert_eq!(said, "refused, Operation not permitted (os error 1)");
    for deed in ["write", "read", "rename"] {
        assert_eq!(attempt(&registry, &plugin, &none, &format!("{deed}={}", text(&outside[3]))), "done", "{deed}");
    }
    assert_eq!(attempt(&registry, &plugin, &none, &format!("remove={}.new", text(&outside[3]))), "done");
}
