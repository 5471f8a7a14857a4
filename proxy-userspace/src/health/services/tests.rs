//! Real listeners in a network namespace: they follow the Services; an address that is taken is
//! reported and tried until it is free.

use std::net::IpAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::testing::Namespace;

const SOON: Duration = Duration::from_secs(10);

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn check(port: u16, addresses: &[&str], endpoints: &[&str]) -> HealthCheck {
    let all = |texts: &[&str]| {
        texts
            .iter()
            .map(|t| t.parse::<IpAddr>().expect("an address"))
            .collect()
    };
    HealthCheck {
        port,
        addresses: all(addresses),
        local_endpoints: all(endpoints),
    }
}

/// Returns the whole answer; empty if nothing listens.
async fn get(at: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(at).await else {
        return String::new();
    };
    let request = "GET /any/path?at=all HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text))
        .await
        .expect("in time")
        .expect("answered");
    text
}

async fn until(what: &str, at: &str, wanted: impl Fn(&str) -> bool) {
    let waiting = async {
        loop {
            let answer = get(at).await;
            if wanted(&answer) {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// The servers, and the sender that sets what they serve.
struct Servers {
    checks: watch::Sender<Checks>,
    vitals: watch::Sender<Vitals>,
    warnings: mpsc::Receiver<Warning>,
    task: JoinHandle<Result<()>>,
}

impl Servers {
    fn start() -> Self {
        let (checks, receiver) = watch::channel(Checks::new());
        let (vitals, their_vitals) = watch::channel(Vitals::starting(Instant::now()));
        let (sender, warnings) = mpsc::channel(16);
        let task = tokio::spawn(serve_services(receiver, their_vitals, Events::to(sender)));
        Self {
            checks,
            vitals,
            warnings,
            task,
        }
    }

    fn serve(&self, checks: impl IntoIterator<Item = (ObjectName, HealthCheck)>) {
        self.checks.send_replace(checks.into_iter().collect());
    }
}

#[test]
fn v22_listeners_follow_the_services_on_each_address_of_either_family() {
    let host = Namespace::new();
    host.ip("addr add 192.0.2.1/32 dev lo");
    host.ip("addr add 2001:db8::1/128 dev lo nodad");
    host.block_on(async {
        let servers = Servers::start();
        let both = ["192.0.2.1", "2001:db8::1"];
        servers.serve([(
            web(),
            check(31234, &both, &["10.244.1.2", "10.244.1.3", "fd00:244:1::2"]),
        )]);
        until("IPv4 is served", "192.0.2.1:31234", |a| {
            a.starts_with("HTTP/1.1 200 ")
        })
        .await;
        until("IPv6 is served", "[2001:db8::1]:31234", |a| {
            a.ends_with("\"localEndpoints\":1,\"serviceProxyHealthy\":true}")
        })
        .await;
        let answer = get("192.0.2.1:31234").await.to_lowercase();
        for header in [
            "content-type: application/json\r\n",
            "x-content-type-options: nosniff\r\n",
            "x-load-balancing-endpoint-weight: 2\r\n",
        ] {
            assert!(answer.contains(header), "{header} in {answer}");
        }
        assert_eq!(
            get("127.0.0.1:31234").await,
            "",
            "only the nodePort addresses"
        );

        servers.serve([(web(), check(31234, &both, &[]))]);
        assert!(
            get("192.0.2.1:31234").await.starts_with("HTTP/1.1 503 "),
            "a changed count is seen at once"
        );

        servers.serve([(
            ObjectName::new("shop", "other"),
            check(31234, &both[..1], &["10.244.1.2"]),
        )]);
        assert!(
            get("192.0.2.1:31234")
                .await
                .contains(r#""name":"other"},"localEndpoints":1"#),
            "another Service has the port"
        );
        until(
            "an address that left is closed",
            "[2001:db8::1]:31234",
            str::is_empty,
        )
        .await;

        let long_ago = Instant::now()
            .checked_sub(TOO_LONG * 2)
            .expect("a time after the boot");
        servers
            .vitals
            .send_modify(|vitals| vitals.v4.waiting_since = Some(long_ago));
        assert!(
            get("192.0.2.1:31234").await.starts_with("HTTP/1.1 503 "),
            "a stuck agent"
        );

        servers.serve([]);
        until(
            "a Service that has gone is not served",
            "192.0.2.1:31234",
            str::is_empty,
        )
        .await;
        servers.serve([(web(), check(31234, &both, &[]))]);
        until("nor is its port kept", "192.0.2.1:31234", |a| {
            a.starts_with("HTTP/1.1 503 ")
        })
        .await;
        servers.task.abort();
        let mut warnings = servers.warnings;
        assert!(warnings.try_recv().is_err(), "nothing was wrong");
    });
}

#[test]
fn v22_an_address_that_is_taken_is_told_once_and_served_when_it_is_free() {
    let host = Namespace::new();
    host.ip("addr add 192.0.2.1/32 dev lo");
    host.block_on(async {
        let mut servers = Servers::start();
        let taker = std::net::TcpListener::bind("0.0.0.0:31234").expect("a listener");
        servers.serve([(web(), check(31234, &["192.0.2.1"], &["10.244.1.2"]))]);
        let warning = timeout(SOON, servers.warnings.recv())
            .await
            .expect("in time")
            .expect("a warning");
        assert_eq!(
            (&warning.object.name, warning.reason),
            (&web(), "FailedToStartServiceHealthcheck")
        );
        assert!(
            warning.note.contains("192.0.2.1:31234")
                && warning.note.contains("Address already in use"),
            "{}",
            warning.note
        );
        sleep(LISTEN_AGAIN * 2).await;
        assert!(servers.warnings.try_recv().is_err(), "once");

        drop(taker);
        until("it is free", "192.0.2.1:31234", |a| {
            a.starts_with("HTTP/1.1 200 ")
        })
        .await;
        servers.task.abort();
    });
}
