//! What is read is what was put there.

use super::{Backend, FOREIGN, OWN};
use crate::languages::search_path;
use serde_json::Value;
use testkit::page::Page;
use testkit::sandbox::{CANARY, password};
use testkit::workload::Command;

pub(super) async fn found(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let answer = node.ask(OWN).await;
    let body = answer.json();
    answer.must_be_ok();
    assert_eq!(
        (&body["name"], &body["value"], &body["backend"]),
        (&OWN.into(), &password("test").into(), &backend.name.into())
    );
    let version = body["version"].as_str().expect("a version");
    assert_eq!(answer.header("etag"), Some(&*format!("\"{version}\"")));
    assert!(body["encoding"].is_null());
    let line = node
        .agent
        .until_audit(|line| line["secret"] == OWN)
        .await
        .expect("a line");
    assert_eq!(
        (&line["backend"], &line["version"], &line["outcome"]),
        (&backend.name.into(), &version.into(), &"ok".into())
    );
    assert_eq!(line["pod_uid"], node.pod.object.uid());
    let identity = node
        .pod
        .get("/v1/identity")
        .await
        .expect("an answer")
        .json();
    assert_eq!(identity["roles"][backend.name], line["role"]);
}

pub(super) async fn missing(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    node.refused("test/nothing", 404, "not_found").await;
    node.refused("test/database", 404, "not_found").await;
}

pub(super) async fn binary(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let value: Vec<u8> = (0..=255).chain([0, 255, 0]).collect();
    node.cloud.put("test/binary", &value);
    assert_eq!(node.bytes("test/binary").await, value);
    let body = node.ask("test/binary").await.json();
    assert_eq!(body["encoding"], "base64");
    assert!(
        body["value"]
            .as_str()
            .is_some_and(|text| text.starts_with("AAECAwQFBgcICQ"))
    );
}

pub(super) async fn empty(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    node.cloud.put("test/empty", b"");
    let answer = node.ask("test/empty").await;
    assert_eq!(
        (answer.status, &answer.json()["value"]),
        (200, &"".into()),
        "{}",
        answer.text()
    );
    assert_eq!(node.bytes("test/empty").await, b"");
}

pub(super) async fn of_64_kib(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let value = "0123456789abcdef".repeat(4096);
    node.cloud.put("test/large", value.as_bytes());
    let answer = node.ask("test/large").await;
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], value);
}

pub(super) async fn non_utf_8(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    node.cloud.put("test/latin", b"caf\xe9");
    assert_eq!(node.bytes("test/latin").await, b"caf\xe9");
    let body = node.ask("test/latin").await.json();
    assert_eq!(
        (&body["encoding"], &body["value"]),
        (&"base64".into(), &"Y2Fm6Q==".into())
    );
}

pub(super) async fn unicode(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let value = "pässwörd \u{1f5dd} \"\\\n\u{0}\u{7f}\u{2028}";
    node.cloud.put("test/unicode", value.as_bytes());
    let body = node.ask("test/unicode").await.json();
    assert_eq!(
        (&body["value"], body.get("encoding")),
        (&value.into(), None)
    );
}

pub(super) async fn rotated(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    node.cloud.put("test/turning", b"first");
    let first = node.ask("test/turning").await.json();
    node.cloud.put("test/turning", b"second one");
    let second = node.ask("test/turning").await.json();
    assert_eq!(
        (&first["value"], &second["value"]),
        (&"first".into(), &"second one".into())
    );
    assert_ne!(first["version"], second["version"]);
}

