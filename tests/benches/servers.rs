//! The servers that are compared, and the sandbox around the agent.

use crate::floor::{self, Canned};
use crate::load::Address;
use crate::{Arguments, Outcome, peer, process};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::kube::PodSpec;
use testkit::sandbox::{ACCOUNT, Sandbox, SandboxPod};
use testkit::workload::Workload;
use tokio::process::{Child, Command};

/// The argument that makes this program start another one on one processor.
pub(crate) const LAUNCH: &str = "--part-launch";

/// The processor of the server under test.
pub(crate) const SERVER: usize = 0;

/// The processor of everything else.
pub(crate) const LOAD: usize = 1;

/// The namespace of the pods.
pub(crate) const NAMESPACE: &str = "bench";

/// The bare hyper server that asks the kernel who has connected.
pub(crate) const ASKING: &str = "hyper+who";

/// The other build of the agent that it is compared with.
pub(crate) const BASELINE: &str = "baseline";

/// A secret of 64 bytes.
pub(crate) const SMALL: &str = "/v1/secrets/bench/small";

/// A secret of 64 KiB.
pub(crate) const LARGE: &str = "/v1/secrets/bench/large";

/// Where everything takes place.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) sandbox: Sandbox,
    /// The pod that makes the load.
    pub(crate) pod: SandboxPod,
    agent: Option<PathBuf>,
    baseline: Option<PathBuf>,
    peer: Option<PathBuf>,
}

/// A server under test.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) pid: u32,
    pub(crate) address: Address,
    pub(crate) small: &'static str,
    pub(crate) large: &'static str,
    /// Ends it when dropped.
    _child: Option<Child>,
}

impl Stage {
    /// Sets up cluster, cloud, a namespace with its secrets, and the pod.
    pub(crate) async fn set(arguments: &Arguments) -> Outcome<Self> {
        let sandbox = Sandbox::start().await?;
        sandbox.aws_namespace(NAMESPACE);
        sandbox.aws_secret("bench/small", &"s".repeat(64));
        sandbox.aws_secret("bench/large", &"l".repeat(64 * 1024));
        let pod = sandbox.pod(NAMESPACE, "load").await?;
        Ok(Self {
            sandbox,
            pod,
            agent: arguments.agent.clone(),
            baseline: arguments.baseline.clone(),
            peer: arguments.peer.clone(),
        })
    }

    /// The agent's program.
    pub(crate) fn program(&self) -> Outcome<PathBuf> {
        match &self.agent {
            Some(program) => Ok(program.clone()),
            None => Ok(testkit::binaries::sibling_binary("sandbox-agent")?),
        }
    }

    /// The settings of an agent whose socket is in a directory of its own.
    pub(crate) fn settings(&self, name: &str) -> Outcome<AgentSettings> {
        let mut settings = self.sandbox.settings()?;
        settings.program = self.agent.clone();
        Ok(settings.set(
            "listen.socket",
            self.sandbox
                .directory()
                .join(name)
                .join("agent.sock")
                .display(),
        ))
    }

    /// The same with the authorities as the image has them: one file, alone in its folder. A Debian machine's folder
    /// has some three hundred links beside it, each of which would be read and parsed.
    pub(crate) fn as_in_the_image(&self, settings: AgentSettings) -> Outcome<AgentSettings> {
        let machines = Path::new("/etc/ssl/certs/ca-certificates.crt");
        if !machines.exists() {
            return Ok(settings);
        }
        let folder = self.sandbox.directory().join("certs");
        let file = folder.join("ca-certificates.crt");
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(machines, &file)?;
        Ok(settings
            .env("SSL_CERT_DIR", folder.display())
            .env("SSL_CERT_FILE", file.display()))
    }

    /// The same for an agent under load: limits raised out of the load's way, values cached or not.
    pub(crate) fn unlimited(&self, name: &str, cached: bool) -> Outcome<AgentSettings> {
        let settings = self
            .settings(name)?
            .set("limits.requests_per_second_per_pod", 1_000_000)
            .set("limits.connections_per_pod", 4096)
            .set("limits.in_flight_per_pod", 4096);
        Ok(if cached {
            settings.set("cache.ttl", "5m")
        } else {
            settings
        })
    }

    /// Starts an agent, on the server's processor if `pinned`, with its lines going through a pipe that is read.
    pub(crate) async fn agent(
        &self,
        settings: AgentSettings,
        pinned: bool,
    ) -> Outcome<AgentProcess> {
        let fifo = self
            .sandbox
            .directory()
            .join(format!("stderr-{}", uuid::Uuid::new_v4()));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
        let drained = fifo.clone();
        std::thread::spawn(move || drain(&drained));
        let exe = std::env::current_exe()?;
        let (exe, fifo) = (exe.to_string_lossy(), fifo.to_string_lossy());
        let processor = if pinned {
            SERVER.to_string()
        } else {
            "any".to_owned()
        };
        let agent = settings
            .wrapped(&[&exe, LAUNCH, &processor, &fifo])
            .start()
            .await?;
        until(|| async {
            agent
                .admin("/readyz")
                .await
                .is_ok_and(|(status, _)| status == 200)
        })
        .await?;
        Ok(agent)
    }

    /// Starts the other build of the agent, if there is one.
    pub(crate) async fn baseline(&self) -> Outcome<Option<AgentProcess>> {
        let Some(program) = &self.baseline else {
            return Ok(None);
        };
        let mut settings = self.unlimited(BASELINE, true)?;
        settings.program = Some(program.clone());
        Ok(Some(self.agent(settings, true).await?))
    }

