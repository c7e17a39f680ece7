//! What follows a rotation: `exec --on-change`.

use super::{Client, PATIENCE};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use testkit::aws::Operation;
use testkit::binaries::sibling_binary;
use testkit::sandbox::{CANARY, password};
use testkit::until;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

/// A command that stays.
pub(super) struct Staying {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Staying {
    /// `exec --on-change` with these options, of a script that has its secret as `DB`.
    fn exec(client: &Client, options: &[&str], script: &str) -> Self {
        let program = ["test/database-password=DB", "--", "sh", "-c", script];
        let arguments = [&["exec", "--on-change"], options, &program].concat();
        Self::start(client.command(&arguments))
    }

    pub(super) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        Self { child, lines }
    }

    pub(super) async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("a line in time")
            .expect("its stdout")
            .unwrap_or_else(|| "END".into())
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("a signal");
    }

    /// Its exit code, and what it said.
    pub(super) async fn end(mut self) -> (Option<i32>, String) {
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .expect("it ends")
            .expect("a status");
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("its stderr");
        stderr.read_to_string(&mut said).await.expect("its stderr");
        (status.code(), said)
    }
}

impl Client {
    /// Waits until the vault has been read so often: each batch once, and then once more by each watch.
    pub(super) async fn until_reads(&self, count: usize) {
        let reads = async || self.sandbox.aws.count_of(Operation::GetSecretValue) >= count;
        until("so many reads", reads).await;
    }
}

#[tokio::test]
async fn a_rotated_secret_starts_the_program_anew_and_nothing_else_does() {
    needs_workloads!();
    let client = Client::start().await;
    // The program ends in its own time when it is told to, and leaves an orphan behind.
    let script = r#"trap 'echo "ends $$"; exit 3' TERM; trap 'echo usr1' USR1; echo "begins $$ $DB"; (sleep 0.1 &) ; while :; do sleep 0.05; done"#;
    let mut staying = Staying::exec(&client, &[], script);
    let first = staying.line().await;
    assert!(
        first.starts_with("begins ") && first.ends_with(&password("test")),
        "{first}"
    );
    let supervisor = staying.child.id().expect("a pid");
    for process in [
        supervisor.to_string(),
        first.split(' ').nth(1).expect("a pid").to_owned(),
    ] {
        let arguments =
            fs::read_to_string(format!("/proc/{process}/cmdline")).expect("its arguments");
        assert!(!arguments.contains(CANARY), "{arguments:?}");
    }
    // Not HUP: where nohup(1) is above the tests, it is not passed on.
    staying.signal(Signal::SIGUSR1);
    assert_eq!(staying.line().await, "usr1");
    // The batch has read it, and the wait has begun.
    client.until_reads(2).await;
    client
        .sandbox
        .aws_secret("test/database-password", "rotated");
    assert!(staying.line().await.starts_with("ends "));
    let second = staying.line().await;
    assert!(
        second.starts_with("begins ") && second.ends_with(" rotated"),
        "{second}"
    );
    assert_ne!(first.split(' ').nth(1), second.split(' ').nth(1));
    // What is sent to the supervisor is the program's, and its exit code is the program's.
    staying.signal(Signal::SIGTERM);
    assert!(staying.line().await.starts_with("ends "));
    let (code, said) = staying.end().await;
    assert_eq!(code, Some(3), "{said}");
    assert_eq!(said, "latchkey: test/database-password has changed\n");
}

#[tokio::test]
async fn the_backend_that_is_named_is_the_one_that_is_watched() {
    needs_workloads!();
    let store = tempfile::tempdir().expect("a directory");
    let secret = store.path().join("test/only-here");
    fs::create_dir(store.path().join("test")).expect("a directory");
    fs::write(&secret, "old").expect("a file");
    let client = Client::with_files(store.path()).await;
    let script = "echo \"begins $DB\"; exec sleep 600";
    let exec = ["exec", "--on-change", "--backend", "files"];
    let program = ["test/only-here=DB", "--", "sh", "-c", script];
    let mut staying = Staying::start(client.command(&[&exec[..], &program].concat()));
    assert_eq!(staying.line().await, "begins old");
    fs::write(&secret, "new, and longer").expect("a file");
    assert_eq!(staying.line().await, "begins new, and longer");
    staying.signal(Signal::SIGTERM);
    staying.end().await;
}

