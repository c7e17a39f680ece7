//! The backend `pass`, with the real program, real gpg and a throw-away key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::machine::{Machine, with_principal};
use testkit::password_store::PasswordStore;
use testkit::until;
use testkit::workload::{Response, Workload};

/// A machine whose agent reads a password store for root, who may read all of it.
struct Scene {
    _machine: Machine,
    store: PasswordStore,
    _agent: AgentProcess,
    process: Workload,
}

fn settings(machine: &Machine, store: &PasswordStore) -> AgentSettings {
    let settings = machine
        .settings_without_cloud()
        .expect("settings")
        .set("default_backend", "pass")
        .set("backends.pass.store", store.store().display())
        .env("HOME", store.home().display())
        .env("GNUPGHOME", store.gnupg_home().display());
    with_principal(settings, 0, 0, "me", "machine")
}

impl Scene {
    async fn set(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let machine = Machine::start().await.expect("a machine");
        let store = PasswordStore::create().expect("pass and gpg are installed");
        let settings = change(settings(&machine, &store));
        let agent = settings.start_ready().await.expect("an agent");
        let process = machine.process(0).await.expect("a process");
        Self {
            _machine: machine,
            store,
            _agent: agent,
            process,
        }
    }

    async fn read(&self, name: &str) -> Response {
        let path = format!("/v1/secrets/{name}");
        self.process.get(&path).await.expect("an answer")
    }
}

#[tokio::test]
async fn an_entry_is_read_by_its_first_line_and_anew_each_time() {
    needs_workloads!();
    let scene = Scene::set(|settings| settings).await;
    scene
        .store
        .insert("prod/db", b"hunter2\nuser: app\n")
        .expect("an entry");
    let before = scene.read("prod/db").await;
    before.must_be_ok();
    assert_eq!(before.json()["value"], "hunter2");
    scene
        .store
        .insert("prod/db", b"hunter3\n")
        .expect("an entry");
    let after = scene.read("prod/db").await.json();
    assert_eq!(after["value"], "hunter3");
    assert_ne!(before.json()["version"], after["version"]);
    assert_eq!(scene.read("prod/none").await.status, 404);
    assert_eq!(
        scene.read("prod").await.status,
        404,
        "a folder is no secret"
    );
}

#[tokio::test]
async fn a_whole_entry_comes_to_the_last_byte() {
    needs_workloads!();
    let scene = Scene::set(|settings| settings.set("backends.pass.first_line", "false")).await;
    let large = "0123456789abcdef".repeat(4096);
    for value in [
        "hunter2\nuser: app\n",
        "ohne Zeilenende \u{1f511}",
        "",
        &large,
    ] {
        scene.store.insert("a", value.as_bytes()).expect("an entry");
        let answer = scene.read("a").await;
        answer.must_be_ok();
        assert_eq!(answer.json()["value"], value);
    }
    scene.store.insert("a", b"\xff\x00").expect("an entry");
    assert_eq!(scene.read("a").await.json()["value"], "/wA=");
}

#[tokio::test]
async fn a_locked_key_is_told_from_one_that_is_not_there_and_nobody_is_asked_for_anything() {
    needs_workloads!();
    let scene = Scene::set(|settings| settings).await;
    let store = &scene.store;
    store
        .add_key("locked@example.org", "a passphrase")
        .expect("a key");
    store
        .pass(&["init", "-p", "locked", "locked@example.org"])
        .expect("a folder");
    store.insert("locked/db", b"hunter2\n").expect("an entry");
    store.insert("open", b"hunter2\n").expect("an entry");
    store.lock().expect("gpg-agent is told");
    let locked = scene.read("locked/db").await;
    locked.must_be_refused(503, "unavailable");
    // Nothing but a person unlocks it.
    assert_eq!(locked.header("retry-after"), Some("60"));
    assert!(
        locked.text().contains("unlock it in gpg-agent"),
        "{}",
        locked.text()
    );
    assert_eq!(scene.read("open").await.status, 200);
    store.lose_keys().expect("they were there");
    let lost = scene.read("open").await;
    lost.must_be_refused(403, "denied");
    for answer in [locked, lost] {
        assert!(
            !answer.text().contains("gpg:"),
            "gpg's own words: {}",
            answer.text()
        );
    }
}

