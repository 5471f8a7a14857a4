//! What the agent says about itself over HTTP: `/healthz`, `/livez` (V23) and `/metrics` (V24).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Exporter;

/// An update that waits longer than this means that the agent is stuck.
const TOO_LONG: Duration = Duration::from_secs(60);

/// What health is judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Since when an update has not reached the kernel.
    pub waiting_since: Option<Instant>,
    /// What is known of our Node.
    pub node: NodeVitals,
    /// Whether the kernel has got everything that was known at the start, programs and tables.
    pub in_step: bool,
}

/// Whether the node should be given traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeVitals {
    /// Nodes have not been listed yet, or the source has none.
    #[default]
    Unknown,
    /// It is there to stay.
    Present,
    /// It is being deleted, or the autoscaler has marked it so.
    Leaving,
    /// There are Nodes, but ours is none of them.
    Missing,
}

impl Vitals {
    /// V23, without the node part.
    pub fn alive(&self, now: Instant) -> bool {
        self.waiting_since.is_none_or(|since| now.duration_since(since) <= TOO_LONG)
    }

    /// V23.
    pub fn healthy(&self, now: Instant) -> bool {
        self.alive(now) && matches!(self.node, NodeVitals::Unknown | NodeVitals::Present)
    }
}

/// Serves `/healthz` and `/livez` until the agent ends.
pub async fn serve_health(bind: SocketAddr, vitals: watch::Receiver<Vitals>) -> Result<()> {
    let health = |State(vitals): State<watch::Receiver<Vitals>>| async move { answer(&vitals, Vitals::healthy) };
    let live = |State(vitals): State<watch::Receiver<Vitals>>| async move { answer(&vitals, Vitals::alive) };
    serve(bind, Router::new().route("/healthz", get(health)).route("/livez", get(live)).with_state(vitals)).await
}

fn answer(vitals: &watch::Receiver<Vitals>, well: fn(&Vitals, Instant) -> bool) -> Response {
    let (vitals, now) = (*vitals.borrow(), Instant::now());
    let status = if well(&vitals, now) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let waiting = vitals.waiting_since.map_or(0, |since| now.duration_since(since).as_secs());
    let body = json!({ "healthy": status == StatusCode::OK, "waitingSeconds": waiting, "node": format!("{:?}", vitals.node) });
    (status, [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], body.to_string())
        .into_response()
}

/// Serves `/metrics` until the agent ends.
pub async fn serve_metrics(bind: SocketAddr, exporter: Exporter) -> Result<()> {
    let metrics = |State(exporter): State<Exporter>| async move {
        const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        match exporter.text() {
            Ok(text) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
        }
    };
    serve(bind, Router::new().route("/metrics", get(metrics)).with_state(exporter)).await
}

async fn serve(bind: SocketAddr, router: Router) -> Result<()> {
    let listener = TcpListener::bind(bind).await.with_context(|| format!("listen on {bind}"))?;
    axum::serve(listener, router).await.with_context(|| format!("serve on {bind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v23_an_update_that_waits_for_a_minute_is_unhealthy_and_a_leaving_node_only_for_healthz() {
        let now = Instant::now() + Duration::from_secs(100);
        let waiting = |seconds| Vitals { waiting_since: Some(now - Duration::from_secs(seconds)), ..Vitals::default() };
        assert!(Vitals::default().healthy(now), "healthy while starting");
        assert!(waiting(60).healthy(now) && waiting(60).alive(now));
        assert!(!waiting(61).healthy(now) && !waiting(61).alive(now));
        for node in [NodeVitals::Leaving, NodeVitals::Missing] {
            let vitals = Vitals { node, ..Vitals::default() };
            assert!(!vitals.healthy(now) && vitals.alive(now));
        }
    }
}
