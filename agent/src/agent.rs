//! The agent as a whole: built with everything bound and nothing running, then run until it is told to leave.

mod callers;

use crate::admin;
use crate::attest::Attestor;
use crate::attest::cgroup::{AnchorError, PodUid};
use crate::attest::pods::Pods;
use crate::audit::{Audit, Writer};
use crate::backend::Backends;
use crate::config::{Config, IdentityMode};
use crate::handler::Services;
use crate::handover::{Found, Listening, Phase, Place};
use crate::metrics::Metrics;
use crate::peer::Pinning;
use crate::preflight::{self, StartError};
use crate::readiness::Readiness;
use crate::server::Server;
use crate::taint;
use crate::volumes::Volumes;
use callers::Callers;
pub(crate) use callers::account_of;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How often the socket's path is dialled and expired values are let go.
const ROUND: Duration = Duration::from_secs(1);

/// How long the listener must have been quiet before a leaving agent lets go of it.
const QUIET: Duration = Duration::from_secs(1);

/// How long to look once more into the backlog after the path is gone.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// How often a kubepods root is looked for that could not be learned at once.
const LEARN_AGAIN: Duration = Duration::from_millis(250);

/// An agent that listens and does not serve yet.
pub(crate) struct Agent {
    config: Config,
    place: Place,
    listening: Listening,
    admin: TcpListener,
    pods: Option<Arc<Pods>>,
    attestor: Arc<Attestor>,
    services: Arc<Services>,
    server: Arc<Server>,
    volumes: Option<Arc<Volumes>>,
    phase: watch::Sender<Phase>,
    writer: Writer,
    /// Absent where there is no cluster.
    own_account: Option<kube::Client>,
    started: Instant,
}

