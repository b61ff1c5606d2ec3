//! Reading configuration files, and rejecting files before they cost time or memory.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // test helpers may panic

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use portreeve_broker::config::{
    Config, MAX_DEPTH, MAX_DIAGNOSTICS, Pace, Snapshot, Trust, check_syntax, load, record, replay,
};

/// A directory of files that only this user can write.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text.as_bytes());
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        self.mode(name, 0o600);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    fn load(&self) -> Result<Config, Vec<String>> {
        match load(&self.path("main.conf"), trust()) {
            Ok((config, _)) => Ok(config),
            Err(report) => {
                assert!(report.to_string().contains("= help: "), "{report}");
                Err(self.lines(report.one_lines()))
            }
        }
    }

    fn error(&self) -> String {
        let lines = self.load().unwrap_err();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    }

    /// Lines without the directory's name, which differs in each run.
    fn lines(&self, lines: impl Iterator<Item = String>) -> Vec<String> {
        let folder = format!("{}/", self.0.path().display());
        lines.map(|line| line.replace(&folder, "")).collect()
    }
}

fn trust() -> Trust {
    Trust::RootOr(rustix::process::getuid().as_raw())
}

fn user(name: &str) -> String {
    format!("security {{ user = {name} }}\n")
}

#[test]
fn an_include_is_relative_to_the_including_file() {
    let folder = Folder::new(&[
        ("main.conf", "include sub/part.conf\n"),
        ("sub/part.conf", "readonly_include \"more.conf\"\n"),
        ("sub/more.conf", &user("beside")),
        ("more.conf", &user("elsewhere")),
    ]);
    assert_eq!(folder.load().unwrap().security.user_name(), "beside");
}

#[test]
fn a_directory_is_included_in_alphabetical_order_without_hidden_files_and_subdirectories() {
    let folder = Folder::new(&[
        ("main.conf", "include conf.d\n"),
        ("conf.d/10-first", &user("first")),
        ("conf.d/20-second", &user("second")),
        ("conf.d/.30-hidden", &user("hidden")),
        ("conf.d/40-folder/file", &user("nested")),
    ]);
    let config = folder.load().unwrap();
    assert_eq!(config.security.user_name(), "second");
    assert_eq!(config.sources().names().count(), 3);
}

#[test]
fn an_include_is_allowed_in_any_scope_that_the_broker_reads() {
    let folder = Folder::new(&[
        ("main.conf", "broker { permit mail { include ports.conf } }\nDomain x { include missing.conf }\n"),
        ("ports.conf", "listen = ( :25 )\n"),
    ]);
    assert_eq!(folder.load().unwrap().broker.permits[0].listen.len(), 1);
}

#[test]
fn a_cyclic_include_is_rejected() {
    let folder = Folder::new(&[
        ("main.conf", "include a.conf\n"),
        ("a.conf", "include b.conf\n"),
        ("b.conf", "security { }\n  include a.conf\n"),
    ]);
    assert_eq!(
        folder.error(),
        "b.conf:2:11: error: a.conf includes itself; remove one of the includes in this chain"
    );
    symlink(folder.path("main.conf"), folder.path("link.conf")).unwrap();
    folder.write("b.conf", b"include link.conf");
    assert!(folder.error().contains("link.conf includes itself"));
}

#[test]
fn includes_nest_sixteen_deep_and_no_deeper() {
    let folder = Folder::new(&[("main.conf", "include 1.conf\n"), ("17.conf", &user("deep"))]);
    for at in 1..=16 {
        folder.write(&format!("{at}.conf"), format!("include {}.conf\n", at + 1).as_bytes());
    }
    assert!(
        folder.error().contains("includes are nested too deeply at") && folder.error().contains("17.conf")
    );
    folder.write("16.conf", user("deep").as_bytes());
    assert_eq!(folder.load().unwrap().security.user_name(), "deep");
}

#[test]
fn exponential_includes_are_rejected_early() {
    let folder = Folder::new(&[("main.conf", &"include 1.conf\n".repeat(8)), ("9.conf", "")]);
    for at in 1..=8 {
        folder.write(&format!("{at}.conf"), format!("include {}.conf\n", at + 1).repeat(8).as_bytes());
    }
    let lines = folder.load().unwrap_err();
    assert!(lines[0].contains("too many files are included"), "{}", lines[0]);
}

#[test]
fn files_that_others_can_write_are_rejected() {
    let folder = Folder::new(&[("main.conf", "include part.conf\n"), ("part.conf", "")]);
    for mode in [0o620, 0o602, 0o666] {
        folder.mode("part.conf", mode);
        let expected = format!(
            "main.conf:1:9: error: part.conf is writable by its group or by everyone (mode {mode:04o}); chmod go-w part.conf"
        );
        assert_eq!(folder.error(), expected);
    }
    folder.mode("main.conf", 0o664);
    assert!(folder.error().starts_with("main.conf: error: the file is writable"));
    assert!(check_syntax(&folder.path("main.conf"), trust()).is_err());
}