    /// An agent as one of those compared.
    pub(crate) fn compared(name: &'static str, agent: &AgentProcess) -> Server {
        Server {
            name,
            pid: agent.pid(),
            address: agent.socket().into(),
            small: SMALL,
            large: LARGE,
            _child: None,
        }
    }

    /// A pod whose process asks the agent on `socket`.
    pub(crate) async fn pod(&self, name: &str, socket: &Path) -> Outcome<Workload> {
        let spec = PodSpec::of(NAMESPACE, name, ACCOUNT);
        let pod = self
            .sandbox
            .pod_placed(spec, |place| place.socket = socket.to_owned());
        Ok(pod.await?.workload)
    }

    /// What the agent answers to a pod, to be answered by the others too.
    pub(crate) async fn canned(&self, agent: &AgentProcess, path: &str) -> Outcome<Canned> {
        let name = format!("reader-{}", uuid::Uuid::new_v4());
        let pod = self.pod(&name, agent.socket()).await?;
        // The second is from the cache, and so has all its headers.
        pod.get(path).await?;
        let answer = pod.get(path).await?;
        if answer.status != 200 {
            return Err(format!("{path}: {} {}", answer.status, answer.text()).into());
        }
        Ok(Canned {
            path: path.to_owned(),
            body: answer.text(),
            headers: answer.headers,
        })
    }

    /// Starts the bare hyper server, or the one that asks who has connected.
    pub(crate) async fn floor(&self, answers: &[Canned], asks: bool) -> Outcome<Server> {
        let name = if asks { ASKING } else { "hyper" };
        let path = |ending| self.sandbox.directory().join(name).with_extension(ending);
        let (socket, file) = (path("sock"), path("json"));
        let plan = floor::Plan {
            socket: socket.clone(),
            asks,
            answers: answers.to_vec(),
        };
        std::fs::write(&file, serde_json::to_vec(&plan)?)?;
        let exe = std::env::current_exe()?.to_string_lossy().into_owned();
        let child = start(&[&exe, floor::PART, &file.to_string_lossy()], &[])?;
        server(name, child, Address::Socket(socket), SMALL, LARGE).await
    }

    /// Starts nginx, if this machine has it.
    pub(crate) async fn nginx(&self, answers: &[Canned]) -> Outcome<Option<Server>> {
        let installed = ["/usr/sbin/nginx", "/usr/bin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let Some(program) = installed else {
            return Ok(None);
        };
        let directory = self.sandbox.directory();
        let (socket, file) = (directory.join("nginx.sock"), directory.join("nginx.conf"));
        for (name, answer) in ["small", "large"].into_iter().zip(answers) {
            std::fs::write(directory.join(name), &answer.body)?;
        }
        let (root, listen) = (directory.display(), socket.display());
        let text = format!(
            "daemon off;\nmaster_process off;\nworker_processes 1;\nerror_log /dev/null;\npid {root}/nginx.pid;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n access_log off;\n sendfile on;\n open_file_cache max=100;\n default_type application/json;\n\
             keepalive_requests 1000000000;\n server {{ listen unix:{listen}; root {root}; }}\n}}\n"
        );
        std::fs::write(&file, text)?;
        let child = start(&[program, "-c", &file.to_string_lossy()], &[])?;
        let address = Address::Socket(socket);
        Ok(Some(
            server("nginx", child, address, "/small", "/large").await?,
        ))
    }

    /// Starts AWS's agent, if its program was given.
    pub(crate) async fn peer(&self) -> Outcome<Option<Server>> {
        match &self.peer {
            Some(program) => Ok(Some(peer::start(self, program).await?)),
            None => Ok(None),
        }
    }
}

/// Runs a program on one processor, or any, with its stderr going into a file: `PROCESSOR FILE PROGRAM ARGUMENT…`.
pub(crate) fn launch(arguments: &[String]) -> Outcome<()> {
    let [processor, file, program, rest @ ..] = arguments else {
        return Err("PROCESSOR FILE PROGRAM ARGUMENT…".into());
    };
    match processor.parse() {
        Ok(processor) => process::pin(processor)?,
        Err(_) => process::unpin()?,
    }
    let stderr = std::fs::OpenOptions::new().write(true).open(file)?;
    Err(std::process::Command::new(program)
        .args(rest)
        .stderr(stderr)
        .exec()
        .into())
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) -> Outcome<()> {
    for _ in 0..5000 {
        if condition().await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err("a server did not come up".into())
}

/// Starts a server under test on its processor.
pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Outcome<Child> {
    let processor = SERVER.to_string();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args([LAUNCH, &processor, "/dev/null"])
        .args(arguments);
    Ok(command
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?)
}

/// A server that was started, once it listens.
pub(crate) async fn server(
    name: &'static str,
    child: Child,
    address: Address,
    small: &'static str,
    large: &'static str,
) -> Outcome<Server> {
    until(|| async { address.is_served() }).await?;
    let pid = child.id().ok_or("a server has ended")?;
    Ok(Server {
        name,
        pid,
        address,
        small,
        large,
        _child: Some(child),
    })
}

/// Reads a pipe to its end, as a container runtime does that keeps the logs.
fn drain(fifo: &Path) -> io::Result<()> {
    let mut pipe = std::fs::File::open(fifo)?;
    let mut page = vec![0; 64 * 1024];
    while pipe.read(&mut page)? > 0 {}
    Ok(())
}
