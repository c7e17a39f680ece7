//! Templates: `render` once, and `render --watch` after a rotation.

use super::change::Staying;
use super::{Client, PATIENCE, ended};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use testkit::aws::{Behaviour, Fault, Operation};
use testkit::binaries::sibling_binary;
use testkit::machine::becoming;
use testkit::sandbox::{CANARY, password};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

fn file(client: &Client, name: &str, text: &str) -> PathBuf {
    let path = client.sandbox.directory().join(name);
    fs::write(&path, text).expect("a file");
    path
}

#[tokio::test]
async fn a_template_is_rendered_with_each_secret_read_once_and_nothing_escaped() {
    needs_workloads!();
    let client = Client::start().await;
    client
        .sandbox
        .aws_secret("test/json", r#"{"user":"u","pw":"<p&'\"@/ >"}"#);
    let text = "a={{ secret(\"test/json\", key=\"pw\") }}\nb={{ secret(\"test/json\", key=\"pw\") | urlencode | replace(\"/\", \"%2F\") }}\nc={{ secret(\"test/json\", key=\"user\") | tojson }}{{ secret(\"test/json\", key=\"pw\") | b64encode }}\n{% if secret(\"test/database-password\") %}d{% endif %}\n\n";
    let template = file(&client, "app.j2", text);
    let template = template.to_str().expect("a path");
    let right = "a=<p&'\"@/ >\nb=%3Cp%26%27%22%40%2F%20%3E\nc=\"u\"PHAmJyJALyA+\nd\n\n";
    let rendered = client.run(&["render", template]).await;
    assert_eq!(rendered.printed(), right);
    assert_eq!(client.sandbox.aws.count_of(Operation::GetSecretValue), 3);
    let out = file(&client, "app.conf", "old");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o666)).expect("its mode");
    let path = out.to_str().expect("a path");
    assert_eq!(
        client
            .run(&["render", template, "--out", path])
            .await
            .printed(),
        ""
    );
    assert_eq!(fs::read_to_string(&out).expect("the file"), right);
    assert_eq!(fs::metadata(&out).expect("the file").mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_template_that_is_wrong_is_told_by_line_and_leaves_the_file_as_it_was() {
    needs_workloads!();
    let client = Client::start().await;
    let out = file(&client, "app.conf", "old");
    let out = out.to_str().expect("a path");
    client.sandbox.aws_secret("test/binary", "x");
    for (text, code, words) in [
        (
            "\n{{ secret(\"test/none\") }}",
            3,
            "app.j2:2: test/none: there is no such secret",
        ),
        ("{{ secret(\"prod/x\") }}", 4, "app.j2:1: prod/x: "),
        ("a\nb\n{{ secret( }}", 1, "app.j2:3: "),
        ("{% if %}", 1, "app.j2:1: "),
        (
            "{{ nothing }}",
            1,
            "app.j2:1: undefined value: {{ nothing }}",
        ),
        (
            "\n{{ secret(\"test/database-password\").password | upper }}",
            1,
            "app.j2:2: undefined value: {{ secret(\"test/database-password\").password | upper }} \
             (a member of a secret is secret(NAME, key=\"password\"))",
        ),
        (
            "a {% if secret() %}b{% endif %} {{ c }}",
            1,
            "app.j2:1: missing argument: {% if secret() %} (a secret is secret(NAME))",
        ),
        (
            "{{ secret(\"\") }}",
            1,
            "app.j2:1: a secret's name is missing",
        ),
        (
            "{{ secret(\"test/database-password\", key=\"\") }}",
            1,
            "test/database-password: its key is empty",
        ),
        ("{{ sercet(\"x\") }}", 1, "sercet"),
        (
            "{{ secret(\"test/database-password\", keys=\"k\") }}",
            1,
            "keys",
        ),
        (
            "{{ secret(\"test/database-password\") | int }}",
            1,
            "app.j2:1: ",
        ),
        (
            "{{ secret(\"test/database-password\") + 1 }}",
            1,
            "app.j2:1: ",
        ),
    ] {
        let template = file(&client, "app.j2", text);
        let template = template.to_str().expect("a path");
        let ended = client.run(&["render", template, "--out", out]).await;
        ended.failed(code, words);
        assert!(!ended.stderr.contains(CANARY), "{ended:?}");
        assert_eq!(fs::read_to_string(out).expect("the file"), "old");
    }
    client
        .run(&["render", "/no/such/template", "--out", out])
        .await
        .failed(1, "/no/such/template: ");
    client
        .run(&["render", "/no/such/template", "--watch"])
        .await
        .is_usage();
    client
        .run(&["render", "x", "--out", out, "--watch", "--signal", "HUP"])
        .await
        .is_usage();
    let left = fs::read_dir(client.sandbox.directory()).expect("the directory");
    assert!(!left.flatten().any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with(".latchkey-")
    }));
}