#[test]
fn a_directory_that_others_can_write_is_not_included() {
    let folder = Folder::new(&[("main.conf", "include conf.d\n"), ("conf.d/a", "")]);
    folder.mode("conf.d", 0o777);
    assert!(folder.error().contains("conf.d is writable"));
}

#[test]
fn a_file_of_another_user_is_rejected() {
    let folder = Folder::new(&[("main.conf", "")]);
    let owner = rustix::process::getuid().as_raw();
    let other = match owner {
        // Root can change the owner of the file. An ordinary user trusts another user instead.
        0 => {
            std::os::unix::fs::chown(folder.path("main.conf"), Some(4242), None).unwrap();
            Trust::RootOnly
        }
        _ => Trust::RootOr(owner + 1),
    };
    let report = load(&folder.path("main.conf"), other).unwrap_err();
    assert!(report.to_string().contains("is owned by the user with id"), "{report}");
}

#[test]
fn only_regular_files_are_read() {
    let folder = Folder::new(&[("main.conf", "include fifo\ninclude \"/dev/null\"\n")]);
    let fifo = folder.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let lines = folder.load().unwrap_err();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("is not a regular file")), "{lines:?}");
    let directory = load(Path::new("/"), Trust::RootOnly).unwrap_err();
    assert_eq!(directory.one_lines().count(), 1);
}

#[test]
fn a_missing_file_is_reported_at_its_include() {
    let folder = Folder::new(&[("main.conf", "\ninclude \"other.conf\"\n")]);
    assert!(folder.error().starts_with("main.conf:2:9: error: other.conf cannot be opened: No such file"));
    let missing = load(&folder.path("none.conf"), trust()).unwrap_err();
    let line = folder.lines(missing.one_lines()).remove(0);
    assert!(line.starts_with("none.conf: error: the file cannot be opened: No such file"), "{line}");
}

#[test]
fn files_that_are_not_text_are_rejected_with_one_error() {
    let folder = Folder::new(&[]);
    for (bytes, error) in [
        (
            &b"a = b\nuser = \0 \xff"[..],
            "main.conf:2:8: error: this byte is NUL: the file is not text; save it as UTF-8 text",
        ),
        (b"\xff\xfea\0", "main.conf: error: the file is UTF-16 text; save it as UTF-8 text"),
        (b"\xfe\xff\0a", "main.conf: error: the file is UTF-16 text; save it as UTF-8 text"),
    ] {
        folder.write("main.conf", bytes);
        assert_eq!(folder.error(), error);
    }
}

#[test]
fn bytes_that_are_not_utf_8_matter_only_in_values_that_are_read() {
    let folder = Folder::new(&[]);
    let harmless = [
        &b"# Betreiber: M\xfcller \x1b[31m\nsecurity { user = mail /* \xff\0 */ }\n"[..],
        b"Adaptive { note = \"caf\xe9 \0\" other = caf\xe9 list = ( \xff ) }\nsecurity { user = mail }\n",
        b"Domain \"m\xfcnchen\" { }\nsecurity { user = mail }\n",
        b"ESMTP_Listener { Banner = \"caf\xe9\" Pathway \"caf\xe9\" { } }\nsecurity { user = mail }\n",
        b"\xef\xbb\xbfsecurity { user = mail } # \xe2\x80",
    ];
    for text in harmless {
        folder.write("main.conf", text);
        assert_eq!(folder.load().unwrap().security.user_name(), "mail");
    }
    let byte = |byte| {
        format!("the byte 0x{byte}, which is not UTF-8 text; save the file as UTF-8, or remove the byte")
    };
    for (text, error) in [
        (
            &b"# \xfc\nsecurity { user = m\xfcller }"[..],
            format!("2:20: error: the value of user has {}", byte("FC")),
        ),
        (b"security { user = \"m\xfcller\" }", format!("1:21: error: the value of user has {}", byte("FC"))),
        (
            b"worker { command = ( /bin/x \"caf\xe9\" ) }",
            format!("1:33: error: the value of command has {}", byte("E9")),
        ),
        (
            b"worker { command = /bin/x environment = [ \xff = a ] }",
            format!("1:43: error: the value of environment has {}", byte("FF")),
        ),
        (
            b"Binding \"m\xfcnchen\" { bind_address = 10.1.1.1 }",
            format!("1:11: error: the name of this Binding scope has {}", byte("FC")),
        ),
        (
            b"include \"m\xfc.conf\"",
            format!("1:11: error: the name of the file to include has {}", byte("FC")),
        ),
        (b"secu\xfcrity { }", format!("1:5: error: unexpected {}", byte("FC"))),
    ] {
        folder.write("main.conf", text);
        assert_eq!(folder.error(), format!("main.conf:{error}"));
    }
}

