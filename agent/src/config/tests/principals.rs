//! Principals outside of a cluster.

use super::*;

const LOCAL: &str =
    "identity.mode = \"local\"\nlisten.socket = \"/run/user/1/latchkey/agent.sock\"\n";

fn workload(uid: &str, service_account: &str, role: &str) -> String {
    format!(
        "[[local.workload]]\nuid = {uid}\nnamespace = \"dev\"\nservice_account = \"{service_account}\"\n\
         role = \"{role}\"\n"
    )
}

#[test]
fn each_workload_is_a_uid_with_a_principal_and_a_role() {
    let arn = "arn:aws:iam::111122223333:role/app";
    let text = [
        LOCAL.to_owned(),
        workload("1000", "me", "machine"),
        workload("1001", "ci", arn),
    ];
    let config = with_file(&text.concat()).config();
    assert_eq!(config.identity.mode, IdentityMode::Local);
    let [me, ci] = config.local.as_slice() else {
        panic!("{:?}", config.local);
    };
    assert_eq!((me.uid, &me.role), (1000, &LocalRole::Machine));
    assert_eq!((&*me.namespace, &*me.service_account), ("dev", "me"));
    assert_eq!((ci.uid, &ci.role), (1001, &LocalRole::Named(arn.into())));
}

#[test]
fn one_section_in_the_place_of_a_list_is_said_to_be_that_alone() {
    let text = LOCAL.to_owned() + &workload("1000", "me", "machine");
    let text = text.replace("[[local.workload]]", "[local.workload]");
    assert_eq!(
        with_file(&text).faults(),
        [
            "config.toml:3:8: local.workload is one section, not a list of them; write it with two brackets: \
             [[local.workload]]"
        ]
    );
}

#[test]
fn self_is_the_agents_own_uid() {
    let text = LOCAL.to_owned() + &workload("\"self\"", "me", "machine");
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!(with_file(&text).config().local[0].uid, own);
}

#[test]
fn the_environment_and_flags_can_set_a_workload_by_its_number() {
    let text = LOCAL.to_owned() + &workload("1000", "me", "machine");
    let start = with_file(&text).and_flag("local.workload.0.uid", "1001");
    assert_eq!(start.config().local[0].uid, 1001);
    let start = start.and_env("LATCHKEY_AGENT__LOCAL__WORKLOAD__0__NAMESPACE", "ci");
    assert_eq!(start.config().local[0].namespace, "ci");
}

#[test]
fn a_workload_may_be_nothing_in_any_cloud() {
    let text = LOCAL.to_owned() + &workload("1000", "me", "none");
    assert_eq!(with_file(&text).config().local[0].role, LocalRole::None);
}

#[test]
fn the_socket_is_where_the_users_runtime_directory_is_unless_it_is_written() {
    let text = "identity.mode = \"local\"\n".to_owned() + &workload("1000", "me", "machine");
    let start = with_file(&text).and_env("XDG_RUNTIME_DIR", "/run/user/1000");
    let socket = start.config().listen.socket;
    assert_eq!(socket, Path::new("/run/user/1000/latchkey/agent.sock"));
    assert_eq!(with_file(&text).faults().len(), 1);
    assert!(with_file(&text).faults()[0].contains("XDG_RUNTIME_DIR is not set"));
    let long = format!("/run/{}", "x".repeat(90));
    for (wrong, why) in [
        ("run/user/1", "no absolute path"),
        (&*long, "longer than 99 bytes"),
    ] {
        let start = with_file(&text).and_env("XDG_RUNTIME_DIR", wrong);
        let faults = start.faults();
        assert!(
            faults[0].starts_with("environment variable XDG_RUNTIME_DIR: the socket's path"),
            "{faults:?}"
        );
        assert!(faults[0].contains(why), "{faults:?}");
        let written = start.and_flag("listen.socket", "/run/a/agent.sock");
        assert_eq!(
            written.config().listen.socket,
            Path::new("/run/a/agent.sock")
        );
    }
}

