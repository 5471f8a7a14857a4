//! The answers of the health endpoints, to the letter: pure functions in kube-proxy's format (V22,
//! V23).

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::time::Instant;

use super::vitals::{Progress, Vitals};
use crate::model::ObjectName;

/// An HTTP response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 or 503.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: String,
}

/// One moment on both clocks: the monotonic one for delays, and the one for people.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock.
    pub wall: Timestamp,
}

impl Moment {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self {
            now: Instant::now(),
            wall: Timestamp::now(),
        }
    }

    /// Returns the wall clock's reading at `then`, unless it was set since.
    fn shown(self, then: Instant) -> Timestamp {
        let ago = SignedDuration::try_from(self.now.duration_since(then)).unwrap_or_default();
        self.wall.checked_sub(ago).unwrap_or(Timestamp::MIN)
    }
}

/// The health of a Service on this node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceHealth<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Answers a health check of a Service: 200 if it has a local endpoint and the proxy is healthy,
/// else 503 (V22).
pub fn service(
    name: &ObjectName,
    local_endpoints: usize,
    vitals: &Vitals,
    now: Instant,
    patience: Duration,
) -> Answer {
    let service_proxy_healthy = vitals.alive(now, patience);
    let service = Named {
        namespace: &name.namespace,
        name: &name.name,
    };
    let body = ServiceHealth {
        service,
        local_endpoints,
        service_proxy_healthy,
    };
    let mut answer = json(local_endpoints > 0 && service_proxy_healthy, &body);
    answer.headers.push((
        "X-Load-Balancing-Endpoint-Weight",
        local_endpoints.to_string(),
    ));
    answer
}

/// The health of the agent. The fields and their order are kube-proxy's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyHealth {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyHealth>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyHealth {
    last_updated: String,
    healthy: bool,
}

/// Answers `/healthz`: 200 if load balancers may use the node (V23).
pub fn healthz(vitals: &Vitals, at: Moment, patience: Duration) -> Answer {
    proxy(vitals, at, patience, Some(vitals.node.eligible()))
}

/// Answers `/livez`: 200 unless the kubelet is to restart the agent (V23).
pub fn livez(vitals: &Vitals, at: Moment, patience: Duration) -> Answer {
    proxy(vitals, at, patience, None)
}

/// Answers /readyz: 200 once the kernel holds everything that was listed at the start, so that a
/// rollout may go on to the next node. kube-proxy has no such path; its `/healthz` returns 200
/// while starting.
pub fn readyz(vitals: &Vitals) -> Answer {
    json(
        vitals.in_step,
        &Readiness {
            ready: vitals.in_step,
        },
    )
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
}

fn proxy(vitals: &Vitals, at: Moment, patience: Duration, node_eligible: Option<bool>) -> Answer {
    /// Go's text for the zero time.
    const NEVER: &str = "0001-01-01T00:00:00Z";
    let families = [("IPv4", vitals.v4), ("IPv6", vitals.v6)];
    let shown =
        |then: Option<Instant>| then.map_or(NEVER.to_owned(), |then| at.shown(then).to_string());
    let family = |progress: &Progress| FamilyHealth {
        last_updated: shown(progress.updated),
        healthy: progress.well(at.now, patience),
    };
    let healthy = vitals.alive(at.now, patience);
    let good = healthy && node_eligible.unwrap_or(true);
    // Tools take an old time for a stuck proxy: as long as all is well it is always new, as with
    // kube-proxy.
    let last = if good {
        Some(at.now)
    } else {
        families
            .iter()
            .filter_map(|(_, progress)| progress.updated)
            .max()
    };
    let body = ProxyHealth {
        last_updated: shown(last),
        current_time: at.wall.to_string(),
        node_eligible,
        healthy,
        status: families
            .iter()
            .filter(|(_, p)| p.updated.is_some())
            .map(|(name, p)| (*name, family(p)))
            .collect(),
    };
    json(good, &body)
}

fn json(good: bool, body: &impl Serialize) -> Answer {
    let headers = vec![
        ("Content-Type", "application/json".to_owned()),
        ("X-Content-Type-Options", "nosniff".to_owned()),
    ];
    let body =
        serde_json::to_string(body).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    Answer {
        status: if good { 200 } else { 503 },
        headers,
        body,
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response
            .body(Body::from(self.body))
            .unwrap_or_else(|error| {
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    [(header::CONTENT_TYPE, "text/plain")],
                    error.to_string(),
                )
                    .into_response()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{NodeVitals, TOO_LONG};

    fn at(start: Instant, seconds: u64) -> Moment {
        let wall = Timestamp::from_second(1_800_000_000).expect("a time")
            + SignedDuration::from_secs(seconds as i64);
        Moment {
            now: start + Duration::from_secs(seconds),
            wall,
        }
    }

    #[test]
    fn v22_the_answer_to_a_load_balancer_to_the_letter() {
        let answer = service(
            &ObjectName::new("shop", "web"),
            2,
            &Vitals::default(),
            Instant::now(),
            TOO_LONG,
        );
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.body,
            r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#
        );
        assert!(
            answer
                .headers
                .contains(&("X-Load-Balancing-Endpoint-Weight", "2".to_owned()))
        );
    }

    #[test]
    fn a_node_is_ready_when_the_kernel_has_had_all() {
        let starting = Vitals::starting(Instant::now());
        assert_eq!(readyz(&starting).status, 503);
        let ready = readyz(&Vitals {
            in_step: true,
            ..starting
        });
        assert_eq!(
            (ready.status, ready.body.as_str()),
            (200, r#"{"ready":true}"#)
        );
    }

    #[test]
    fn v22_a_stuck_proxy_is_503_although_there_are_endpoints() {
        let start = Instant::now();
        let mut vitals = Vitals::starting(start);
        vitals.queue(start);
        let late = start + Duration::from_secs(61);
        let answer = service(&ObjectName::new("shop", "web"), 2, &vitals, late, TOO_LONG);
        assert_eq!(answer.status, 503);
        assert!(
            answer
                .body
                .contains(r#""localEndpoints":2,"serviceProxyHealthy":false"#),
            "{}",
            answer.body
        );
    }

    #[test]
    fn v23_a_leaving_or_missing_node_is_503_for_healthz_only_and_says_so() {
        let start = Instant::now();
        for (node, status) in [
            (NodeVitals::Unknown, 200),
            (NodeVitals::Present, 200),
            (NodeVitals::Leaving, 503),
            (NodeVitals::Missing, 503),
        ] {
            let vitals = Vitals {
                node,
                ..Vitals::starting(start)
            };
            assert_eq!(
                healthz(&vitals, at(start, 5), TOO_LONG).status,
                status,
                "{node:?}"
            );
            assert_eq!(
                livez(&vitals, at(start, 5), TOO_LONG).status,
                200,
                "{node:?}"
            );
        }
        let leaving = Vitals {
            node: NodeVitals::Leaving,
            ..Vitals::starting(start)
        };
        assert_eq!(
            healthz(&leaving, at(start, 5), TOO_LONG).body,
            r#"{"lastUpdated":"2027-01-15T08:00:00Z","currentTime":"2027-01-15T08:00:05Z","nodeEligible":false,"healthy":true,"#
                .to_owned()
                + r#""status":{"IPv4":{"lastUpdated":"2027-01-15T08:00:00Z","healthy":true},"#
                + r#""IPv6":{"lastUpdated":"2027-01-15T08:00:00Z","healthy":true}}}"#
        );
    }
}
