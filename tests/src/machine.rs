//! A machine outside of any cluster: an agent that knows callers by their uids, and the fake AWS.

use crate::agent::{AgentSettings, free_address};
use crate::aws::{
    FakeAws, FakeAwsConfig, RoleSpec, SecretInput, machine_trust_policy, read_and_list_policy,
    secret_arn,
};
use crate::sandbox::REGION;
use crate::workload::{Workload, WorkloadSpec};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A user that no machine has.
pub const ALICE: u32 = 41_001;

/// Another.
pub const BOB: u32 = 41_002;

/// Who has no secrets.
pub const MALLORY: u32 = 41_003;

/// The role that the machine's own credentials belong to.
const OWN_ROLE: &str = "machine";

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// Its cloud.
    pub aws: FakeAws,
    directory: TempDir,
    own_role: String,
}

// === impl Machine ===

impl Machine {
    /// A machine with the credentials of a role, which may list all and read `machine/*`, and assume what trusts it.
    ///
    /// # Errors
    ///
    /// If this machine refuses a port or a directory.
    ///
    /// # Panics
    ///
    /// If the fake AWS does not accept the policies, which are its own.
    pub async fn start() -> io::Result<Self> {
        let aws = FakeAws::start(FakeAwsConfig::default()).await?;
        let directory = tempfile::Builder::new().prefix("latchkey-").tempdir()?;
        // Ordinary users have to be able to reach what is theirs.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let own_role = aws.role_arn(OWN_ROLE);
        let policy = read_and_list_policy(&[secret_arn("*", aws.account(), "machine/*")]);
        aws.create_role(RoleSpec::new(
            &own_role,
            machine_trust_policy(&own_role),
            policy,
        ))
        .expect("the policies are well formed");
        Ok(Self {
            aws,
            directory,
            own_role,
        })
    }

    /// Makes a role that the machine may assume, and that may list all and read `secrets`. Returns its ARN.
    ///
    /// # Panics
    ///
    /// If the fake AWS does not accept the policies, which are its own.
    pub fn role(&self, name: &str, secrets: &str) -> String {
        let arn = self.aws.role_arn(name);
        let resource = secret_arn("*", self.aws.account(), secrets);
        self.aws
            .create_role(RoleSpec::new(
                &arn,
                machine_trust_policy(&self.own_role),
                read_and_list_policy(&[resource]),
            ))
            .expect("the policies are well formed");
        arn
    }

    /// Puts a text secret into the region.
    pub fn secret(&self, name: &str, value: &str) {
        self.aws.put_secret(REGION, name, SecretInput::text(value));
    }

    /// Access key id, secret key and session token of the machine itself.
    #[must_use]
    pub fn credentials(&self) -> [String; 3] {
        self.aws
            .begin_session(&self.own_role, "i-0123456789abcdef0")
    }

    /// A directory of this machine's own, which everybody may enter.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A new directory that only `uid` may use.
    ///
    /// # Errors
    ///
    /// If it is there already, or this is not root.
    pub fn home(&self, name: &str, uid: u32) -> io::Result<PathBuf> {
        let home = self.directory.path().join(name);
        fs::create_dir(&home)?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        chown(&home, Some(uid), Some(uid))?;
        Ok(home)
    }

    /// The settings of an agent here, with the machine's credentials for AWS in its environment.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub fn settings(&self) -> io::Result<AgentSettings> {
        let [access_key, secret_key, token] = self.credentials();
        Ok(self
            .settings_without_cloud()?
            .set("default_backend", "aws")
            .set("backends.aws.region", REGION)
            .set("backends.aws.endpoint", self.aws.endpoint())
            .set("backends.aws.sts_endpoint", self.aws.endpoint())
            .env("AWS_ACCESS_KEY_ID", access_key)
            .env("AWS_SECRET_ACCESS_KEY", secret_key)
            .env("AWS_SESSION_TOKEN", token))
    }

    /// The settings of an agent here that knows no cloud.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "programs are looked up where the test's own are"
    )]
    pub fn settings_without_cloud(&self) -> io::Result<AgentSettings> {
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(AgentSettings::default()
            .set("identity.mode", "local")
            .set("listen.socket", self.socket().display())
            .set("listen.admin", free_address()?)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("PATH", path))
    }

    /// The settings of an agent that an ordinary user runs for themselves: its socket is in their `runtime` directory, as by
    /// default, and its secrets are the files in `folder`.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub fn settings_of_user(&self, runtime: &Path, folder: &Path) -> io::Result<AgentSettings> {
        let mut settings = self.settings_without_cloud()?;
        // The fixture has to know the socket all the same.
        settings.keys.remove("listen.socket");
        let settings = settings
            .env("XDG_RUNTIME_DIR", runtime.display())
            .set("default_backend", "file")
            .set("backends.file.path", folder.display());
        Ok(with_principal(settings, 0, "self", "me", "machine"))
    }

    /// The agent's socket, unless a test chooses another.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }

    /// An ordinary process of this machine.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub async fn process(&self, uid: u32) -> io::Result<Workload> {
        Workload::start(self.process_of(uid)).await
    }

    /// The specification of an ordinary process of this machine.
    #[must_use]
    pub fn process_of(&self, uid: u32) -> WorkloadSpec {
        WorkloadSpec {
            uid,
            gid: uid,
            ..WorkloadSpec::host(&self.socket())
        }
    }
}

/// The settings with one more principal.
#[must_use]
pub fn with_principal(
    settings: AgentSettings,
    number: usize,
    uid: impl fmt::Display,
    service_account: &str,
    role: &str,
) -> AgentSettings {
    let key = |name: &str| format!("local.workload.{number}.{name}");
    settings
        .set(&key("uid"), uid)
        .set(&key("namespace"), "dev")
        .set(&key("service_account"), service_account)
        .set(&key("role"), role)
}

/// The settings of an agent that runs as `uid`, an ordinary user.
#[must_use]
pub fn run_by(settings: AgentSettings, uid: u32) -> AgentSettings {
    settings.wrapped(&["sh", "-c", &becoming(uid)])
}

/// A shell script that becomes the program `$0` as `uid`: through a descriptor, because an ordinary user may not see the
/// path to the program.
#[must_use]
pub fn becoming(uid: u32) -> String {
    format!(
        "exec 3<\"$0\" && exec setpriv --reuid={uid} --regid={uid} --clear-groups --inh-caps=-all /proc/self/fd/3 \"$@\""
    )
}
