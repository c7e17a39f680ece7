//! The agent's memory with a full node: 110 pods, 1,000 connections, each pod with its session and its value.

use crate::report::Report;
use crate::servers::{SMALL, Stage};
use crate::{Outcome, load};
use std::time::Duration;
use testkit::workload::Request;

/// The most pods that a kubelet takes by default.
const PODS: usize = 110;

/// How many connections they have together.
const CONNECTIONS: usize = 1000;

pub(crate) async fn measure(stage: &Stage, report: &mut Report) -> Outcome<()> {
    let agent = stage
        .agent(stage.settings("full")?.set("cache.ttl", "5m"), false)
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    report.number("rss_start_bytes", agent.resident()? as f64);
    let mut pods = Vec::with_capacity(PODS);
    for number in 0..PODS {
        pods.push(stage.pod(&format!("full-{number}"), agent.socket()).await?);
    }
    let mut answered: usize = 0;
    for (number, pod) in (0..CONNECTIONS).zip(pods.iter().cycle()) {
        let name = number.to_string();
        pod.connect(&name).await?;
        let answer = pod.send_on(&name, Request::get(SMALL)).await?;
        answered += usize::from(answer.status == 200);
    }
    report.number("full_answered", load::exact(answered));
    report.number(
        "full_connections",
        agent.metric("latchkey_connections").await?,
    );
    report.number("rss_full_bytes", agent.resident()? as f64);
    Ok(())
}