#[test]
fn a_gigabyte_is_rejected_before_it_is_read() {
    let folder = Folder::new(&[("main.conf", "")]);
    fs::OpenOptions::new().write(true).open(folder.path("main.conf")).unwrap().set_len(1 << 30).unwrap();
    let error = folder.error();
    assert!(error.contains("has 1073741824 bytes"), "{error}");
}

#[test]
fn ten_megabytes_are_read_and_an_error_at_their_end_is_found() {
    let customer =
        "Binding_Group g {\n  Domain x { Routes = ( \"a\" ) }\n  Binding b { bind_address = 10.0.0.1 }\n}\n";
    let mut text = customer.repeat((10 << 20) / customer.len());
    let lines = text.lines().count();
    text += "security { user = mail }\n";
    let folder = Folder::new(&[("main.conf", &text)]);
    let config = folder.load().unwrap();
    assert_eq!((config.security.user_name(), config.bindings.len()), ("mail", 1));
    folder.write("main.conf", (text.clone() + "security { usr = mail }\n").as_bytes());
    let error = folder.error();
    assert!(error.starts_with(&format!("main.conf:{}:12: error: ", lines + 2)), "{error}");
    // All files of a configuration share one size limit.
    folder.write("main.conf", "include part.conf\n".repeat(4).as_bytes());
    folder.write("part.conf", text.as_bytes());
    let error = folder.error();
    assert!(
        error.contains("part.conf has ") && error.contains(", of which ") && error.contains(" remain"),
        "{error}"
    );
}

#[test]
fn ten_thousand_nested_scopes_are_one_error() {
    let folder = Folder::new(&[("main.conf", &"a {\n".repeat(10_000))]);
    let error = folder.error();
    assert!(
        error.contains(&format!("main.conf:{}:1: error: scopes are nested too deeply", MAX_DEPTH + 2)),
        "{error}"
    );
    // Scopes without a name are limited too.
    folder.write("main.conf", "{".repeat(10_000).as_bytes());
    let lines = folder.load().unwrap_err();
    assert!(lines.len() <= MAX_DIAGNOSTICS + 1 && lines[0].contains("without a name"), "{lines:?}");
    folder.write("main.conf", "a {\n".repeat(MAX_DEPTH).as_bytes());
    let lines = folder.load().unwrap_err();
    assert!(lines[0].contains("is not closed"), "{}", lines[0]);
}

#[test]
fn empty_files_and_files_without_a_final_newline_are_valid() {
    for text in ["", "\n", "# only a comment", "/**/", "security{user=mail}", "\u{feff}security{}", "a=b"] {
        let folder = Folder::new(&[("main.conf", text)]);
        assert!(folder.load().is_ok(), "{text:?}");
    }
}

#[test]
fn the_syntax_of_a_file_is_checked_without_its_includes() {
    let folder = Folder::new(&[("main.conf", "include missing.conf\nsecurity { nonsense = 1 }\n")]);
    assert!(check_syntax(&folder.path("main.conf"), trust()).is_ok());
    folder.write("main.conf", b"security {");
    assert!(check_syntax(&folder.path("main.conf"), trust()).is_err());
}

/// The broker has one thread: a peer must not wait until a configuration of megabytes is parsed.
#[test]
fn other_tasks_run_while_a_large_configuration_is_replayed() {
    let mut text = String::from("binding_group {\n");
    (0..8_000).for_each(|n| text += &format!("  Binding b{n} {{ bind_address = 10.0.0.1 x = {n} }}\n"));
    text += "}\n";
    (0..8_000).for_each(|n| text += &format!("Binding c{n} {{ bind_address = 10.0.0.1 x = {n} }}\n"));
    (0..20_000).for_each(|n| text += &format!("Skipped s{n} {{ option = \"value\" }}\n"));
    text += "ESMTP_Listener { Listen \"*:25\" { } }\n";
    let folder = Folder::new(&[("main.conf", &text)]);
    let path = folder.path("main.conf");
    let (recorded, bundle) = record(&path, trust());
    let (finished, turns) = (Cell::new(false), Cell::new(0));
    let parse = async {
        let replayed = replay(&path, &bundle, &Pace::shared()).await.unwrap();
        finished.set(true);
        replayed
    };
    let others = async {
        while !finished.get() {
            turns.set(turns.get() + 1);
            tokio::task::yield_now().await;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ((replayed, _), ()) = runtime.block_on(async { tokio::join!(parse, others) });
    assert_eq!(Snapshot::of(&replayed), Snapshot::of(&recorded.unwrap().0));
    assert_eq!(replayed.bindings.len(), 16_000);
    // It takes far more than ten slices on any machine.
    assert!(turns.get() >= 10, "other tasks ran {} times", turns.get());
}