/// gpg itself finds nothing wrong with a file that ends within its session key, and shows nothing.
#[tokio::test]
async fn a_damaged_entry_is_no_value_and_no_locked_key() {
    needs_workloads!();
    let scene = Scene::set(|settings| settings).await;
    scene.store.insert("whole", b"hunter2\n").expect("an entry");
    scene.store.insert("empty", b"").expect("an entry");
    let path = |name: &str| scene.store.store().join(name).with_extension("gpg");
    let whole = fs::read(path("whole")).expect("it is there");
    let mut flipped = whole.clone();
    flipped[whole.len() - 10] ^= 0xff;
    fs::write(path("flipped"), flipped).expect("a file");
    for length in [0, 4, 60, whole.len() - 20] {
        fs::write(path(&format!("cut-{length}")), &whole[..length]).expect("a file");
    }
    fs::write(path("text"), "no message\n").expect("a file");
    let last = format!("cut-{}", whole.len() - 20);
    for name in ["flipped", "cut-0", "cut-4", "cut-60", &last, "text"] {
        let answer = scene.read(name).await;
        assert!(
            answer.text().contains("is damaged"),
            "{name}: {}",
            answer.text()
        );
        answer.must_be_refused(503, "unavailable");
        assert_eq!(answer.header("retry-after"), Some("60"), "{name}");
    }
    let empty = scene.read("empty").await;
    empty.must_be_ok();
    assert_eq!(empty.json()["value"], "");
}

#[tokio::test]
async fn a_list_needs_no_key_and_shows_entries_alone() {
    needs_workloads!();
    let scene = Scene::set(|settings| settings).await;
    for name in ["prod/db", "prod/api/key", "other"] {
        scene.store.insert(name, b"x\n").expect("an entry");
    }
    fs::write(scene.store.store().join("readme"), "no entry").expect("a file");
    scene.store.lose_keys().expect("they were there");
    let list = scene
        .process
        .get("/v1/secrets?limit=2")
        .await
        .expect("an answer")
        .json();
    assert_eq!(
        list["secrets"],
        serde_json::json!(["other", "prod/api/key"])
    );
    let next = format!(
        "/v1/secrets?cursor={}",
        list["next"].as_str().expect("a cursor").replace('/', "%2F")
    );
    let rest = scene.process.get(&next).await.expect("an answer").json();
    assert_eq!(rest["secrets"], serde_json::json!(["prod/db"]));
    assert_eq!(rest["next"], serde_json::Value::Null);
}

#[tokio::test]
async fn no_name_leads_out_of_the_store_or_into_its_own_files() {
    needs_workloads!();
    let scene = Scene::set(|settings| settings).await;
    scene.store.insert("a", b"hunter2\n").expect("an entry");
    let entry = scene.store.store().join("a.gpg");
    let outside = scene.store.beside().join("outside.gpg");
    fs::copy(&entry, &outside).expect("a file");
    std::os::unix::fs::symlink(&outside, scene.store.store().join("link.gpg")).expect("a link");
    let link = scene.read("link").await;
    link.must_be_refused(403, "denied");
    for name in [
        "..%2F..%2Foutside",
        ".gpg-id",
        ".git/config",
        "--clip",
        "-c",
        "a%00",
        "a%0Ab",
        "a//b",
    ] {
        let answer = scene.read(name).await;
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
    }
    for name in ["a;id", "$(id)", "a%20b", "*", "a'"] {
        let answer = scene.read(name).await;
        assert_eq!(answer.status, 404, "{name}: {}", answer.text());
    }
}

/// A program in `pass`' place, in a directory that comes first in PATH.
fn instead_of_pass(directory: &std::path::Path, script: &str) -> String {
    let programs = directory.join("bin");
    fs::create_dir_all(&programs).expect("a directory");
    let program = programs.join("pass");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a program");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("ours");
    format!("{}:/usr/bin:/bin", programs.display())
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_at_its_time_with_all_that_it_started() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let store = PasswordStore::create().expect("pass and gpg are installed");
    store.insert("a", b"hunter2\n").expect("an entry");
    let pids = store.beside().join("pids");
    let script = format!("sleep 1000 & echo $! $$ >>{}; wait", pids.display());
    let path = instead_of_pass(store.beside(), &script);
    let settings = settings(&machine, &store)
        .env("PATH", path)
        .set("backends.pass.timeout", "1s");
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    for _ in 0..5 {
        let asked = Instant::now();
        let answer = process.get("/v1/secrets/a").await.expect("an answer");
        answer.must_be_refused(503, "unavailable");
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "{:?}",
            asked.elapsed()
        );
    }
    let pids = fs::read_to_string(pids).expect("it was run");
    assert_eq!(pids.split_whitespace().count(), 10);
    for pid in pids.split_whitespace() {
        // One that init has not waited for yet runs no more.
        let runs = || {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
        };
        until("its end", async || !runs()).await;
    }
}

