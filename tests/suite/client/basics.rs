//! One secret, many, names, and who this is; and what each of them says when it cannot.

use super::{Client, command_in, ended};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use testkit::aws::{Behaviour, Fault, Operation, SecretInput};
use testkit::binaries::sibling_binary;
use testkit::sandbox::{REGION, password};
use testkit::workload::{Workload, WorkloadSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

#[tokio::test]
async fn a_value_is_printed_as_it_is_and_nothing_else() {
    needs_workloads!();
    let client = Client::start().await;
    let name = "test/database-password";
    assert_eq!(client.run(&["get", name]).await.printed(), password("test"));
    let version = client
        .sandbox
        .aws_secret("test/json", r#"{"user":"u","port":5432,"pw":"p q"}"#);
    let key = ["get", "test/json", "--key"];
    assert_eq!(
        client.run(&[&key[..], &["pw"]].concat()).await.printed(),
        "p q"
    );
    assert_eq!(
        client.run(&[&key[..], &["/port"]].concat()).await.printed(),
        "5432"
    );
    let printed = client
        .run(&["get", "test/json", "--key", "user", "--json"])
        .await;
    let json: serde_json::Value = serde_json::from_str(printed.printed()).expect("JSON");
    let right = serde_json::json!({"name": "test/json", "value": "u", "version": version, "backend": "aws"});
    assert_eq!(json, right);
    client.sandbox.aws_secret("test/json", "another");
    let old = client
        .run(&["get", "test/json", "--version", &version, "--key", "pw"])
        .await;
    assert_eq!(old.printed(), "p q");
    let old = client
        .run(&["get", "test/json", "--stage", "AWSPREVIOUS", "--key", "pw"])
        .await;
    assert_eq!(old.printed(), "p q");
    assert_eq!(
        client.run(&["get", "test/json", "--fresh"]).await.printed(),
        "another"
    );
}

#[tokio::test]
async fn a_binary_value_is_written_byte_by_byte_into_a_file_of_its_own() {
    needs_workloads!();
    let client = Client::start().await;
    let bytes = [0, 0xff, b'\n', b'\'', 0x80];
    client
        .sandbox
        .aws
        .put_secret(REGION, "test/key.bin", SecretInput::binary(bytes));
    let out = client.sandbox.directory().join("key.bin");
    fs::write(&out, "an old value").expect("a file");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o644)).expect("its mode");
    let path = out.to_str().expect("a path");
    assert_eq!(
        client
            .run(&["get", "test/key.bin", "--out", path])
            .await
            .printed(),
        ""
    );
    assert_eq!(fs::read(&out).expect("the file"), bytes);
    let mode = fs::metadata(&out).expect("the file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let json = client.run(&["get", "test/key.bin", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(json.printed()).expect("JSON");
    assert_eq!(
        (&json["value"], &json["encoding"]),
        (&"AP8KJ4A=".into(), &"base64".into())
    );
    // What cannot be read leaves the file as it was, and nothing beside it.
    client
        .run(&["get", "test/none", "--out", path])
        .await
        .failed(3, "test/none: ");
    assert_eq!(fs::read(&out).expect("the file"), bytes);
    client
        .run(&["get", "test/key.bin", "--out", path, "--mode", "644"])
        .await
        .is_usage();
    client
        .run(&["get", "test/key.bin", "--out", "/dev/null"])
        .await
        .failed(2, "no regular file");
    client
        .run(&["get", "test/key.bin", "--out", "/no/such/file"])
        .await
        .failed(1, "/no/such/file: there is no directory /no/such");
}

#[tokio::test]
async fn variables_come_from_the_backend_that_is_named_for_them() {
    needs_workloads!();
    let store = tempfile::tempdir().expect("a directory");
    fs::create_dir(store.path().join("test")).expect("a directory");
    fs::write(store.path().join("test/database-password"), "from a file").expect("a file");
    let client = Client::with_files(store.path()).await;
    let name = "test/database-password=DB";
    for (backend, value) in [
        (&[][..], &*password("test")),
        (&["--backend", "files"], "from a file"),
    ] {
        let env = [&["env", name, "--format", "json"], backend].concat();
        let right = format!("{{\"DB\":\"{value}\"}}\n");
        assert_eq!(client.run(&env).await.printed(), right);
        let program = ["--", "sh", "-c", "printf %s \"$DB\""];
        let exec = [&["exec", name], backend, &program].concat();
        assert_eq!(client.run(&exec).await.printed(), value);
        let stays = [&["exec", "--on-change", name], backend, &program].concat();
        assert_eq!(client.run(&stays).await.printed(), value);
    }
    client
        .run(&["env", name, "--backend", "none"])
        .await
        .failed(2, "no backend of that name");
}

#[tokio::test]
async fn each_kind_of_failure_has_one_line_and_its_exit_code() {
    needs_workloads!();
    let client = Client::start().await;
    client.sandbox.aws_namespace("prod");
    client.sandbox.aws_secret("test/text", "no JSON");
    for (arguments, code, text) in [
        (&["get", "test/none"][..], 3, "no such secret"),
        (&["get", "test/text", "--key", "k"], 1, "no JSON object"),
        (&["get", "prod/database-password"], 4, "refused"),
        (&["get", "test/../prod/x"], 2, "invalid_request"),
        (
            &["get", "test/text", "--backend", "nope"],
            2,
            "no backend of that name",
        ),
        (&["env", "test/text", "test/none"], 3, "test/none: "),
        (&["env", "test/text=1A"], 2, "test/text=VARIABLE"),
        (
            &["exec", "test/text=A B", "--", "true"],
            2,
            "test/text=VARIABLE",
        ),
        (
            &["env", "test/text=A", "test/database-password=A"],
            2,
            "both for the variable A",
        ),
    ] {
        client.run(arguments).await.failed(code, text);
    }
    for arguments in [
        &["frobnicate"][..],
        &["get"],
        &["get", "x", "--verbose"],
        &["exec", "A"],
        &["env"],
    ] {
        client.run(arguments).await.is_usage();
    }
    let misspelt = client.run(&["healthchek"]).await;
    misspelt.failed(2, "'healthcheck'");
    let nothing = client.run(&[]).await;
    assert_eq!(
        (nothing.code, &*nothing.stdout),
        (Some(2), ""),
        "{nothing:?}"
    );
    assert!(
        nothing.stderr.contains("latchkey [OPTIONS] <COMMAND>"),
        "{nothing:?}"
    );
    // Every one that is refused is named, in the order asked for, and the code is the first one's.
    let many = client
        .run(&["env", "test/none", "test/text", "prod/database-password"])
        .await;
    assert_eq!(many.code, Some(3), "{many:?}");
    let lines: Vec<_> = many.stderr.lines().collect();
    assert!(
        lines.len() == 2
            && lines[0].contains("test/none")
            && lines[1].contains("prod/database-password"),
        "{many:?}"
    );
    assert_eq!(many.stdout, "");
    let outage = client.sandbox.aws.fault(Fault::on(
        Operation::GetSecretValue,
        Behaviour::ServiceUnavailable,
    ));
    client
        .run(&["get", "test/text", "--timeout", "9s"])
        .await
        .failed(5, "unavailable");
    drop(outage);
    assert_eq!(client.run(&["get", "test/text"]).await.printed(), "no JSON");
}

#[tokio::test]
async fn who_is_no_pod_is_denied_and_where_no_agent_is_it_says_so() {
    needs_workloads!();
    let client = Client::start().await;
    let missing = client.sandbox.directory().join("nowhere/agent.sock");
    let without = command_in(&client.pod, &missing, &["get", "x"]);
    ended(without).await.failed(5, "latchkey doctor");
    // The directory is there and nobody listens: that is tried for a moment.
    let silent = client.sandbox.directory().join("agent.sock");
    let begun = std::time::Instant::now();
    ended(command_in(&client.pod, &silent, &["whoami"]))
        .await
        .failed(5, "cannot reach the agent");
    assert!(begun.elapsed() < std::time::Duration::from_secs(8));
    let host = Workload::start(WorkloadSpec::host(&client.sandbox.socket()))
        .await
        .expect("a process");
    let program = testkit::binaries::sibling_binary("sandbox-latchkey").expect("the command");
    let socket = client.sandbox.socket();
    let arguments = ["--socket", socket.to_str().expect("a path"), "whoami"];
    let denied = host
        .execute(program.to_str().expect("a path"), &arguments)
        .await
        .expect("it runs");
    assert_eq!(
        (denied.code, &*denied.stdout),
        (Some(4), ""),
        "{}",
        denied.stderr
    );
    assert!(denied.stderr.contains("not_attested"), "{}", denied.stderr);
}

#[tokio::test]
async fn names_are_listed_to_the_last_page_and_who_asks_is_told_who_it_is() {
    needs_workloads!();
    let client = Client::start().await;
    let mut names: Vec<String> = (0..230)
        .map(|number| format!("test/many/{number:03}"))
        .collect();
    for name in &names {
        client.sandbox.aws_secret(name, "x");
    }
    names.push("test/database-password".into());
    names.sort();
    let listed = client.run(&["list"]).await;
    let mut lines: Vec<&str> = listed.printed().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, names);
    let some = client.run(&["list", "test/d", "--json"]).await;
    assert_eq!(some.printed(), "[\"test/database-password\"]\n");
    let who = client.run(&["whoami"]).await;
    for text in ["test/web", "test-app", "n1", client.pod.object.uid()] {
        assert!(who.printed().contains(text), "{who:?}");
    }
    let who = client.run(&["whoami", "--json"]).await;
    let who: serde_json::Value = serde_json::from_str(who.printed()).expect("JSON");
    assert_eq!(
        (&who["namespace"], &who["pod"]),
        (&"test".into(), &"web".into())
    );
}