// === impl Agent ===

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Checks the surroundings and binds everything: what can fail at start fails here.
    ///
    /// # Errors
    ///
    /// Saying what is missing and what to do.
    pub(crate) async fn bind(config: Config) -> Result<Self, StartError> {
        let started = Instant::now();
        preflight::surroundings(&config)?;
        let pinning = Pinning::probe().map_err(StartError::Probe)?;
        let place = preflight::place(&config)?;
        place.sweep();
        let admin = admin::bind(config.listen.admin)
            .map_err(|error| StartError::Admin(config.listen.admin, error))?;
        let backends = Arc::new(Backends::open(&config).await.map_err(StartError::Backend)?);
        let metrics = Arc::new(Metrics::new().map_err(StartError::Metrics)?);
        let (audit, writer) =
            Audit::start(config.audit.queue, std::io::stderr()).map_err(StartError::Audit)?;
        let Callers {
            attestor,
            accounts,
            tokens,
            pods,
            own_account,
        } = Callers::bind(&config, &backends).await?;
        if let Attestor::Kubernetes(node) = &*attestor {
            match preflight::anchor(&config, preflight::own_pod(&config)?, None) {
                Ok(anchor) => node.anchor(anchor),
                // The pod's own entry will say it, once the pods are known.
                Err(AnchorError::UnknownQos) => {}
                Err(error) => return Err(StartError::Anchor(error)),
            }
        }
        let synced = pods.as_ref().map(|pods| pods.synced());
        let services = Arc::new(Services {
            accounts,
            audit,
            backends,
            metrics,
            tokens,
            node: config.kubernetes.node.clone(),
            require_header: config.listen.require_header.clone(),
            deadline: config.limits.request_deadline,
            requests: AtomicU64::new(0),
            readiness: Readiness::new(synced, attestor.clone()),
        });
        // Last, so that a start that fails leaves nothing behind.
        let listening = place.listen().map_err(StartError::Listen)?;
        let phase = watch::Sender::new(Phase::Serving);
        let server = Server::new(
            services.clone(),
            attestor.clone(),
            pinning,
            config.limits.connections,
            config.limits.connections_per_pod,
            config.limits.unattested,
            phase.subscribe(),
        )
        .map_err(StartError::Listen)?;
        let server = Arc::new(server);
        let volumes = pods.clone().filter(|_| config.csi.enabled).map(|pods| {
            Arc::new(Volumes::new(
                &config.csi,
                pods,
                attestor.clone(),
                server.clone(),
                services.metrics.clone(),
                pinning,
            ))
        });
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            node = config.kubernetes.node,
            socket = %config.listen.socket.display(),
            admin = %admin_address(&admin, config.listen.admin),
            ?pinning,
            "bound"
        );
        if pinning == Pinning::ByNumber && config.identity.mode == IdentityMode::Kubernetes {
            tracing::warn!(
                "the kernel has no SO_PEERPIDFD (Linux 6.5): pods of the node's own network are refused"
            );
        }
        Ok(Self {
            config,
            place,
            listening,
            admin,
            pods,
            attestor,
            services,
            server,
            volumes,
            phase,
            writer,
            own_account,
            started,
        })
    }

    /// Serves until `shutdown`, then drains: returns when everything in flight is answered or the drain's time
    /// is over.
    ///
    /// # Errors
    ///
    /// If the listener fails, or the path cannot be taken.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> std::io::Result<()> {
        let Self {
            config,
            place,
            listening,
            admin,
            pods,
            services,
            server,
            volumes,
            ..
        } = self;
        let mut tasks = JoinSet::new();
        if let Some(pods) = pods.clone() {
            let failures = services.metrics.watch_failures.clone();
            tasks.spawn(async move {
                pods.follow(&failures).await;
                Ok(())
            });
        }
        tasks.spawn({
            let (services, server) = (services.clone(), server.clone());
            let attestor = self.attestor.clone();
            async move {
                let gauged = services.clone();
                let gauge = Arc::new(move || gauge(&gauged, &attestor, &server));
                admin::serve(admin, services, gauge).await;
                Ok(())
            }
        });
        tasks.spawn(
            server
                .clone()
                .accept(listening.listener.clone(), server.shared_door()),
        );
        // Not one of those: it looks after the connections until the last has ended.
        let mut roll = AbortOnDropHandle::new(tokio::spawn({
            let (roll, pods, phase) = (server.roll.clone(), pods.clone(), self.phase.subscribe());
            async move { roll.look_after(pods.as_deref(), phase).await }
        }));
        let mut keeper = Keeper {
            place,
            current: listening,
            has_path: false,
            volumes,
        };
        // On a cold start pods are better off waiting inside than finding nobody.
        if keeper.place.look(&keeper.current).await == Found::Nobody {
            keeper.take().await?;
        }
        {
            let mut ready = std::pin::pin!(ready(&config, pods.as_ref(), &self.attestor));
            let mut is_ready = false;
            let mut rounds = interval(ROUND);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = &mut ready, if !is_ready => {
                        is_ready = true;
                        if keeper.has_path {
                            // The pods are known now, and so whose tokens are to come.
                            keeper.keep_volumes().await;
                        } else {
                            keeper.take().await?;
                        }
                        let took = self.started.elapsed();
                        tracing::info!(took_ms = took.as_secs_f64() * 1000.0, "ready");
                        if let (Some(key), Some(account)) =
                            (config.kubernetes.startup_taint.clone(), self.own_account.clone())
                        {
                            let node = config.kubernetes.node.clone();
                            tasks.spawn(async move {
                                taint::take_off(account, &node, &key).await;
                                Ok(())
                            });
                        }
                    }
                    Some(ended) = tasks.join_next() => ended??,
                    ended = &mut roll => ended??,
                    _ = rounds.tick() => {
                        for pod in self.attestor.pods() {
                            pod.values.tidy();
                        }
                        if let Some(listener) = keeper.watch(&self.phase).await? {
                            // The one before goes on, for containers in which the socket itself is mounted.
                            tasks.spawn(server.clone().accept(listener, server.shared_door()));
                        }
                        if keeper.has_path && *self.phase.borrow() == Phase::Serving {
                            keeper.keep_volumes().await;
                        }
                    }
                }
            }
        }

        let deadline = Instant::now() + config.limits.drain;
        tracing::info!(connections = server.open_connections(), "draining");
        self.phase.send_replace(Phase::Draining);
        // New connections are still answered: the path may lead here, and the backlog may hold some.
        // What comes in last has some of the time for its answer.
        let last_call = deadline - config.limits.drain / 4;
        while Instant::now() < last_call && server.quiet_for() < QUIET {
            sleep(QUIET / 20).await;
        }
        keeper.place.leave(&keeper.current).await;
        if let Some(volumes) = &keeper.volumes {
            volumes.leave();
        }
        sleep(LAST_LOOK).await;
        tasks.shutdown().await;
        server.tasks.close();
        if timeout_at(deadline, server.tasks.wait()).await.is_err() {
            tracing::warn!(
                connections = server.open_connections(),
                "the drain's time is over"
            );
        }
        tracing::info!("drained");
        // The audit trail ends when nothing can write to it any more; volumes read for their files.
        drop((keeper, services, server, roll));
        let written = tokio::task::spawn_blocking(|| self.writer.finish());
        let _ = timeout_at(deadline.max(Instant::now() + QUIET), written).await;
        Ok(())
    }
}

