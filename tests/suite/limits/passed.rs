//! Descriptors that a peer passes along with what it sends, and what their last close would cost whoever makes it.

use super::Neighbours;
use std::io::ErrorKind;
use std::time::Duration;
use testkit::agent::AgentSettings;
use testkit::aws::{Behaviour, Fault, Operation};
use testkit::workload::{Raw, Signal, Workload, WorkloadSpec};
use tokio::time::{sleep, timeout};

const REQUEST: &str = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";

/// How long the close of what is passed takes, in seconds: far longer than any answer does.
const LINGERS: u64 = 60;

/// A kernel that refuses them when they are sent, and one before Linux 6.16.
async fn on_both_kernels(check: impl AsyncFn(Neighbours, bool)) {
    let older = |settings: AgentSettings| settings.on_a_machine_without("passrights");
    check(Neighbours::start_with(older).await, false).await;
    if refuses() {
        check(Neighbours::start(&[]).await, true).await;
    }
}

/// Whether the kernel of this machine has `SO_PASSRIGHTS`.
fn refuses() -> bool {
    let script = "import socket; socket.socketpair()[0].setsockopt(1, 83, 0)";
    let mut python = std::process::Command::new("python3");
    let ran = python
        .args(["-c", script])
        .stderr(std::process::Stdio::null());
    ran.status().expect("python3").success()
}

#[tokio::test]
async fn descriptors_that_a_peer_sends_along_are_never_kept() {
    needs_workloads!();
    on_both_kernels(async |of, refused| {
        let open = || {
            std::fs::read_dir(format!("/proc/{}/fd", of.agent.pid()))
                .expect("its descriptors")
                .count()
        };
        let before = open();
        for _ in 0..20 {
            let raw = Raw {
                descriptors: 200,
                ..Raw::new(REQUEST)
            };
            match of.noisy.workload.raw(raw).await {
                Err(error) if refused => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
                // Nobody answers somebody who does this.
                received => assert!(received.expect("a connection").bytes.is_empty()),
            }
        }
        let few = async || open() <= before + 4;
        testkit::until("as many descriptors as before", few).await;
        of.polite_is_served().await;
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_the_last_close_of_what_a_peer_has_passed() {
    needs_workloads!();
    on_both_kernels(async |of, refused| {
        // On the node's network, since a pod of the sandbox has no TCP of its own.
        let place = WorkloadSpec {
            own_network: false,
            ..of.sandbox.place(of.noisy.object.uid(), &of.noisy.container)
        };
        let noisy = Workload::start(place).await.expect("a process");
        let lingering = |bytes: &str| Raw {
            descriptors: 1,
            lingers: LINGERS,
            read_millis: 0,
            ..Raw::new(bytes)
        };
        // Of more than one byte, all but the last would carry them.
        let urgent = Raw {
            urgent: true,
            ..lingering("G")
        };
        for (number, raw) in [lingering(REQUEST), urgent].into_iter().enumerate() {
            // Stopped, so that the sender has closed its own before the agent takes the message off the queue.
            of.agent.signal(Signal::SIGSTOP).expect("it runs");
            match noisy.raw(raw).await {
                Err(error) if refused => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
                sent => assert!(!sent.expect("it is sent").closed),
            }
            of.agent.signal(Signal::SIGCONT).expect("it is there");
            let served = timeout(Duration::from_secs(15), of.polite_is_served()).await;
            served.unwrap_or_else(|_| panic!("{number}: everybody waits"));
        }
        if refused {
            return;
        }
        // One that nobody reads: it comes while an earlier request is answered, and then the pod goes.
        let _hang = of
            .sandbox
            .aws
            .fault(Fault::on(Operation::GetSecretValue, Behaviour::Hang));
        noisy.connect("busy").await.expect("a connection");
        let busy = |raw: Raw| Raw {
            connection: Some("busy".into()),
            read_millis: 300,
            ..raw
        };
        for raw in [
            Raw::new("GET /v1/secrets/test/database-password HTTP/1.1\r\nHost: x\r\n\r\n"),
            lingering(REQUEST),
        ] {
            let received = noisy.raw(busy(raw)).await.expect("it is sent");
            assert!(!received.closed && received.bytes.is_empty());
        }
        of.noisy.object.delete();
        sleep(Duration::from_secs(3)).await;
        let served = timeout(Duration::from_secs(15), of.polite.get("/v1/identity")).await;
        let answer = served.expect("everybody waits").expect("an answer");
        assert_eq!(answer.status, 200);
    })
    .await;
}
