//! The agent as a whole: first everything is bound with nothing running, then it runs until told to leave.

mod callers;
mod keeper;

use crate::admin;
use crate::attest::Attestor;
use crate::attest::pods::Pods;
use crate::audit::{Audit, Writer};
use crate::backend::Backends;
use crate::config::{Config, IdentityMode};
use crate::handler::{Clouds, Services};
use crate::handover::{Holder, Phase};
use crate::metrics::Metrics;
use crate::passed::Listener;
use crate::peer::Pinning;
use crate::preflight::{self, StartError};
use crate::server::{Server, Warnings};
use crate::stderr::Stderr;
use crate::taint;
use crate::volumes::Volumes;
use callers::Callers;
use keeper::Keeper;
use prometheus::IntGauge;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How often the agent connects to the socket's path, and drops what has expired.
const ROUND: Duration = Duration::from_secs(1);

/// How long no connection may have come before a leaving agent gives up the listener. Less than a [`ROUND`], in which
/// an agent that this one has replaced connects to the path.
const QUIET: Duration = Duration::from_millis(750);

/// How long to still accept from the backlog once the path is gone.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);

/// How long before the end of the drain's time it is too late for a request to come in whole. That is enough for the
/// connections that wait for one to end.
const LAST_HEADS: Duration = Duration::from_millis(250);

/// How often to try again to learn the kubepods root.
const LEARN_AGAIN: Duration = Duration::from_millis(250);

/// An agent that listens and does not serve yet.
pub(crate) struct Agent {
    config: Arc<Config>,
    keeper: Keeper,
    admin: Arc<TcpListener>,
    pods: Option<Arc<Pods>>,
    services: Arc<Services>,
    server: Arc<Server>,
    /// Background tasks, some of which run until the agent leaves. If one fails, the agent ends.
    tasks: JoinSet<std::io::Result<()>>,
    writer: Writer,
    /// Absent without a cluster.
    own_account: Option<kube::Client>,
    started: Instant,
}

// === impl Agent ===

impl Agent {
    /// Checks what the agent depends on and binds everything: whatever can fail at start fails here.
    ///
    /// # Errors
    ///
    /// Says what is missing and what to do.
    pub(crate) async fn bind(config: Config) -> Result<Self, StartError> {
        let started = Instant::now();
        let roots = preflight::surroundings(&config)?;
        let pinning = preflight::pinning(&config)?;
        let path = preflight::socket_path(&config)?;
        path.sweep();
        let address = config.listen.admin;
        let admin = admin::bind(address).map_err(|source| StartError::Admin { address, source })?;
        let backends = Arc::new(
            Backends::open(&config, roots)
                .await
                .map_err(StartError::Backend)?,
        );
        let metrics = Arc::new(Metrics::new().map_err(StartError::Metrics)?);
        metrics.begin_backends(config.backends.keys());
        let (audit, writer) =
            Audit::start(config.audit_queue, Stderr).map_err(StartError::Audit)?;
        let Callers {
            attestor,
            accounts,
            tokens,
            pods,
            own_account,
        } = Callers::bind(&config, &backends, &metrics).await?;
        let clouds = Clouds {
            backends: backends.clone(),
            tokens,
            metrics: metrics.clone(),
            warnings: Warnings::default(),
        };
        let services = Arc::new(Services {
            accounts,
            audit,
            backends,
            clouds: Arc::new(clouds),
            metrics,
            node: config.kubernetes.node.clone(),
            require_header: config.listen.require_header.clone(),
            deadline: config.limits.request_deadline,
            requests: AtomicU64::new(0),
            attestor,
        });
        let no_socket = |source| StartError::Listen {
            socket: config.listen.socket.clone(),
            source,
        };
        // Last, so that a failed start leaves nothing behind.
        let listening = path.listen().map_err(no_socket)?;
        let phase = watch::Sender::new(Phase::Serving);
        let server = Server::new(services.clone(), pinning, &config.limits, phase.subscribe())
            .map_err(no_socket)?;
        let server = Arc::new(server);
        let of_node = pods.clone().zip(services.attestor.node().cloned());
        let volumes = of_node.filter(|_| config.csi.enabled).map(|(pods, node)| {
            Arc::new(Volumes::new(
                &config.csi,
                pods,
                node,
                server.clone(),
                services.metrics.clone(),
                pinning,
            ))
        });
        announce(&config, &admin, pinning);
        let reached = services.metrics.socket_reached.clone();
        let attestor = services.attestor.clone();
        let keeper = Keeper::new(path, listening, phase, volumes, reached, attestor);
        Ok(Self {
            config: Arc::new(config),
            keeper,
            admin: Arc::new(admin),
            pods,
            services,
            server,
            tasks: JoinSet::new(),
            writer,
            own_account,
            started,
        })
    }