#[tokio::test]
async fn an_agent_that_is_watched_leaves_all_the_same_and_the_next_one_tells_of_the_change() {
    needs_workloads!();
    let mut client = Client::start().await;
    let mut staying = Staying::exec(&client, &[], "echo \"begins $DB\"; exec sleep 600");
    assert!(staying.line().await.starts_with("begins "));
    client.until_reads(2).await;
    let began = Instant::now();
    client.agent.stop().await.expect("it ends");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    let reads = client.sandbox.aws.count_of(Operation::GetSecretValue);
    assert!(reads <= 3, "the vault was read {reads} times");
    client
        .sandbox
        .aws_secret("test/database-password", "rotated");
    let _agent = client.sandbox.agent().await.expect("an agent");
    assert_eq!(staying.line().await, "begins rotated");
}

#[tokio::test]
async fn a_program_may_be_signalled_instead_and_keeps_its_old_values_while_there_are_no_new_ones() {
    needs_workloads!();
    let client = Client::start().await;
    let script = r#"trap 'echo usr1' USR1; echo "begins $DB"; while :; do sleep 0.05; done"#;
    let exec = |more: &[&'static str]| {
        let arguments = [
            &["exec", "--on-change"][..],
            more,
            &["test/database-password=DB", "--", "sh", "-c", script],
        ]
        .concat();
        Staying::start(client.command(&arguments))
    };
    let mut signalled = exec(&["--signal", "USR1"]);
    let mut anew = exec(&["--grace", "1s"]);
    assert!(signalled.line().await.starts_with("begins "));
    assert!(anew.line().await.starts_with("begins "));
    client.until_reads(4).await;
    client
        .sandbox
        .aws_secret("test/database-password", "rotated");
    assert_eq!(signalled.line().await, "usr1");
    let again = anew.line().await;
    assert_eq!(again, "begins rotated");
    for (mut staying, signal, code) in [
        (signalled, Signal::SIGKILL, None),
        (anew, Signal::SIGTERM, Some(143)),
    ] {
        staying.signal(signal);
        if signal == Signal::SIGTERM {
            assert_eq!(staying.line().await, "END");
        }
        drop(staying.lines);
        let status = timeout(PATIENCE, staying.child.wait())
            .await
            .expect("it ends")
            .expect("a status");
        assert_eq!(status.code(), code);
    }
}

#[tokio::test]
async fn a_program_goes_on_with_its_old_value_while_the_new_one_is_none_for_a_variable() {
    needs_workloads!();
    let client = Client::start().await;
    let script = "echo \"begins ${#DB}\"; exec sleep 600";
    let mut staying = Staying::exec(&client, &[], script);
    let stderr = staying.child.stderr.take().expect("its stderr");
    let mut stderr = BufReader::new(stderr).lines();
    assert!(staying.line().await.starts_with("begins "));
    client.until_reads(2).await;
    // With its name, `=` and a NUL it is one byte longer than a variable may be (execve(2)).
    let long = "x".repeat(128 * 1024 - "DB=".len());
    client.sandbox.aws_secret("test/database-password", &long);
    let said = async {
        loop {
            let line = stderr.next_line().await.expect("its stderr");
            let line = line.expect("it goes on");
            if !line.contains("has changed") {
                return line;
            }
        }
    };
    let said = timeout(PATIENCE, said).await.expect("it says so");
    let right = "latchkey: test/database-password: its value is longer";
    assert!(said.starts_with(right), "{said}");
    assert!(said.contains("latchkey get --out"), "{said}");
    // The longest that one can have is the next that the program says anything of.
    client
        .sandbox
        .aws_secret("test/database-password", &long[1..]);
    assert_eq!(staying.line().await, format!("begins {}", long.len() - 1));
    staying.signal(Signal::SIGTERM);
    let status = timeout(PATIENCE, staying.child.wait()).await;
    let status = status.expect("it ends").expect("a status");
    assert_eq!(status.code(), Some(143));
}

#[tokio::test]
async fn what_is_ignored_when_it_starts_neither_the_supervisor_nor_the_program_listens_to() {
    needs_workloads!();
    let client = Client::start().await;
    let line = "trap '' HUP; exec \"$0\" exec --on-change test/database-password=DB -- \
        sh -c 'kill -HUP $PPID $$; sleep 0.5; echo stays'";
    assert_eq!(client.shell(line).await.printed(), "stays\n");
}

