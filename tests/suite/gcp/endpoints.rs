//! The hosts of Google itself, by a proxy that speaks TLS with an authority of its own.

use super::{Google, SECRET};
use testkit::clouds::Cloud as _;
use testkit::egress::EgressProxy;
use testkit::sandbox::password;
use testkit::workload::Response;

/// The answer to a read, and whom the proxy was asked for meanwhile.
async fn read_by_proxy(no_proxy: &str) -> (Response, Vec<String>) {
    let google = Google::start().await;
    let cloud = google.gcp.cloud.endpoint();
    let cloud = cloud.trim_start_matches("http://").parse();
    let proxy = EgressProxy::inspecting(cloud.expect("an address")).await;
    let proxy = proxy.expect("a proxy");
    let ca = proxy.ca_file(google.sandbox.directory()).expect("a file");
    // Whoever goes past the proxy finds nobody, on every machine.
    let hosts = google.sandbox.directory().join("hosts");
    let none = "127.0.0.1 localhost\n127.0.0.9 sts.googleapis.com\n";
    std::fs::write(&hosts, none).expect("a file");
    let _agent = google
        .sandbox
        .agent_with(|settings| {
            let mut settings = google.gcp.settings(settings);
            for key in ["endpoint", "sts_endpoint", "iam_endpoint"] {
                settings.keys.remove(&format!("backends.gcp.{key}"));
            }
            settings
                .with_hosts(&hosts)
                .env("NO_PROXY", no_proxy)
                .env("HTTPS_PROXY", proxy.url())
                .env("SSL_CERT_FILE", ca.display())
        })
        .await
        .expect("an agent");
    let pod = google.pod().await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    (answer, proxy.asked())
}

#[tokio::test]
async fn google_is_asked_by_its_own_names_through_the_proxy() {
    needs_workloads!();
    let (answer, asked) = read_by_proxy("").await;
    assert_eq!(answer.status, 200, "{} {asked:?}", answer.text());
    assert_eq!(answer.json()["value"], password("test"));
    let hosts = [
        "sts.googleapis.com",
        "iamcredentials.googleapis.com",
        "secretmanager.googleapis.com",
    ];
    assert_eq!(asked, hosts.map(|host| format!("{host}:443")));
}

#[tokio::test]
async fn a_host_of_no_proxy_is_not_asked_through_it() {
    needs_workloads!();
    let (answer, asked) = read_by_proxy("sts.googleapis.com,127.0.0.1").await;
    answer.must_be_refused(503, "unavailable");
    assert_eq!(asked, [""; 0]);
}
