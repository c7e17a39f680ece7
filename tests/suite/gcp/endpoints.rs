//! The hosts of Google itself, by a proxy that speaks TLS with an authority of its own.

use super::{Google, SECRET};
use testkit::clouds::Cloud as _;
use testkit::egress::EgressProxy;
use testkit::sandbox::password;

#[tokio::test]
async fn google_is_asked_by_its_own_names_through_the_proxy() {
    needs_workloads!();
    let google = Google::start().await;
    let cloud = google.gcp.cloud.endpoint();
    let cloud = cloud.trim_start_matches("http://").parse();
    let proxy = EgressProxy::inspecting(cloud.expect("an address")).await;
    let proxy = proxy.expect("a proxy");
    let ca = proxy.ca_file(google.sandbox.directory()).expect("a file");
    let _agent = google
        .sandbox
        .agent_with(|settings| {
            let mut settings = google.gcp.settings(settings);
            for key in ["endpoint", "sts_endpoint", "iam_endpoint"] {
                settings.keys.remove(&format!("backends.gcp.{key}"));
            }
            settings
                .env("HTTPS_PROXY", proxy.url())
                .env("SSL_CERT_FILE", ca.display())
        })
        .await
        .expect("an agent");
    let pod = google.pod().await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(answer.status, 200, "{} {:?}", answer.text(), proxy.asked());
    assert_eq!(answer.json()["value"], password("test"));
    let hosts = [
        "sts.googleapis.com",
        "iamcredentials.googleapis.com",
        "secretmanager.googleapis.com",
    ];
    assert_eq!(proxy.asked(), hosts.map(|host| format!("{host}:443")));
}