#[tokio::test]
async fn what_is_blocked_when_it_starts_reaches_the_supervisor_and_the_program_all_the_same() {
    needs_workloads!();
    let client = Client::start().await;
    let program = ["test/database-password=DB", "--", "sh", "-c"];
    let program = [&program[..], &["kill -TERM $$; echo stays"]].concat();
    for (exec, code) in [
        (&["exec"][..], None),
        (&["exec", "--on-change"], Some(128 + Signal::SIGTERM as i32)),
    ] {
        let command = client.command(&[exec, &program].concat());
        // A process inherits what is blocked in the thread that starts it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let staying = Staying::start(command);
        before.expect("a mask").thread_set_mask().expect("a mask");
        assert_eq!(staying.end().await, (code, String::new()), "{exec:?}");
    }
}

#[tokio::test]
async fn a_supervisor_whose_program_does_not_start_ends_as_it_would_without() {
    needs_workloads!();
    let client = Client::start().await;
    let with = ["exec", "--on-change", "test/database-password=DB", "--"];
    let run = async |command: &[&str]| client.run(&[&with[..], command].concat()).await;
    run(&["no-such-program"])
        .await
        .failed(127, "no-such-program");
    assert_eq!(run(&["sh", "-c", "exit 9"]).await.code, Some(9));
    assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).await.code, Some(137));
    assert_eq!(run(&["sh", "-c", "kill -PIPE $$"]).await.code, Some(141));
    client
        .run(&["exec", "--on-change", "test/none", "--", "true"])
        .await
        .failed(3, "test/none");
    client
        .run(&["exec", "--signal", "HUP", "test/none", "--", "true"])
        .await
        .is_usage();
    client
        .run(&[
            "exec",
            "--on-change",
            "--signal",
            "NOPE",
            "test/none",
            "--",
            "true",
        ])
        .await
        .is_usage();
}

/// The children of a process, the oldest first, by proc_pid_task_children(5).
fn children(pid: &str) -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

/// Whether a process has ended and nobody has taken it in.
fn is_zombie(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains(") Z ")
}

/// Sends any signal, also those that have a number and no name.
async fn send(signal: &str, pid: &str) {
    let sent = Command::new("kill")
        .args([signal, pid])
        .status()
        .await
        .expect("kill(1)");
    assert!(sent.success(), "{signal} to {pid}");
}

#[tokio::test]
async fn a_real_time_signal_ends_a_program_as_any_other_does_and_keeps_nothing_from_being_reaped() {
    needs_workloads!();
    let client = Client::start().await;
    let program = sibling_binary("sandbox-latchkey").expect("the command is built");
    let unshare = client.pod.workload.command(Path::new("unshare"));
    let mut command = unshare.expect("a cgroup");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(program)
        .args(["exec", "--on-change", "test/database-password=DB", "--"])
        .args([
            "sh",
            "-c",
            "sh -c 'sleep 600 & sleep 600 &'; exec sleep 600",
        ])
        .env("LATCHKEY_SOCKET", client.sandbox.socket());
    let mut outer = command.spawn().expect("it starts");
    let pid = outer.id().expect("a pid").to_string();
    until("the supervisor", async || children(&pid).len() == 1).await;
    let supervisor = children(&pid).remove(0);
    // The program, and two orphans of which it knows nothing.
    until("two orphans", async || children(&supervisor).len() == 3).await;
    let all = children(&supervisor);
    let [program, first, second] = &all[..] else {
        panic!("{all:?}");
    };
    // It is told once of both, and the one that a real-time signal has killed comes first.
    send("-STOP", &supervisor).await;
    send("-40", first).await;
    send("-TERM", second).await;
    until("the end of both", async || {
        is_zombie(first) && is_zombie(second)
    })
    .await;
    send("-CONT", &supervisor).await;
    until("both reaped", async || {
        children(&supervisor) == [program.clone()]
    })
    .await;
    send("-40", program).await;
    let status = timeout(PATIENCE, outer.wait()).await;
    let status = status.expect("it ends").expect("a status");
    assert_eq!(status.code(), Some(128 + 40));
}

