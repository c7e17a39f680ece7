//! Values at hand: kept connections, a large value, and a new connection for each request.

use crate::load::{self, Plan, Use};
use crate::report::{Figure, Report};
use crate::servers::{ASKING, BASELINE, LARGE, SMALL, Server, Stage};
use crate::{Outcome, Pace, process};

/// One way to ask.
struct Scenario {
    name: &'static str,
    mode: Use,
    connections: usize,
    large: bool,
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "warm, kept",
        mode: Use::Keep,
        connections: 1,
        large: false,
    },
    Scenario {
        name: "warm, kept",
        mode: Use::Keep,
        connections: 16,
        large: false,
    },
    Scenario {
        name: "warm, kept",
        mode: Use::Keep,
        connections: 64,
        large: false,
    },
    Scenario {
        name: "64 KiB, kept",
        mode: Use::Keep,
        connections: 16,
        large: true,
    },
    Scenario {
        name: "new connection",
        mode: Use::New,
        connections: 1,
        large: false,
    },
    Scenario {
        name: "new connection",
        mode: Use::New,
        connections: 16,
        large: false,
    },
];

/// The names of the scenarios, each of which may be asked for alone.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name)
}

/// Measures every `wanted` scenario on every server, round by round.
pub(crate) async fn measure(
    stage: &Stage,
    pace: Pace,
    wanted: impl Fn(&str) -> bool,
    report: &mut Report,
) -> Outcome<()> {
    let agent = stage.agent(stage.unlimited("cached", true)?, true).await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    report.number("rss_idle_bytes", agent.resident()? as f64);
    let canned = [
        stage.canned(&agent, SMALL).await?,
        stage.canned(&agent, LARGE).await?,
    ];
    let baseline = stage.baseline().await?;
    // Side by side, since they are compared most closely.
    let mut servers = vec![Stage::compared("agent", &agent)];
    servers.extend(baseline.iter().map(|it| Stage::compared(BASELINE, it)));
    servers.push(stage.floor(&canned, true).await?);
    servers.push(stage.floor(&canned, false).await?);
    match stage.nginx(&canned).await? {
        Some(nginx) => servers.push(nginx),
        None => report.note("SKIPPED: nginx is not installed (apt-get install nginx-light)"),
    }
    match stage.peer().await? {
        Some(peer) => servers.push(peer),
        None => report.note(
            "SKIPPED: AWS's agent (cargo install --locked aws_secretsmanager_agent, then --peer PROGRAM)",
        ),
    }
    for round in 0..pace.rounds {
        for scenario in SCENARIOS.iter().filter(|scenario| wanted(scenario.name)) {
            let mut order: Vec<&Server> = servers.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            // On a kept connection it asks as little as the other.
            order.retain(|server| scenario.mode == Use::New || server.name != ASKING);
            for server in order {
                process::until_quiet().await?;
                let plan = Plan {
                    address: server.address.clone(),
                    path: if scenario.large {
                        server.large
                    } else {
                        server.small
                    }
                    .to_owned(),
                    mode: scenario.mode,
                    connections: scenario.connections,
                    warm_up: pace.warm_up,
                    run: pace.run,
                    server: server.pid,
                };
                let load = load::make(&plan, stage.pod.workload.entrance().as_deref()).await?;
                report.add(Figure {
                    what: scenario.name.to_owned(),
                    connections: scenario.connections,
                    server: server.name.to_owned(),
                    load,
                });
            }
        }
    }
    report.number("rss_loaded_bytes", agent.resident()? as f64);
    Ok(())
}
