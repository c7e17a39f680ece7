//! Values at hand: kept connections, a large value, and a new connection for each request.

use crate::load::{self, Plan, Use};
use crate::report::{Figure, Report};
use crate::servers::{LARGE, SMALL, Server, Stage};
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

/// Measures every scenario on every server, round by round.
pub(crate) async fn measure(stage: &Stage, pace: Pace, report: &mut Report) -> Outcome<()> {
    let agent = stage.agent(stage.unlimited("cached", true)?, true).await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    report.number("rss_idle_bytes", agent.resident()? as f64);
    let canned = [
        stage.canned(&agent, SMALL).await?,
        stage.canned(&agent, LARGE).await?,
    ];
    let mut servers = vec![Stage::compared(&agent), stage.floor(&canned).await?];
    match stage.nginx(&canned).await? {
        Some(nginx) => servers.push(nginx),
        None => report.note("SKIPPED: nginx is not installed (apt-get install nginx-light)"),
    }
    for round in 0..pace.rounds {
        for scenario in &SCENARIOS {
            let mut order: Vec<&Server> = servers.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for server in order {
                process::until_quiet().await?;
                let plan = Plan {
                    socket: server.socket.clone(),
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
