//! Backends that are not clouds.

use super::*;

fn pass_of(start: &Start) -> PassConfig {
    match &start.config().backends["pass"] {
        BackendConfig::Pass(pass) => pass.clone(),
        other => panic!("{other:?}"),
    }
}

const PASS: &str = "default_backend = \"pass\"\n[backends.pass]\n";

#[test]
fn the_password_store_is_where_the_program_has_it() {
    let start = with_file(PASS).and_env("HOME", "/home/me");
    let pass = pass_of(&start);
    assert_eq!(pass.store, Path::new("/home/me/.password-store"));
    assert!(pass.first_line && pass.per_namespace);
    let start = start.and_env("PASSWORD_STORE_DIR", "/srv/store");
    assert_eq!(pass_of(&start).store, Path::new("/srv/store"));
    let written = format!("{PASS}store = \"/other\"\n");
    assert_eq!(pass_of(&with_file(&written)).store, Path::new("/other"));
    assert!(with_file(PASS).faults()[0].contains("neither PASSWORD_STORE_DIR nor HOME is set"));
}

#[test]
fn the_programs_get_three_variables_and_no_other() {
    let start = with_file(PASS)
        .and_env("HOME", "/home/me")
        .and_env("PATH", "/usr/bin")
        .and_env("GNUPGHOME", "/keys")
        .and_env("AWS_SECRET_ACCESS_KEY", "hunter2");
    let names: Vec<String> = pass_of(&start)
        .environment
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["GNUPGHOME", "HOME", "PATH"]);
}

#[test]
fn a_folder_of_files_must_be_named_by_its_whole_path() {
    let file = |rest: &str| {
        let text = format!("default_backend = \"file\"\n[backends.file]\n{rest}");
        with_file(&text)
            .load()
            .map(drop)
            .map_err(|faults| faults.to_string())
    };
    assert_eq!(file("path = \"/srv/secrets\""), Ok(()));
    for (rest, key) in [
        ("", "config.toml:2:11: backends.file.path is empty"),
        ("path = \"srv\"", "backends.file.path is \"srv\""),
        (
            "path = \"/srv\"\nprefix = \"../\"",
            "backends.file.prefix is",
        ),
        (
            "path = \"/srv\"\nprefix = \"a//b\"",
            "backends.file.prefix is",
        ),
        (
            "path = \"/srv\"\nprefix = \".git/\"",
            "backends.file.prefix is",
        ),
        (
            "path = \"/srv\"\nper_namespace = 1",
            "backends.file.per_namespace is",
        ),
    ] {
        let faults = file(rest).expect_err("a wrong file");
        assert!(faults.contains(key), "{faults}");
    }
}

#[test]
fn a_store_has_its_own_time_within_the_requests() {
    let text = format!("{PASS}store = \"/s\"\ntimeout = \"11s\"\n");
    let faults = with_file(&text).faults();
    assert!(faults[0].contains("backends.pass.timeout contradicts limits.request_deadline"));
}