pub(super) async fn version(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let first = node
        .cloud
        .put("test/turning", b"first")
        .expect("it has versions");
    let second = node
        .cloud
        .put("test/turning", b"second")
        .expect("it has versions");
    for (version, value) in [(&first, "first"), (&second, "second")] {
        let body = node
            .ask(&format!("test/turning?version={version}"))
            .await
            .json();
        assert_eq!(
            (&body["value"], &body["version"]),
            (&value.into(), &(**version).into())
        );
    }
    // Of the right form, and there is none such.
    let unknown: String = first
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { '9' } else { c })
        .collect();
    node.refused(&format!("test/turning?version={unknown}"), 404, "not_found")
        .await;
    for wrong in ["..", "1/../2", "x%3Fy", "%2Fetc"] {
        let answer = node.ask(&format!("test/turning?version={wrong}")).await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text());
    }
}

pub(super) async fn stage(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    node.cloud.put("test/turning", b"first");
    node.cloud.put("test/turning", b"second");
    match node.cloud.previous_stage() {
        Some(stage) => {
            let body = node
                .ask(&format!("test/turning?stage={stage}"))
                .await
                .json();
            assert_eq!(body["value"], "first");
            node.refused("test/turning?stage=NONE-SUCH", 404, "not_found")
                .await;
        }
        None => {
            node.refused("test/turning?stage=AWSPREVIOUS", 400, "invalid_request")
                .await;
        }
    }
}

pub(super) async fn listed(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    for name in ["test/a", "test/deep/er/b", "test/c-d"] {
        node.cloud.put(name, b"x");
    }
    let mut names = Vec::new();
    let mut path = "/v1/secrets?limit=2".to_owned();
    loop {
        let answer = node.pod.get(&path).await.expect("an answer");
        answer.must_be_ok();
        let body = answer.json();
        let page = body["secrets"].as_array().expect("names").clone();
        assert!(page.len() <= 2, "{page:?}");
        names.extend(
            page.iter()
                .filter_map(|name| Some(name.as_str()?.to_owned())),
        );
        let Some(next) = body["next"].as_str() else {
            break;
        };
        path = format!("/v1/secrets?limit=2&cursor={}", urlencoded(next));
    }
    for name in ["test/a", "test/deep/er/b", "test/c-d", OWN] {
        assert_eq!(
            names.iter().filter(|other| *other == name).count(),
            1,
            "{name} in {names:?}"
        );
    }
    // Whoever may see a name can ask for it by that name, and is answered by the backend.
    for name in &names {
        let status = node.ask(name).await.status;
        assert_eq!(status, if name == FOREIGN { 403 } else { 200 }, "{name}");
    }
}

/// The first thing that a reader tries, word for word but for the namespace.
pub(super) async fn by_the_readmes_lines(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let page = Page::read("README.md").expect("the page");
    let block = |heading: &str, language: &str| {
        let section = page.section(heading).expect("a section by that name");
        let mut blocks = section.blocks.iter();
        let block = blocks.find(|block| block.language == language);
        block.expect("lines to try").text.clone()
    };
    let application = async |namespace| {
        let pod = node.sandbox.application(namespace, "application").await;
        pod.expect("a pod").workload
    };
    let (prod, test) = (application("prod").await, application("test").await);
    let rest = "In an application";
    for (program, arguments, lines) in [
        ("sh", &["-c"][..], block("", "sh")),
        ("python3", &["-c"], block(rest, "python")),
        ("node", &["--input-type=module", "-e"], block(rest, "js")),
    ] {
        let arguments = [arguments, &[&*lines]].concat();
        let run = || {
            Command::new(program)
                .args(&arguments)
                .env("PATH", search_path())
        };
        let said = prod.run(run()).await.expect("it runs");
        assert!(
            said.stdout.contains(&password("prod")),
            "{program}: {said:?}"
        );
        if program == "sh" {
            let body: Value = serde_json::from_str(&said.stdout).expect("JSON");
            assert_eq!(body["backend"], backend.name);
        }
        let refused = test.run(run()).await.expect("it runs");
        assert!(
            !format!("{refused:?}").contains(CANARY),
            "{program}: {refused:?}"
        );
        // Each shows the agent's answer, which says why.
        assert!(
            format!("{refused:?}").contains("denied"),
            "{program}: {refused:?}"
        );
    }
}

fn urlencoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
