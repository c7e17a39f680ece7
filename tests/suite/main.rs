//! Black-box tests: real processes, real sockets, strict fakes.
#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    use testkit::sandbox::*;
    use testkit::kube::*;
    let s = Sandbox::start().await.expect("s");
    s.namespace("test"); s.namespace("prod");
    let cid = "ab".repeat(32);
    let pod = s.kube.create_pod(PodSpec { namespace: "test".into(), service_account: "app".into(), containers: vec![Container::running("app", &cid)], ..PodSpec::default() });
    let agent = s.agent_with(|a| a.env("RUST_LOG","debug")).await.expect("agent");
    let dir = format!("/sys/fs/cgroup/unified{}/kubepods/besteffort/pod{}/{}", s.cgroup(), pod.uid(), cid);
    std::fs::create_dir_all(&dir).expect("dir");
    for t in ["/v1/secrets/test/database-password", "/v1/secrets/prod/database-password", "/v1/identity", "/health", "/v1/secrets", "/v1/secrets/test/database-password?key=x", "/secretsmanager/get?secretId=test/database-password","/v1/secrets/a/../b"] {
    let out = std::process::Command::new("sh").arg("-c").arg(format!("echo $$ > {dir}/cgroup.procs; exec curl -sSi --path-as-is -m 8 --unix-socket {} 'http://x{t}'", agent.socket().display())).output().expect("sh");
    println!("--- {t}\n{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    }
    let out = std::process::Command::new("sh").arg("-c").arg(format!("exec curl -sSi -m 8 --unix-socket {} http://x/v1/secrets/test/database-password", agent.socket().display())).output().expect("sh");
    println!("host: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{}", agent.stderr().join("\n"));
}