#[tokio::test]
async fn an_entry_that_cannot_be_shown_because_it_was_being_written_is_read_again() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let store = PasswordStore::create().expect("pass and gpg are installed");
    store.insert("a", b"hunter2\n").expect("an entry");
    let entry = store.store().join("a.gpg");
    let script = format!(
        "if grep -q whole {0}; then echo hunter3; else echo whole >{0}; exit 1; fi",
        entry.display()
    );
    let path = instead_of_pass(store.beside(), &script);
    let settings = settings(&machine, &store).env("PATH", path);
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let answer = process.get("/v1/secrets/a").await.expect("an answer");
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], "hunter3");
}

#[tokio::test]
async fn the_program_gets_a_name_and_a_bare_environment_and_nothing_of_the_agents() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let store = PasswordStore::create().expect("pass and gpg are installed");
    store.insert("prod/db", b"hunter2\n").expect("an entry");
    let script = "printf '%s|' \"$@\"; env | cut -d= -f1 | sort | tr '\\n' ' '; \
         printf '|'; ls -l /proc/self/fd | tr '\\n' ';'";
    let path = instead_of_pass(store.beside(), script);
    let settings = settings(&machine, &store)
        .env("PATH", path)
        .env("AWS_SECRET_ACCESS_KEY", "hunter2");
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let answer = process
        .get("/v1/secrets/prod%2Fdb")
        .await
        .expect("an answer")
        .json();
    let told = answer["value"].as_str().expect("text").to_owned();
    assert!(told.starts_with("show|--|prod/db|"), "{told}");
    let mut environment: Vec<&str> = told
        .split('|')
        .nth(3)
        .expect("names")
        .split_whitespace()
        .collect();
    // The shell's own.
    environment.retain(|name| !["OLDPWD", "PWD", "SHLVL", "_"].contains(name));
    let expected = [
        "GNUPGHOME",
        "HOME",
        "LC_ALL",
        "PASSWORD_STORE_DIR",
        "PASSWORD_STORE_GPG_OPTS",
        "PATH",
    ];
    assert_eq!(environment, expected, "{told}");
    // Beside the usual three and what `ls` has opened, only what the test itself has from whoever started it.
    let own = |target: &str| {
        let mut open = fs::read_dir("/proc/self/fd")
            .expect("it is there")
            .flatten();
        open.any(|entry| {
            fs::read_link(entry.path()).is_ok_and(|link| link == std::path::Path::new(target))
        })
    };
    for line in told.split(';') {
        let Some((before, target)) = line.split_once(" -> ") else {
            continue;
        };
        let number = before.rsplit(' ').next().expect("a number");
        let usual = ["0", "1", "2"].contains(&number) || target.ends_with("/fd");
        assert!(usual || own(target), "{number} is {target}");
    }
}

#[tokio::test]
async fn a_missing_program_and_a_missing_store_stop_the_start() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let store = PasswordStore::create().expect("pass and gpg are installed");
    let without = settings(&machine, &store).env("PATH", "/nowhere");
    let (status, _, stderr) = without.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("install it (apt-get install pass)"),
        "{stderr}"
    );
    let elsewhere = settings(&machine, &store).set("backends.pass.store", "/nowhere");
    let (status, _, stderr) = elsewhere.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("backends.pass.store /nowhere"), "{stderr}");
}

#[tokio::test]
async fn the_shipped_file_for_a_laptop_works_as_it_is_for_an_ordinary_user() {
    needs_workloads!();
    const USER: u32 = 41_004;
    let machine = Machine::start().await.expect("a machine");
    let store = PasswordStore::create_for(USER).expect("pass and gpg are installed");
    store.insert("dev/db", b"hunter2\n").expect("an entry");
    let runtime = machine.home("runtime", USER).expect("a directory");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/local.toml");
    let copied = machine.directory().join("local.toml");
    fs::copy(file, &copied).expect("it is there");
    let script = format!(
        "exec 3<\"$0\" && exec setpriv --reuid={USER} --regid={USER} --clear-groups \
         /proc/self/fd/3 --config {} \"$@\"",
        copied.display()
    );
    let mut settings = AgentSettings::default()
        .set(
            "listen.admin",
            testkit::agent::free_address().expect("a port"),
        )
        .env("XDG_RUNTIME_DIR", runtime.display())
        .env("HOME", store.home().display())
        .env("GNUPGHOME", store.gnupg_home().display())
        .env("PATH", "/usr/bin:/bin");
    settings = settings.wrapped(&["sh", "-c", &script]);
    let _agent = settings.start_ready().await.expect("an agent");
    let spec = testkit::workload::WorkloadSpec {
        socket: runtime.join("latchkey/agent.sock"),
        ..machine.process_of(USER)
    };
    let process = Workload::start(spec).await.expect("a process");
    let answer = process.get("/v1/secrets/dev/db").await.expect("an answer");
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], "hunter2");
}
