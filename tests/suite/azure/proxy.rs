//! Out of the cluster by a proxy alone.

use super::{Node, SECRET};
use std::net::{Ipv4Addr, SocketAddr};
use testkit::agent::AgentSettings;
use testkit::azure::LOGIN_HOST;
use testkit::clouds::azure::VAULT;
use testkit::egress::EgressProxy;
use testkit::sandbox::password;

#[tokio::test]
async fn entra_id_and_the_vault_are_asked_by_their_own_names_through_the_proxy_or_past_it() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let vault = node.azure.vault_url(VAULT);
    let (host, port) = vault
        .trim_start_matches("https://")
        .rsplit_once(':')
        .expect("a port");
    let cloud = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().expect("a number")));
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let mut hosts = [LOGIN_HOST, host];
    hosts.sort();
    let by_proxy = hosts.map(|host| format!("{host}:{port}")).to_vec();
    for (no_proxy, expected) in [(String::new(), by_proxy), (hosts.join(","), Vec::new())] {
        let proxy = EgressProxy::blind(cloud).await.expect("a proxy");
        let change = |settings: AgentSettings| {
            settings
                .env("HTTPS_PROXY", proxy.url())
                .env("NO_PROXY", &no_proxy)
        };
        let _agent = node.agent_with(change).await;
        let answer = pod.secret(SECRET).await.expect("an answer");
        let mut asked = proxy.asked();
        assert_eq!(answer.status, 200, "{} {asked:?}", answer.text());
        assert_eq!(answer.json()["value"], password("test"));
        asked.sort();
        assert_eq!(asked, expected);
    }
}