#[tokio::test]
async fn a_list_whose_page_names_itself_as_the_next_one_ends_with_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let agent = tokio::net::UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = agent.accept().await.expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            let body = r#"{"secrets":["db"],"next":"again"}"#;
            let answer = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
            let written = stream.write_all(answer.as_bytes()).await;
            written.expect("it is taken");
        }
    });
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .arg("list")
        .env("LATCHKEY_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let listed = ended(command).await;
    assert_eq!(
        (listed.code, &*listed.stdout),
        (Some(1), "db\ndb\n"),
        "{listed:?}"
    );
    assert!(listed.stderr.contains("does not end"), "{listed:?}");
}

#[tokio::test]
async fn variables_are_printed_in_order_from_as_many_secrets_as_there_are() {
    needs_workloads!();
    let client =
        Client::with(|settings| settings.set("limits.requests_per_second_per_pod", "100")).await;
    let mut arguments = vec!["env".to_owned()];
    let mut lines = String::new();
    for number in 0..130 {
        client
            .sandbox
            .aws_secret(&format!("test/s-{number}"), &format!("it's {number}\n"));
        arguments.push(format!("test/s-{number}"));
        lines.push_str(&format!("TEST_S_{number}=\"it's {number}\n\"\n"));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_eq!(client.run(&arguments).await.printed(), lines);
    let json = client
        .run(&["env", "test/s-1=A", "test/s-2=B", "--format", "json"])
        .await;
    assert_eq!(
        json.printed(),
        "{\"A\":\"it's 1\\n\",\"B\":\"it's 2\\n\"}\n"
    );
    client.sandbox.aws_secret("test/nul", "a\0b");
    client
        .run(&["env", "test/s-1", "test/nul"])
        .await
        .failed(1, "NUL");
}

#[tokio::test]
async fn a_shell_has_its_secrets_or_ends_with_the_commands_code() {
    needs_workloads!();
    let client = Client::start().await;
    let shell = async |name: &str| {
        let line = format!(
            "env=$(\"$0\" env {name}=DB --format shell) || exit; eval \"$env\"; unset env; printf %s \"$DB\""
        );
        client.shell(&line).await
    };
    let with = shell("test/database-password").await;
    assert_eq!(with.printed(), password("test"));
    shell("test/none").await.failed(3, "test/none");
}

#[tokio::test]
async fn a_probe_succeeds_while_the_agent_is_ready() {
    needs_workloads!();
    let mut client = Client::start().await;
    assert_eq!(client.run(&["healthcheck"]).await.printed(), "");
    client.agent.stop().await.expect("it ends");
    client
        .run(&["healthcheck"])
        .await
        .failed(5, "cannot reach the agent");
}

#[tokio::test]
async fn a_secret_that_is_not_there_yet_for_a_moment_is_waited_for() {
    needs_workloads!();
    let client = Client::start().await;
    let throttle = Fault::on(Operation::GetSecretValue, Behaviour::Throttle(Some(1))).times(2);
    let _throttled = client.sandbox.aws.fault(throttle);
    let name = "test/database-password";
    assert_eq!(client.run(&["get", name]).await.printed(), password("test"));
    // One name of a batch that is throttled is asked for again by itself.
    let throttle = Fault::on(Operation::GetSecretValue, Behaviour::Throttle(Some(1)));
    let _throttled = client.sandbox.aws.fault(throttle.for_secret(name).times(1));
    client.sandbox.aws_secret("test/other", "o");
    let env = client
        .run(&["env", &format!("{name}=A"), "test/other=B"])
        .await;
    assert_eq!(env.printed(), format!("A='{}'\nB='o'\n", password("test")));
}

#[tokio::test]
async fn a_new_agent_takes_over_without_a_command_that_fails() {
    needs_workloads!();
    let mut client = Client::start().await;
    let socket = client.sandbox.socket();
    client.agent.stop().await.expect("it ends");
    assert!(!socket.exists());
    let late = async { client.sandbox.agent().await.expect("an agent") };
    let early = ended(command_in(
        &client.pod,
        &socket,
        &["get", "test/database-password"],
    ));
    let (_agent, early) = tokio::join!(late, early);
    assert_eq!(early.printed(), password("test"));
}

#[tokio::test]
async fn completions_are_scripts_of_their_shells() {
    needs_workloads!();
    let client = Client::start().await;
    let script = client.run(&["completions", "bash"]).await;
    let checked = tokio::process::Command::new("bash")
        .args(["-n", "-c", script.printed()])
        .status()
        .await
        .expect("bash runs");
    assert!(checked.success());
    for shell in ["zsh", "fish"] {
        let script = client.run(&["completions", shell]).await;
        assert!(script.printed().contains("healthcheck"), "{shell}");
    }
    client.run(&["completions", "cobol"]).await.is_usage();
}

#[tokio::test]
async fn on_a_terminal_a_value_has_a_line_of_its_own_many_have_progress_and_trouble_has_a_colour() {
    needs_workloads!();
    let client = Client::start().await;
    for number in 0..30 {
        client.sandbox.aws_secret(&format!("test/s-{number}"), "x");
    }
    let program = testkit::binaries::sibling_binary("sandbox-latchkey").expect("the command");
    // Both stdout and stderr are the terminal that script(1) makes.
    let on_terminal = async |line: &str, colour: bool| {
        let mut command = client
            .pod
            .workload
            .command(Path::new("script"))
            .expect("a cgroup");
        let line = format!("{} {line}", program.display());
        command
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TERM", "xterm")
            .env("LATCHKEY_SOCKET", client.sandbox.socket())
            .stdin(std::process::Stdio::null());
        if !colour {
            command.env("NO_COLOR", "1");
        }
        ended(command).await.stdout
    };
    let value = on_terminal("get test/s-1", true).await;
    assert_eq!(value, "x\r\n");
    let names: Vec<_> = (0..30).map(|number| format!("test/s-{number}")).collect();
    let many = on_terminal(&format!("env {}", names.join(" ")), true).await;
    assert!(many.contains("/30 secrets"), "{many:?}");
    assert!(many.contains("TEST_S_29='x'"), "{many:?}");
    let trouble = on_terminal("get test/none", true).await;
    assert!(
        trouble.contains("\u{1b}[") && trouble.contains("no such secret"),
        "{trouble:?}"
    );
    let plain = on_terminal("get test/none", false).await;
    assert!(
        !plain.contains('\u{1b}') && plain.contains("no such secret"),
        "{plain:?}"
    );
}

#[tokio::test]
async fn an_agent_that_requires_a_header_is_sent_it_by_option_or_variable() {
    needs_workloads!();
    let client = Client::with(|settings| settings.set("listen.require_header", "x-latchkey")).await;
    let get = ["get", "test/database-password"];
    client.run(&get).await.failed(2, "x-latchkey");
    let with = [&get[..], &["--header", "X-Latchkey"]].concat();
    assert_eq!(client.run(&with).await.printed(), password("test"));
    let mut command = client.command(&get);
    command.env("LATCHKEY_HEADER", "x-latchkey");
    assert_eq!(ended(command).await.printed(), password("test"));
    let doctor = client.run(&["doctor"]).await;
    assert_eq!(doctor.code, Some(2), "{doctor:?}");
    assert!(doctor.stdout.contains("LATCHKEY_HEADER=NAME"), "{doctor:?}");
}

#[tokio::test]
async fn what_no_header_is_called_is_refused_before_anything_is_asked() {
    needs_workloads!();
    let client = Client::start().await;
    for arguments in [
        &["get", "test/database-password"][..],
        &["list"],
        &["exec", "test/database-password", "--", "true"],
        &[
            "exec",
            "--on-change",
            "test/database-password",
            "--",
            "true",
        ],
        &["env", "test/database-password"],
        &["render", "/dev/null"],
        &["whoami"],
        &["doctor"],
        &["proxy"],
        &["healthcheck"],
    ] {
        for name in ["X-Mine: 1", "x mine", "x-m\u{fc}n"] {
            let option = [&["--header", name], arguments].concat();
            client.run(&option).await.failed(2, "--header");
            let mut command = client.command(arguments);
            command.env("LATCHKEY_HEADER", name);
            ended(command).await.failed(2, "LATCHKEY_HEADER");
        }
    }
}

#[tokio::test]
async fn many_names_take_no_longer_than_two_requests_where_the_vault_is_away() {
    needs_workloads!();
    let client = Client::start().await;
    let _outage = client.sandbox.aws.fault(Fault::on(
        Operation::GetSecretValue,
        Behaviour::ServiceUnavailable,
    ));
    let names: Vec<_> = (0..10).map(|number| format!("test/{number}")).collect();
    let mut arguments = vec!["--timeout", "4", "env"];
    arguments.extend(names.iter().map(String::as_str));
    let began = Instant::now();
    let ended = client.run(&arguments).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), names.len(), "{ended:?}");
    let took = began.elapsed();
    // One after the other they would be forty.
    assert!(took < Duration::from_secs(25), "it took {took:?}");
}