    /// Serves until told to leave, then drains: returns when everything in flight is answered, the drain's time is
    /// over, or it is told to leave at once.
    ///
    /// # Errors
    ///
    /// If the listener fails or the path cannot be taken. Then it does not wait for requests in flight, but still for
    /// the audit trail: the last lines may be about secrets that have been given out.
    pub(crate) async fn run(mut self, leave: Leave) -> std::io::Result<Drained> {
        let mut roll = self.begin();
        let served = self.serve(&mut roll, leave.soon).await;
        let time = match served {
            Ok(()) => self.config.limits.drain,
            Err(_) => Duration::ZERO,
        };
        let drained = self.drain(roll, time, leave.now).await;
        served.map(|()| drained)
    }

    /// Starts to follow the pods, serve the admin port and accept workloads. The task that it returns looks after the
    /// connections until the last has ended.
    fn begin(&mut self) -> AbortOnDropHandle<std::io::Result<()>> {
        if let Some(pods) = self.pods.clone() {
            self.tasks.spawn(async move {
                pods.follow().await;
                Ok(())
            });
        }
        self.tasks.spawn({
            let (admin, services) = (self.admin.clone(), self.services.clone());
            let (server, volumes) = (self.server.clone(), self.keeper.volumes.clone());
            async move {
                let gauge = Arc::new(move || gauge(&server, volumes.as_deref()));
                admin::serve(&admin, services, gauge).await;
                Ok(())
            }
        });
        self.accept(self.keeper.listener());
        let (roll, pods) = (self.server.roll.clone(), self.pods.clone());
        let phase = self.keeper.phase.subscribe();
        AbortOnDropHandle::new(tokio::spawn(async move {
            roll.look_after(pods.as_deref(), phase).await
        }))
    }

    fn accept(&mut self, listener: Arc<Listener>) {
        let server = self.server.clone();
        let door = server.shared_door();
        self.tasks.spawn(server.accept(listener, door));
    }

    /// Serves until `shutdown`: takes the path once the pods are known, and regularly checks who has it.
    async fn serve(
        &mut self,
        roll: &mut AbortOnDropHandle<std::io::Result<()>>,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        // On a cold start, pods had better wait inside than find nobody.
        if self.keeper.look() == Holder::Nobody {
            self.keeper.take().await?;
        }
        let (config, pods) = (self.config.clone(), self.pods.clone());
        let mut ready = std::pin::pin!(ready(config, pods, self.services.attestor.clone()));
        let mut is_ready = false;
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = &mut ready, if !is_ready => {
                    is_ready = true;
                    self.became_ready().await?;
                }
                Some(ended) = self.tasks.join_next() => ended??,
                ended = &mut *roll => ended??,
                _ = rounds.tick() => self.round().await?,
            }
        }
    }

    /// The pods are known: takes the path, and lets the node accept pods.
    async fn became_ready(&mut self) -> std::io::Result<()> {
        if self.keeper.has_path {
            // Now it is known for which pods tokens will come.
            self.keeper.keep_volumes().await;
        } else {
            // At the last look another agent answered there, or the path would have been taken already.
            self.keeper.take().await?;
            tracing::info!("took the socket over from another agent");
        }
        let took = self.started.elapsed();
        tracing::info!(took_ms = took.as_secs_f64() * 1000.0, "ready");
        let settings = &self.config.kubernetes;
        if let (Some(key), Some(account)) =
            (settings.startup_taint.clone(), self.own_account.clone())
        {
            let node = settings.node.clone();
            self.tasks.spawn(async move {
                taint::take_off(account, &node, &key).await;
                Ok(())
            });
        }
        Ok(())
    }

    /// Periodic work.
    async fn round(&mut self) -> std::io::Result<()> {
        for pod in self.services.attestor.pods() {
            pod.sessions.tidy();
            pod.values.tidy();
        }
        if let Some(listener) = self.keeper.watch().await? {
            // The previous listener goes on, for containers that mount the socket itself.
            self.accept(listener);
        }
        if self.keeper.has_path && *self.keeper.phase.borrow() == Phase::Serving {
            self.keeper.keep_volumes().await;
        }
        Ok(())
    }

    /// Answers what is in flight and what still comes, until no more comes, `time` is over, or `at_once`.
    async fn drain(
        self,
        roll: AbortOnDropHandle<std::io::Result<()>>,
        time: Duration,
        at_once: CancellationToken,
    ) -> Drained {
        let Self {
            keeper,
            admin,
            services,
            server,
            mut tasks,
            writer,
            ..
        } = self;
        let deadline = Instant::now() + time;
        tracing::info!(connections = server.open_connections(), "draining");
        keeper.phase.send_replace(Phase::Draining);
        // New connections are still answered: the path may still lead here, and the backlog may hold some. The last
        // quarter of the time is left for answers to what came in last.
        let last_call = deadline - time / 4;
        while Instant::now() < last_call && server.quiet_for() < QUIET && !at_once.is_cancelled() {
            sleep(QUIET / 20).await;
        }
        let left = keeper.leave().await;
        sleep(LAST_ACCEPTS).await;
        drop(left);
        // From here on no changes to pods are noticed either: a pod deleted now still gets what it has requested, for
        // `limits.drain` at most.
        tasks.shutdown().await;
        // Nobody accepts any more: containers that mount the socket itself must get an error at once.
        drop(keeper);
        // From now on a successor in the same network namespace has the port alone.
        drop(admin);
        server.tasks.close();
        let ended = async {
            let _ = timeout_at(deadline - LAST_HEADS, server.tasks.wait()).await;
            server.roll.stop_reading();
            server.tasks.wait().await;
        };
        let why_cut = tokio::select! {
            biased;
            () = ended => None,
            () = at_once.cancelled() => Some("told to leave at once: these connections were cut"),
            () = sleep_until(deadline) => Some("the drain's time is over: these connections were cut"),
        };
        let cut = server.open_connections();
        // The audit trail ends once nothing can write to it.
        drop((services, server, roll));
        let backlog = writer.backlog();
        let written = tokio::task::spawn_blocking(|| writer.finish());
        // Connections that were cut write their lines a little later, so the trail must not end before that.
        let soon = Instant::now() + QUIET;
        let until = why_cut.map_or(deadline.max(soon), |_| soon);
        let _ = timeout_at(until, written).await;
        // A log line that may be lost: nobody may be reading stderr, and the agent must leave all the same.
        let unwritten = backlog.is_there();
        if unwritten {
            tracing::error!("the last audit lines could not all be written");
        }
        if let Some(why) = why_cut {
            tracing::error!(connections = cut, "{why}");
        }
        if unwritten || why_cut.is_some() {
            return Drained::InPart;
        }
        tracing::info!("drained");
        Drained::Whole
    }
}