/// Holds the socket's path.
struct Keeper {
    place: Place,
    current: Listening,
    has_path: bool,
    /// The sockets in pods' volumes, which go with the path.
    volumes: Option<Arc<Volumes>>,
}

impl Keeper {
    async fn take(&mut self) -> std::io::Result<()> {
        self.place.take(&self.current).await?;
        self.has_path = true;
        self.keep_volumes().await;
        Ok(())
    }

    async fn keep_volumes(&self) {
        if let Some(volumes) = &self.volumes {
            volumes.keep().await;
        }
    }

    /// Looks who answers on the path. Nobody: it is taken, or bound again and the listener for it returned. Another
    /// agent: ours has been replaced. Fails when the directory itself has been removed.
    async fn watch(
        &mut self,
        phase: &watch::Sender<Phase>,
    ) -> std::io::Result<Option<Arc<tokio::net::UnixListener>>> {
        let found = self.place.look(&self.current).await;
        let now = match found {
            Found::Another if self.has_path => Phase::Replaced,
            // Not replaced: it has not taken the path yet, because it is not ready.
            Found::Ours | Found::Another | Found::Nobody => Phase::Serving,
        };
        let changed = phase.send_if_modified(|phase| std::mem::replace(phase, now) != now);
        if changed && now == Phase::Replaced {
            // In a hand-over this is expected; at any other time somebody has put a socket of theirs in its place.
            tracing::warn!("another process answers on the socket's path");
        }
        let bound = match found {
            Found::Ours | Found::Another => return Ok(None),
            Found::Nobody if self.has_path => self.bind_again().await.map(Some),
            // The other has left or died before this one was ready. As on a cold start, pods wait inside.
            Found::Nobody => self.take().await.map(|()| None),
        };
        match bound {
            Ok(listener) => {
                tracing::warn!("nobody answered on the socket's path; bound it again");
                Ok(listener)
            }
            // Started anew, the agent's mount leads to the directory that is there now.
            Err(error) if self.place.is_gone() => Err(error),
            Err(error) => {
                tracing::error!(%error, "cannot bind the socket's path again");
                Ok(None)
            }
        }
    }

    async fn bind_again(&mut self) -> std::io::Result<Arc<tokio::net::UnixListener>> {
        self.current = self.place.listen()?;
        self.take().await?;
        Ok(self.current.listener.clone())
    }
}

/// Ends when this node's pods are known and the attestor is anchored: at once where there is no cluster.
async fn ready(config: &Config, pods: Option<&Arc<Pods>>, attestor: &Attestor) {
    let (Some(pods), Attestor::Kubernetes(attestor)) = (pods, attestor) else {
        return;
    };
    let mut synced = pods.synced();
    let _ = synced.wait_for(|synced| *synced).await;
    let own_pod = config
        .kubernetes
        .pod_uid
        .as_deref()
        .and_then(|uid| uid.parse::<PodUid>().ok());
    let mut told = false;
    while !attestor.is_anchored() {
        let qos = own_pod
            .and_then(|uid| pods.by_uid(uid))
            .and_then(|pod| pod.facts().qos);
        match preflight::anchor(config, own_pod, qos) {
            Ok(anchor) => attestor.anchor(anchor),
            Err(error) if !told => {
                tracing::error!(%error, "cannot learn the node's kubepods root");
                told = true;
            }
            Err(_) => {}
        }
        if !attestor.is_anchored() {
            sleep(LEARN_AGAIN).await;
        }
    }
}

/// Sets the gauges to what is so now.
fn gauge(services: &Services, attestor: &Attestor, server: &Server) {
    let all = attestor.pods();
    let metrics = &services.metrics;
    metrics
        .connections
        .set(i64::try_from(server.open_connections()).unwrap_or(i64::MAX));
    metrics
        .pods
        .set(i64::try_from(all.len()).unwrap_or(i64::MAX));
    metrics
        .audit_queue
        .set(i64::try_from(services.audit.waiting()).unwrap_or(i64::MAX));
    for (backend, name) in services.backends.names() {
        let sessions: usize = all.iter().map(|pod| pod.sessions.count(backend)).sum();
        metrics
            .sessions
            .with_label_values(&[&**name])
            .set(i64::try_from(sessions).unwrap_or(i64::MAX));
    }
}

fn admin_address(listener: &TcpListener, configured: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(configured)
}