#[test]
fn everything_wrong_with_a_workload_is_named_where_it_is_written() {
    let text = LOCAL.to_owned()
        + "[[local.workload]]\nuid = \"root\"\nrole = \"admin\"\n"
        + "[[local.workload]]\nuid = 65534\nnamespace = \"Dev\"\nservice_acount = \"x\"\n";
    assert_eq!(
        with_file(&text).faults(),
        [
            "config.toml:3:1: local.workload.0.namespace is missing; write what it counts as, such as \"dev\"",
            "config.toml:3:1: local.workload.0.service_account is missing; write what it counts as, such as \"me\"",
            "config.toml:4:1: local.workload.0.uid is \"root\", no uid; write a uid as \"id -u\" shows it, or \
             \"self\" for the agent's own",
            "config.toml:5:1: local.workload.0.role is \"admin\", no role; write \"machine\", \"none\", the ARN of \
             an AWS role, the e-mail address of a GCP service account, or the client id of an Azure managed identity",
            "config.toml:6:1: local.workload.1.service_account is missing; write what it counts as, such as \"me\"",
            "config.toml:6:1: local.workload.1.role is missing; write \"machine\" for the machine's own \
             credentials, a role that these may take on, or \"none\"",
            "config.toml:7:1: local.workload.1.uid is 65534, which stands for every user unknown here; give the \
             processes a user of their own",
            "config.toml:8:1: local.workload.1.namespace is \"Dev\", no name that Kubernetes would take; write a \
             name of a-z, 0-9 and '-', such as \"dev\"",
            "config.toml:9:1: local.workload.1.service_acount is an unknown key; did you mean \
             local.workload.1.service_account?",
        ]
    );
}

#[test]
fn what_is_wrong_with_a_workload_is_told_of_its_own_section_whatever_is_wrong_with_others() {
    let all: Vec<String> = (0..11)
        .map(|number| match number {
            // They have other faults, and are left out.
            0 | 1 => workload("1000", "me", "machine").replace("uid", "gid"),
            9 => workload("1009", "nine", "arn:aws:iam::111122223333:role/app"),
            10 => workload("1002", "ten", "machine"),
            _ => workload(
                &format!("{}", 1000 + number),
                &format!("n{number}"),
                "machine",
            ),
        })
        .collect();
    let text = format!(
        "default_backend = \"file\"\n{LOCAL}{}[backends.file]\npath = \"/srv\"\n",
        all.concat()
    );
    let faults = with_file(&text).faults();
    for (line, fault) in [
        (4, "local.workload.0.uid is missing"),
        (53, "local.workload.9.role is of AWS"),
        (55, "local.workload.10.uid repeats the uid"),
    ] {
        let told = |other: &String| other.starts_with(&format!("config.toml:{line}:1: {fault}"));
        assert!(faults.iter().any(told), "{fault} in {faults:#?}");
    }
}

#[test]
fn a_uid_has_one_principal_and_a_principal_one_uid() {
    let first = LOCAL.to_owned() + &workload("1000", "me", "machine");
    let twice = first.clone() + &workload("1000", "other", "machine");
    assert!(with_file(&twice).faults()[0].contains("local.workload.1.uid repeats the uid"));
    let shared = first + &workload("1001", "me", "machine");
    assert!(with_file(&shared).faults()[0].contains("repeats the principal"));
}

#[test]
fn a_role_of_a_cloud_that_no_backend_is_of_is_named() {
    let role = "arn:aws:iam::111122223333:role/app";
    let text = format!(
        "default_backend = \"file\"\n{LOCAL}{}[backends.file]\npath = \"/srv\"\n",
        workload("1000", "me", role)
    );
    let faults = with_file(&text).faults();
    assert!(
        faults[0].contains("local.workload.0.role is of AWS, and no backend is of type \"aws\""),
        "{faults:?}"
    );
}

#[test]
fn each_cloud_has_its_own_kind_of_role_and_needs_no_provider_of_identities() {
    let client = "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab";
    for (role, kind, backend) in [
        (
            "a@b.iam.gserviceaccount.com",
            "GCP",
            "[backends.gcp]\nproject = \"acme-dev\"\n",
        ),
        (
            client,
            "AZURE",
            "[backends.azure]\nvault_url = \"v1.vault.azure.net\"\n",
        ),
    ] {
        let text = format!("{LOCAL}{}", workload("1000", "me", role));
        let config = with_file(&(text.clone() + backend)).config();
        assert_eq!(config.local[0].role, LocalRole::Named(role.into()));
        // The only backend is the default one.
        assert_eq!(config.default_backend, kind.to_lowercase());
        let faults = with_file(&text).faults();
        assert!(
            faults[0].contains(&format!("role is of {kind}")),
            "{faults:?}"
        );
    }
}

#[test]
fn local_mode_without_anybody_and_anybody_without_local_mode_are_wrong() {
    assert!(with_file(LOCAL).faults()[0].contains("local.workload is missing"));
    let faults = with_file(&workload("1000", "me", "machine")).faults();
    assert_eq!(
        faults,
        [
            "config.toml:1:1: local.workload.0 is written, and identity.mode is not \"local\"; set identity.mode = \
             \"local\", or leave it out"
        ]
    );
}