#[tokio::test]
async fn a_program_that_has_been_asked_to_end_takes_its_time_and_is_not_started_again() {
    needs_workloads!();
    let client = Client::start().await;
    let may_end = client.sandbox.directory().join("may-end");
    let drain = format!("while [ ! -e {} ]; do sleep 0.05; done", may_end.display());
    let script = format!(
        r#"trap 'echo quit' QUIT; trap '{drain}; echo left; exit 7' TERM; echo "begins $DB"; while :; do sleep 0.05; done"#
    );
    let exec = || Staying::exec(&client, &["--grace", "1s"], &script);
    let (mut leaves, mut stays) = (exec(), exec());
    for staying in [&mut leaves, &mut stays] {
        assert!(staying.line().await.starts_with("begins "));
    }
    client.until_reads(4).await;
    leaves.signal(Signal::SIGTERM);
    // This one only says what it is doing, as a JVM does.
    stays.signal(Signal::SIGQUIT);
    assert_eq!(stays.line().await, "quit");
    client
        .sandbox
        .aws_secret("test/database-password", "rotated");
    // Killed after its second of grace, since it may not end yet.
    assert_eq!(stays.line().await, "begins rotated");
    sleep(Duration::from_secs(1)).await;
    fs::write(&may_end, "").expect("a file");
    assert_eq!(leaves.line().await, "left");
    let (code, said) = leaves.end().await;
    assert_eq!(code, Some(7), "{said}");
    stays.signal(Signal::SIGTERM);
    assert_eq!(stays.line().await, "left");
    assert_eq!(stays.end().await.0, Some(7));
}

/// Supervises a script in a terminal, the one that script(1) makes. unshare(1) is in between with these options, and
/// unlike script(1) does not mind when the supervisor is stopped.
fn in_terminal(client: &Client, unshare: &str, script: &str, stdin: &str) -> Staying {
    let program = sibling_binary("sandbox-latchkey").expect("the command is built");
    let line = format!(
        "stty -echo; exec unshare --fork --kill-child {unshare} {} exec --on-change \
            test/database-password=DB -- sh -c \"{script}\" < {stdin}",
        program.display()
    );
    let terminal = client.pod.workload.command(Path::new("script"));
    let mut terminal = terminal.expect("a cgroup");
    terminal
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .env("LATCHKEY_SOCKET", client.sandbox.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Staying::start(terminal)
}

impl Staying {
    /// The supervisor below it, by the name that the kernel has of it, of at most 15 bytes.
    fn supervisor(&self) -> String {
        let mut all = children(&self.child.id().expect("a pid").to_string());
        while let Some(pid) = all.pop() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "sandbox-latchke" {
                return pid;
            }
            all.extend(children(&pid));
        }
        panic!("there is none");
    }
}

#[tokio::test]
async fn in_a_terminal_what_a_container_is_stopped_with_reaches_the_program() {
    needs_workloads!();
    let client = Client::start().await;
    let script = "trap 'exit 5' QUIT; echo begins; while :; do sleep 0.05; done";
    for unshare in ["--pid", ""] {
        let mut staying = in_terminal(&client, unshare, script, "/dev/tty");
        assert_eq!(staying.line().await, "begins");
        send("-QUIT", &staying.supervisor()).await;
        assert_eq!(staying.end().await.0, Some(5), "{unshare}");
    }
}

#[tokio::test]
async fn what_is_typed_into_a_terminal_reaches_the_program_once() {
    needs_workloads!();
    let client = Client::start().await;
    let script =
        "trap 'echo typed' INT; trap 'exit 6' TERM; echo begins; while :; do sleep 0.05; done";
    for (unshare, stdin) in [("--pid", "/dev/tty"), ("", "/dev/tty"), ("", "/dev/null")] {
        let mut staying = in_terminal(&client, unshare, script, stdin);
        assert_eq!(staying.line().await, "begins");
        // It sees the signal later than the program does: both together would count as one.
        let supervisor = staying.supervisor();
        send("-STOP", &supervisor).await;
        let typed = staying.child.stdin.as_mut().expect("its stdin");
        typed.write_all(b"\x03").await.expect("Ctrl-C");
        assert_eq!(staying.line().await, "typed");
        send("-CONT", &supervisor).await;
        send("-TERM", &supervisor).await;
        assert_eq!(staying.line().await, "END", "{unshare} {stdin}");
        assert_eq!(staying.end().await.0, Some(6), "{unshare} {stdin}");
    }
}