#[tokio::test]
async fn a_watched_template_is_rendered_again_after_a_rotation_and_its_reader_is_signalled() {
    needs_workloads!();
    let client = Client::start().await;
    let template = file(
        &client,
        "app.j2",
        "pw={{ secret(\"test/database-password\") }}\n",
    );
    let out = client.sandbox.directory().join("app.conf");
    let reader = file(
        &client,
        "reader.sh",
        // Not HUP: what nohup(1) ignored before the tests, no shell below it can trap.
        "trap 'echo usr1' USR1; echo $$; while :; do sleep 0.05; done",
    );
    let mut command = Command::new("sh");
    command
        .arg(reader)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut reader = Staying::start(command);
    let pid_file = file(&client, "pid", &format!("{}\n", reader.line().await));
    let path = |path: &PathBuf| path.to_str().expect("a path").to_owned();
    let arguments = [
        "render",
        &path(&template),
        "--out",
        &path(&out),
        "--watch",
        "--signal",
        "usr1",
        "--pid-file",
        &path(&pid_file),
    ];
    let mut watching = client.command(&arguments).spawn().expect("it starts");
    let contents = async |right: &str| {
        let seen = async {
            while fs::read_to_string(&out).unwrap_or_default() != right {
                assert!(fs::metadata(&out).map_or(0, |there| there.mode() & 0o077) == 0);
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, seen).await.expect("it is rendered");
    };
    contents(&format!("pw={}\n", password("test"))).await;
    client.until_reads(2).await;
    // An outage in between is waited out, and the file stays.
    let outage = Fault::on(Operation::GetSecretValue, Behaviour::ServiceUnavailable);
    let outage = client.sandbox.aws.fault(outage.times(1));
    client
        .sandbox
        .aws_secret("test/database-password", "rotated");
    contents("pw=rotated\n").await;
    assert_eq!(reader.line().await, "usr1");
    drop(outage);
    assert!(watching.try_wait().expect("a status").is_none());
    let pid = watching
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("a signal");
    let status = timeout(PATIENCE, watching.wait())
        .await
        .expect("it ends")
        .expect("a status");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_watched_template_that_waits_for_the_agent_ends_without_a_word_when_it_is_asked_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let agent = tokio::net::UnixListener::bind(path("agent.sock")).expect("a socket");
    fs::write(path("app.j2"), "{{ secret(\"test/x\") }}").expect("a file");
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .current_dir(directory.path())
        .args(["render", "app.j2", "--watch", "--out", "app.conf"])
        .env("LATCHKEY_SOCKET", path("agent.sock"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let staying = Staying::start(command);
    // It takes the request and never answers.
    let asked = timeout(PATIENCE, agent.accept()).await.expect("it asks");
    let (mut stream, _) = asked.expect("a connection");
    stream.read_u8().await.expect("a request");
    staying.signal(Signal::SIGTERM);
    assert_eq!(staying.end().await, (Some(0), String::new()));
    assert!(!path("app.conf").exists());
}

#[tokio::test]
async fn a_rendering_is_of_one_version_of_a_secret_also_where_it_changes_meanwhile() {
    needs_workloads!();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let text = "{{ secret(\"db\", key=\"user\") }} {{ secret(\"db\", key=\"password\") }}";
    fs::write(path("app.j2"), text).expect("a file");
    let agent = tokio::net::UnixListener::bind(path("agent.sock")).expect("a socket");
    // It is rotated after the first read.
    let rotated = async move {
        for version in ["old", "new", "new", "new"] {
            let (mut stream, _) = agent.accept().await.expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            let body = serde_json::json!({"name": "db", "value": version, "version": version, "backend": "aws"});
            let answer = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
            let written = stream.write_all(answer.as_bytes()).await;
            written.expect("it is taken");
        }
    };
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .args(["render", "app.j2"])
        .current_dir(directory.path())
        .env("LATCHKEY_SOCKET", path("agent.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    tokio::spawn(rotated);
    assert_eq!(ended(command).await.printed(), "new new");
}

#[tokio::test]
async fn a_template_is_told_to_have_no_thread_where_there_can_be_no_more() {
    needs_workloads!();
    // Nobody else's, since all processes of a user count.
    const UID: u32 = 54_321;
    let directory = tempfile::tempdir().expect("a directory");
    let template = directory.path().join("app.j2");
    fs::write(&template, "no secret").expect("a file");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let mut command = Command::new("prlimit");
    command
        .args(["--nproc=1", "sh", "-c", &becoming(UID)])
        .arg(sibling_binary("sandbox-latchkey").expect("the command"))
        .arg("render")
        .arg(&template);
    ended(command).await.failed(1, "cannot start a thread");
}