#[test]
fn delivery_by_csi_needs_a_kubelet() {
    let text = format!(
        "csi.enabled = true\n{LOCAL}{}",
        workload("1000", "me", "machine")
    );
    assert_eq!(
        with_file(&text).faults(),
        [
            "config.toml:1:5: csi.enabled contradicts identity.mode: it is for the mode \"kubernetes\" alone: nowhere \
             else does a kubelet mount volumes; change csi.enabled or identity.mode"
        ]
    );
    let disabled = text.replacen("true", "false", 1);
    assert!(!with_file(&disabled).config().csi.enabled);
    let sidecar = with_file("identity.mode = \"sidecar\"")
        .and_env("POD_NAMESPACE", "test")
        .and_env("POD_NAME", "web-0")
        .and_env("POD_SERVICE_ACCOUNT", "app")
        .and_env("LATCHKEY_AGENT__CSI__ENABLED", "true");
    let faults = sidecar.faults();
    let named =
        "environment variable LATCHKEY_AGENT__CSI__ENABLED: csi.enabled contradicts identity.mode";
    assert!(
        faults.len() == 1 && faults[0].starts_with(named),
        "{faults:?}"
    );
}

#[test]
fn a_sidecar_is_told_by_the_downward_api_and_the_clouds_webhooks() {
    let start = with_file("identity.mode = \"sidecar\"")
        .and_env("POD_NAMESPACE", "test")
        .and_env("POD_NAME", "web-0")
        .and_env("POD_SERVICE_ACCOUNT", "app")
        .and_env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/app")
        .and_env("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
        .and_env("AZURE_CLIENT_ID", "0b1a7c0e-6a5d-4c3e-9a43-0123456789ab");
    let sidecar = start.config().sidecar;
    assert_eq!((&*sidecar.namespace, &*sidecar.pod), ("test", "web-0"));
    assert_eq!(sidecar.aws_role_arn, "arn:aws:iam::111122223333:role/app");
    assert_eq!(sidecar.tokens, [PathBuf::from("/var/run/token")]);
    let faults = with_file("identity.mode = \"sidecar\"").faults();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[0].contains("sidecar.namespace is empty and POD_NAMESPACE is not set"));
}

#[test]
fn what_a_sidecars_variables_say_is_checked_like_its_keys() {
    let start = with_file("identity.mode = \"sidecar\"\nsidecar.gcp_service_account = \"a@b\"")
        .and_env("POD_NAMESPACE", "test")
        .and_env("POD_NAME", "web-0")
        .and_env("POD_SERVICE_ACCOUNT", "app")
        .and_env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:policy/app")
        .and_env("AWS_WEB_IDENTITY_TOKEN_FILE", "token")
        .and_env("AZURE_CLIENT_ID", "app")
        .and_env("AZURE_TENANT_ID", "common")
        .and_env("AZURE_FEDERATED_TOKEN_FILE", "token");
    let mut faults = start.faults();
    faults.sort();
    let beginnings = [
        "config.toml:2:9: sidecar.gcp_service_account is \"a@b\", no email address of a GCP service account; ",
        "environment variable AWS_ROLE_ARN: sidecar.aws_role_arn is \"arn:aws:iam::111122223333:policy/app\", no \
         ARN of an IAM role; ",
        "environment variable AWS_WEB_IDENTITY_TOKEN_FILE: is \"token\", no absolute path; ",
        "environment variable AZURE_CLIENT_ID: sidecar.azure_client_id is \"app\", no client id; ",
        "environment variable AZURE_FEDERATED_TOKEN_FILE: is \"token\", no absolute path; ",
        "environment variable AZURE_TENANT_ID: sidecar.azure_tenant_id is \"common\", no tenant; ",
    ];
    assert_eq!(faults.len(), beginnings.len(), "{faults:#?}");
    for (fault, beginning) in faults.iter().zip(beginnings) {
        assert!(fault.starts_with(beginning), "{fault}");
    }
}

#[test]
fn a_workloads_role_has_the_form_of_its_cloud() {
    for wrong in [
        "arn:aws:iam::1111:role/app",
        "arn:aws:s3:::bucket",
        "app@evil/.iam.gserviceaccount.com",
        "5d2e1f437c5e4f5b9d7b0123456789ab",
    ] {
        let text = LOCAL.to_owned() + &workload("1000", "me", wrong);
        let faults = with_file(&text).faults();
        let told = format!("config.toml:7:1: local.workload.0.role is {wrong:?}, no role; ");
        assert!(
            faults.len() == 1 && faults[0].starts_with(&told),
            "{faults:?}"
        );
    }
}

#[test]
fn on_a_node_the_agents_own_cloud_variables_mean_nothing() {
    let start = with_file("")
        .and_env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/agent")
        .and_env("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token");
    assert_eq!(start.config(), with_file("").config());
}
