//! A pod can make each read and write of the agent's on its connections take as long as it likes.

use super::{Neighbours, connect};
use std::time::Duration;
use testkit::until;
use testkit::workload::{Raw, Signal, Workload, WorkloadSpec};
use tokio::time::timeout;

/// How often the pod watches its own end: each of the agent's calls goes through all of that.
const WATCHES: usize = 250_000;

/// In how many pieces it sends, for each of which a read does so again.
const PIECES: usize = 150;

#[tokio::test]
async fn a_pod_that_makes_reads_costly_by_watching_its_own_end_loses_its_connection_and_its_permit()
{
    needs_workloads!();
    let of = Neighbours::start(&[("limits.connections_per_pod", "1")]).await;
    let noisy = &of.noisy.workload;
    let names = connect(noisy, 1).await;
    noisy.watch(&names[0], WATCHES).await.expect("watches");
    let send_byte = async || {
        let raw = Raw {
            connection: Some(names[0].clone()),
            read_millis: 0,
            ..Raw::new("G")
        };
        noisy.raw(raw).await.expect("it is sent");
    };
    // The beginning of a request counts against no limit. The first read arouses suspicion, the second one proves it.
    for _ in 0..2 {
        of.agent.signal(Signal::SIGSTOP).expect("it runs");
        for _ in 0..PIECES {
            send_byte().await;
        }
        of.agent.signal(Signal::SIGCONT).expect("it is stopped");
        of.polite_is_served().await;
    }
    let told = of.agent.until_line("a peer watches its own end").await;
    let told = told.expect("a warning");
    assert!(told.contains(&format!("\"pid\":{}", noisy.pid())), "{told}");
    assert!(told.contains("noisy"), "{told}");
    let rest = Raw {
        connection: Some(names[0].clone()),
        ..Raw::new("")
    };
    let rest = noisy.raw(rest).await.expect("it is there");
    assert!(rest.closed && rest.bytes.is_empty());
    // The pod has one permit, which is kept from it for twenty times as long as it kept the agent.
    let another = of.noisy.get("/v1/identity").await.expect("an answer");
    another.must_be_refused(429, "busy");
    of.polite_is_served().await;
    // With the pod goes what its connection owes; who was refused keeps a place at the door until that is paid.
    let open = async || of.agent.metric("latchkey_connections").await;
    of.noisy.object.delete();
    let is_over = async || open().await.expect("the metrics") <= 1.0;
    until("no connection of the pod", is_over).await;
}

/// On kernels before Linux 6.16, which cannot refuse what is passed.
#[tokio::test]
async fn nobody_waits_for_the_last_close_of_what_came_with_a_read_that_was_too_costly() {
    needs_workloads!();
    let of = Neighbours::start_with(|all| all.on_a_machine_without("passrights")).await;
    // On the node's network, since a pod of the sandbox has no TCP of its own.
    let place = WorkloadSpec {
        own_network: false,
        ..of.sandbox.place(of.noisy.object.uid(), &of.noisy.container)
    };
    let noisy = Workload::start(place).await.expect("a process");
    let names = connect(&noisy, 1).await;
    noisy.watch(&names[0], WATCHES).await.expect("watches");
    let piece = |descriptors: usize| Raw {
        connection: Some(names[0].clone()),
        descriptors,
        lingers: 60,
        read_millis: 0,
        ..Raw::new("G")
    };
    for descriptors in [0, 1] {
        of.agent.signal(Signal::SIGSTOP).expect("it runs");
        for _ in 1..PIECES {
            noisy.raw(piece(0)).await.expect("it is sent");
        }
        noisy.raw(piece(descriptors)).await.expect("it is sent");
        of.agent.signal(Signal::SIGCONT).expect("it is stopped");
        let served = timeout(Duration::from_secs(15), of.polite_is_served()).await;
        served.expect("everybody waits");
    }
    let told = of.agent.until_line("a peer watches its own end").await;
    told.expect("a warning");
}