/// Tells an agent to leave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leave {
    /// Drain, then leave.
    pub(crate) soon: CancellationToken,
    /// End the drain, whoever still waits for an answer.
    pub(crate) now: CancellationToken,
}

/// How an agent has left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Drained {
    /// Every request was answered, and the audit trail is complete.
    Whole,
    /// The time ran out.
    InPart,
}

/// Resolves when this node's pods are known and the attestor is anchored: at once without a cluster.
async fn ready(config: Arc<Config>, pods: Option<Arc<Pods>>, attestor: Arc<Attestor>) {
    let Some((pods, node)) = pods.zip(attestor.node()) else {
        return;
    };
    pods.synced().await;
    let own_pod = config.kubernetes.pod_uid;
    let mut told = false;
    while !node.is_anchored() {
        let qos = own_pod
            .and_then(|uid| pods.by_uid(uid))
            .and_then(|pod| pod.facts().qos);
        match preflight::anchor(&config, qos) {
            Ok(anchor) => node.anchor(anchor),
            Err(error) if !told => {
                tracing::error!(%error, "cannot learn the node's kubepods root");
                told = true;
            }
            Err(_) => {}
        }
        if !node.is_anchored() {
            sleep(LEARN_AGAIN).await;
        }
    }
}

/// Sets the gauges to the current values.
fn gauge(server: &Server, volumes: Option<&Volumes>) {
    let services = &server.services;
    let set = |gauge: &IntGauge, count| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    let all = services.attestor.pods();
    let metrics = &services.metrics;
    set(&metrics.connections, server.open_connections());
    set(&metrics.pods, all.len());
    set(&metrics.volumes, volumes.map_or(0, Volumes::count));
    set(&metrics.audit_queue, services.audit.waiting());
    for (backend, name) in services.backends.names() {
        let sessions = all.iter().map(|pod| pod.sessions.count(backend)).sum();
        let gauge = metrics.sessions.with_label_values(&[&**name]);
        set(&gauge, sessions);
    }
}

/// Logs what is bound, and what this kernel lacks.
fn announce(config: &Config, admin: &TcpListener, pinning: Pinning) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.kubernetes.node,
        socket = %config.listen.socket.display(),
        admin = %admin.local_addr().unwrap_or(config.listen.admin),
        ?pinning,
        "bound"
    );
    if pinning == Pinning::ByNumber && config.identity.mode == IdentityMode::Kubernetes {
        tracing::warn!(
            "the kernel has no SO_PEERPIDFD (Linux 6.5): pods of the node's own network are refused"
        );
    }
}
