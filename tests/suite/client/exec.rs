//! `latchkey exec`: the program has its secrets and is a process of its own.

use super::{Client, command_in, ended};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;
use testkit::aws::{Operation, SecretInput};
use testkit::clouds::Cloud as _;
use testkit::clouds::azure::Azure;
use testkit::sandbox::{CANARY, REGION, Sandbox, password};
use testkit::until;
use tokio::time::timeout;

const DB: &str = "test/database-password=DB";

#[tokio::test]
async fn a_variable_is_there_however_the_name_is_spelt_that_the_vault_folds() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let azure = Azure::start(&sandbox).await.expect("a cloud");
    azure.namespace(&sandbox, "test");
    azure.put("test/key", b"from the vault");
    let agent = sandbox.agent_with(|settings| azure.settings(settings));
    let _agent = agent.await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let program = [
        "exec",
        "Test/Key=KEY",
        "--",
        "sh",
        "-c",
        "printf %s \"$KEY\"",
    ];
    let said = ended(command_in(&pod, &sandbox.socket(), &program)).await;
    assert_eq!(
        (said.code, &*said.stdout),
        (Some(0), "from the vault"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_program_has_its_secrets_in_its_environment_and_none_in_its_arguments() {
    needs_workloads!();
    let client = Client::start().await;
    let script = r#"printf '%s|' "$DB" "$TEST_DATABASE_PASSWORD" "$KEPT" "$1"; tr '\0' ' ' < /proc/$$/cmdline"#;
    let arguments = [
        "exec",
        DB,
        "test/database-password",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "a b",
    ];
    let mut command = client.command(&arguments);
    command.env("KEPT", "kept");
    let ended = ended(command).await;
    let value = password("test");
    let begin = format!("{value}|{value}|kept|a b|");
    let arguments = ended
        .printed()
        .strip_prefix(&begin)
        .unwrap_or_else(|| panic!("{ended:?}"));
    assert!(arguments.starts_with("sh -c "), "{arguments}");
    assert!(!arguments.contains(CANARY), "{arguments}");
}

#[tokio::test]
async fn every_byte_but_nul_reaches_the_program() {
    needs_workloads!();
    let client = Client::start().await;
    let bytes: Vec<u8> = (1..=255).collect();
    client
        .sandbox
        .aws
        .put_secret(REGION, "test/bytes", SecretInput::binary(bytes));
    client
        .sandbox
        .aws_secret("test/trouble", "a=b\n'\"$(id)`id`\\ ");
    let script = "printf %s \"$B\" | od -An -v -tu1 | tr -s ' \\n' ' '; printf %s \"$T\"";
    let ended = client
        .run(&[
            "exec",
            "test/bytes=B",
            "test/trouble=T",
            "--",
            "sh",
            "-c",
            script,
        ])
        .await;
    let numbers: String = (1..=255).map(|byte| format!(" {byte}")).collect();
    assert_eq!(
        ended.printed().replace("255 ", "255"),
        format!("{numbers}a=b\n'\"$(id)`id`\\ ")
    );
    client.sandbox.aws_secret("test/nul", "a\0b");
    client
        .run(&["exec", "test/nul", "--", "echo", "started"])
        .await
        .failed(1, "test/nul: its value holds a NUL byte");
    // Each fits into a variable, and all together into no environment.
    client.sandbox.aws_secret("test/long", &"x".repeat(120_000));
    let many: Vec<_> = (0..100).map(|n| format!("test/long=L{n}")).collect();
    let mut arguments = vec!["exec"];
    arguments.extend(many.iter().map(String::as_str));
    arguments.extend(["--", "echo", "started"]);
    client
        .run(&arguments)
        .await
        .failed(1, "longer than the system takes");
}

#[tokio::test]
async fn signals_and_exit_codes_are_the_programs_own() {
    needs_workloads!();
    let client = Client::start().await;
    let exited = client.run(&["exec", DB, "--", "sh", "-c", "exit 43"]).await;
    assert_eq!((exited.code, &*exited.stderr), (Some(43), ""));
    let mut child = client
        .command(&["exec", DB, "--", "sleep", "60"])
        .spawn()
        .expect("it starts");
    let pid = child.id().expect("a pid");
    // The program is this process, and no child of it.
    let arguments = || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    until("the program", async || arguments() == b"sleep\x0060\0").await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("a signal");
    let status = timeout(Duration::from_secs(20), child.wait())
        .await
        .expect("it ends")
        .expect("a status");
    assert_eq!(status.signal(), Some(15));
    // A program that writes to whom nobody listens dies as it would without us.
    let script = "yes | head -n 1 > /dev/null; echo ${PIPESTATUS[0]}";
    let piped = client.run(&["exec", DB, "--", "bash", "-c", script]).await;
    assert_eq!(piped.printed(), "141\n");
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_said_so_before_a_secret_is_read() {
    needs_workloads!();
    let client = Client::start().await;
    let file = client.sandbox.directory().join("no-program");
    std::fs::write(&file, "#!/no/such/shell\n").expect("a file");
    let file = file.to_str().expect("a path");
    let directory = client.sandbox.directory();
    let directory = directory.to_str().expect("a path");
    let path = format!("{directory}:/usr/bin:/bin");
    let nobody = client.sandbox.directory().join("nobody.sock");
    for socket in [client.sandbox.socket(), nobody] {
        for (program, code, text) in [
            ("no-such-program", 127, "No such file"),
            ("/no/such/program", 127, "No such file"),
            (file, 126, "Permission denied"),
            // Found in PATH, as the file that it is.
            ("no-program", 126, "Permission denied"),
            (directory, 126, "directory"),
        ] {
            let arguments = ["exec", DB, "--", program];
            let mut command = command_in(&client.pod, &socket, &arguments);
            command.env("PATH", &path);
            let ended = ended(command).await;
            ended.failed(code, program);
            ended.failed(code, text);
        }
    }
    let reads = client.sandbox.aws.calls_of(Operation::GetSecretValue);
    assert!(reads.is_empty());
    // What only the kernel can tell is told when it is run.
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    client
        .run(&["exec", DB, "--", file])
        .await
        .failed(127, "no-program");
    let marker = client.sandbox.directory().join("marker");
    let marker = marker.to_str().expect("a path");
    client
        .run(&["exec", DB, "test/none", "--", "touch", marker])
        .await
        .failed(3, "test/none");
    assert!(
        !Path::new(marker).exists(),
        "nothing is started without all of its secrets"
    );
}

#[tokio::test]
async fn strict_refuses_what_was_meant_to_be_replaced_and_is_not() {
    needs_workloads!();
    let client = Client::start().await;
    let with = |variable: &'static str, value: &'static str, arguments: &[&str]| {
        let mut command = client.command(arguments);
        command.env(variable, value);
        ended(command)
    };
    let strict = [
        "exec",
        "--strict",
        DB,
        "--",
        "sh",
        "-c",
        "printf %s \"$DB\"",
    ];
    with("API_KEY", "from-latchkey", &strict)
        .await
        .failed(2, "API_KEY");
    assert_eq!(
        with("DB", "from-latchkey", &strict).await.printed(),
        password("test")
    );
    let other = ["exec", "--strict", "--sentinel", "me", DB, "--", "true"];
    with("API_KEY", "me", &other).await.failed(2, "API_KEY");
    assert_eq!(with("API_KEY", "from-latchkey", &other).await.printed(), "");
    let lax = ["exec", DB, "--", "sh", "-c", "printf %s \"$API_KEY\""];
    assert_eq!(
        with("API_KEY", "from-latchkey", &lax).await.printed(),
        "from-latchkey"
    );
}

#[tokio::test]
async fn pristine_leaves_nothing_but_the_secrets() {
    needs_workloads!();
    let client = Client::start().await;
    // `env` is found where we would find it, though it gets no PATH.
    let ended = client.run(&["exec", "--pristine", DB, "--", "env"]).await;
    assert_eq!(ended.printed(), format!("DB={}\n", password("test")));
}

#[tokio::test]
async fn an_empty_part_of_path_is_the_current_directory() {
    needs_workloads!();
    let client = Client::start().await;
    let program = client.sandbox.directory().join("here");
    std::fs::write(&program, "#!/bin/sh\necho \"here $0\"\n").expect("a file");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    // Where nothing but the path that was found leads to it.
    let mut command = client.command(&["exec", "--pristine", DB, "--", "here"]);
    command
        .current_dir(client.sandbox.directory())
        .env("PATH", ":/usr/bin");
    assert_eq!(ended(command).await.printed(), "here ./here\n");
}
