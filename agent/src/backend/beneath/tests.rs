use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;

fn folder_of(files: &[(&str, &str)]) -> (TempDir, Folder) {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, text).expect("a file");
        mode(&path, 0o600);
        for above in path.ancestors().skip(1) {
            if above.starts_with(directory.path()) {
                mode(above, 0o700);
            }
        }
    }
    let folder = Folder::open(directory.path()).expect("it is there");
    (directory, folder)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn text_at(folder: &Folder, path: &str) -> Result<String, FolderError> {
    let found = folder.find(Path::new(path))?;
    let bytes = found.read(1024)?;
    Ok(String::from_utf8(bytes.to_vec()).expect("text"))
}

#[test]
fn a_file_below_the_folder_is_read() {
    let (_directory, folder) = folder_of(&[("prod/db", "hunter2")]);
    assert_eq!(text_at(&folder, "prod/db").expect("it is there"), "hunter2");
    assert!(matches!(text_at(&folder, "prod"), Err(FolderError::Absent)));
    assert!(matches!(
        text_at(&folder, "prod/db/x"),
        Err(FolderError::Absent)
    ));
}

#[test]
fn a_file_is_told_from_a_folder_that_is_not_there() {
    let (directory, _) = folder_of(&[("prod/db", "hunter2")]);
    let at = |name: &str| Folder::open(&directory.path().join(name));
    assert!(matches!(at("prod/db"), Err(FolderError::NoFolder)));
    assert!(matches!(at("prod/none"), Err(FolderError::Absent)));
}

#[test]
fn neither_dots_nor_links_lead_out() {
    let (outside, _) = folder_of(&[("secret", "not ours")]);
    let (directory, folder) = folder_of(&[("prod/db", "hunter2")]);
    let at = |name: &str| directory.path().join(name);
    symlink(outside.path().join("secret"), at("absolute")).expect("a link");
    symlink(outside.path(), at("folder")).expect("a link");
    symlink("prod/db", at("inside")).expect("a link");
    let up = format!(
        "../{}/secret",
        outside.path().file_name().expect("a name").display()
    );
    symlink(&up, at("relative")).expect("a link");
    for path in ["absolute", "folder/secret", "relative", &up, "/etc/passwd"] {
        let outcome = text_at(&folder, path);
        assert!(
            matches!(outcome, Err(FolderError::Outside)),
            "{path}: {outcome:?}"
        );
    }
    assert_eq!(text_at(&folder, "inside").expect("it is there"), "hunter2");
    let names = folder.list(Path::new(""), "").expect("it is ours");
    assert_eq!(names, ["inside", "prod/db"]);
}

#[test]
fn what_others_may_write_is_not_ours_wherever_a_link_leads() {
    let (directory, folder) = folder_of(&[("a/b/c", "1"), ("d", "2")]);
    let at = |name: &str| directory.path().join(name);
    symlink("a/b/c", at("link")).expect("a link");
    let ours = |path: &str| folder.must_own(&folder.find(Path::new(path)).expect("there"));
    for path in ["a/b/c", "link", "d"] {
        ours(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    for (open, bits) in [("a/b/c", 0o620), ("a/b", 0o702), ("a", 0o770), ("", 0o777)] {
        let before = fs::metadata(at(open)).expect("there").permissions();
        mode(&at(open), bits);
        for path in ["a/b/c", "link"] {
            assert!(
                matches!(ours(path), Err(FolderError::Unsafe)),
                "{path} while {open:?} has mode {bits:o}"
            );
        }
        fs::set_permissions(at(open), before).expect("ours");
    }
}

#[test]
fn a_pipe_is_no_file_and_holds_nobody() {
    let (directory, folder) = folder_of(&[("x", "1")]);
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert!(matches!(text_at(&folder, "pipe"), Err(FolderError::Absent)));
}

#[test]
fn a_file_over_the_limit_is_not_read_in_part() {
    let (_directory, folder) = folder_of(&[("x", "12345")]);
    let found = folder.find(Path::new("x")).expect("there");
    assert_eq!(&**found.read(5).expect("it fits"), b"12345");
    assert!(matches!(found.read(4), Err(FolderError::TooLarge)));
}

/// As it is when it is written in place: emptied at first, or only begun.
#[test]
fn a_file_that_changes_while_it_is_read_is_no_value() {
    let (directory, folder) = folder_of(&[("x", "whole")]);
    for torn in ["", "wh"] {
        let found = folder.find(Path::new("x")).expect("there");
        fs::write(directory.path().join("x"), torn).expect("ours");
        let outcome = found.read(5);
        assert!(matches!(outcome, Err(FolderError::Changing)), "{torn:?}");
    }
    assert_eq!(text_at(&folder, "x").expect("it is there"), "wh");
}

#[test]
fn a_change_makes_another_version() {
    let (directory, folder) = folder_of(&[("x", "1")]);
    let version = || folder.find(Path::new("x")).expect("there").version();
    let before = version();
    assert_eq!(before, version());
    fs::write(directory.path().join("new"), "2").expect("a file");
    fs::rename(directory.path().join("new"), directory.path().join("x")).expect("ours");
    assert_ne!(before, version());
}

#[test]
fn a_list_has_the_ending_taken_off_and_no_dotted_names() {
    let (_directory, folder) = folder_of(&[
        ("b.gpg", ""),
        ("prod/db.gpg", ""),
        ("prod/readme", ""),
        (".git/x.gpg", ""),
        (".hidden.gpg", ""),
    ]);
    let list = |from: &str| folder.list(Path::new(from), ".gpg").expect("it is ours");
    assert_eq!(list(""), ["b", "prod/db"]);
    assert_eq!(list("prod"), ["prod/db"]);
    assert_eq!(list("none"), Vec::<String>::new());
}

#[test]
fn a_folder_that_hangs_leaves_threads_for_others() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(20)
        .build();
    let (release, hangs) = std::sync::mpsc::channel::<()>();
    let hangs = std::sync::Arc::new(std::sync::Mutex::new(hangs));
    runtime.expect("a runtime").block_on(async {
        let reads = (0..40).map(|_| {
            let hangs = hangs.clone();
            Folder::visit(Path::new("/"), Duration::from_millis(50), move |_| {
                let _ = hangs.lock().map(|hangs| hangs.recv());
                Ok(())
            })
        });
        for read in futures::future::join_all(reads).await {
            let failed = read.expect_err("it hangs");
            assert_eq!(failed.fault, Fault::Unreachable);
        }
        let other = tokio::task::spawn_blocking(|| ());
        let other = timeout(Duration::from_secs(10), other).await;
        // Before the assertions, so that a failure does not wait for the reads.
        drop(release);
        other.expect("a thread is free").expect("it runs");
        let read = Folder::visit(Path::new("/"), Duration::from_secs(10), |_| Ok(()));
        read.await.expect("the folder is there again");
    });
}
