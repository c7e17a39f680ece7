//! From start to socket, and to ready.

use crate::report::Report;
use crate::servers::{Stage, until};
use crate::{Outcome, Pace, process};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::sleep;

pub(crate) async fn measure(stage: &Stage, pace: Pace, report: &mut Report) -> Outcome<()> {
    let (mut sockets, mut readies) = (Vec::new(), Vec::new());
    for number in 0..pace.rounds * 3 {
        process::until_quiet().await?;
        let settings = stage.settings(&format!("start-{number}"))?;
        let settings = stage.as_in_the_image(settings)?;
        let began = Instant::now();
        let agent = settings.start().await?;
        while UnixStream::connect(agent.socket()).await.is_err() {
            sleep(Duration::from_micros(200)).await;
        }
        sockets.push(began.elapsed().as_secs_f64() * 1000.0);
        until(|| async {
            agent
                .admin("/readyz")
                .await
                .is_ok_and(|(status, _)| status == 200)
        })
        .await?;
        readies.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    report.spread("start_to_socket_ms", sockets);
    report.spread("start_to_ready_ms", readies);
    Ok(())
}
