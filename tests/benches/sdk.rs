//! The cloud's SDK alone: what an application would pay that reads its secrets itself.

use crate::load::{Latency, Load, exact, until_placed};
use crate::process::{self, Cpu};
use crate::{Outcome, servers};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The argument that makes this program the SDK.
pub(crate) const PART: &str = "--part-sdk";

/// What to read, and as whom.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) credentials: [String; 3],
    /// The secret's name; `{}` stands for the task's number.
    pub(crate) secret: String,
    pub(crate) connections: usize,
    pub(crate) warm_up: Duration,
    pub(crate) run: Duration,
}

pub(crate) fn main(plan: &str) -> Outcome<()> {
    let plan: Plan = serde_json::from_str(plan)?;
    until_placed()?;
    process::pin(servers::SERVER)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let load = runtime.block_on(run(&plan))?;
    serde_json::to_writer(std::io::stdout(), &load)?;
    Ok(())
}

async fn run(plan: &Plan) -> Outcome<Load> {
    let [key, secret, token] = plan.credentials.clone();
    let config = aws_sdk_secretsmanager::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(plan.region.clone()))
        .endpoint_url(&plan.endpoint)
        .credentials_provider(Credentials::from_keys(key, secret, Some(token)))
        .build();
    let client = Client::from_conf(config);
    calls(&client, plan, plan.warm_up).await?;
    let own = std::process::id();
    let (before, busy, began) = (Cpu::of(own)?, Cpu::of_machine()?, Instant::now());
    let times = calls(&client, plan, plan.run).await?;
    let took = began.elapsed().as_secs_f64();
    let (cpu, busy) = (Cpu::of(own)?.since(before), Cpu::of_machine()? - busy);
    let answers = exact(times.len().max(1));
    Ok(Load {
        answered: times.len(),
        failed: 0,
        per_second: answers / took,
        cpu: Cpu {
            user: cpu.user / answers,
            system: cpu.system / answers,
        },
        server_share: cpu.total() / took / 1e6,
        foreign_share: ((busy - cpu.total()) / took / 1e6).max(0.0),
        latency: Latency::of(times),
    })
}

/// Reads one after the other, on so many tasks, for so long.
async fn calls(client: &Client, plan: &Plan, run: Duration) -> Outcome<Vec<u32>> {
    let end = Instant::now() + run;
    let tasks = (0..plan.connections).map(|number| async move {
        let mut times = Vec::new();
        let secret = plan.secret.replace("{}", &number.to_string());
        while Instant::now() < end {
            let began = Instant::now();
            client.get_secret_value().secret_id(&secret).send().await?;
            times.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(times)
    });
    Ok(futures::future::try_join_all(tasks).await?.concat())
}
