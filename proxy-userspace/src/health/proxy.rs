//! Serves `/healthz` and `/livez` (V23), and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio::sync::watch;

use super::answer::{Moment, healthz, livez, readyz};
use super::vitals::{TOO_LONG, Vitals};
use crate::http;
use crate::metrics::Metrics;

#[derive(Clone)]
struct Known {
    vitals: watch::Receiver<Vitals>,
    metrics: Arc<Metrics>,
}

/// Serves all three until the agent ends. Counts the answers that kube-proxy counts (V24).
///
/// # Errors
/// If `bind` cannot be listened on.
pub async fn serve_health(
    bind: SocketAddr,
    vitals: watch::Receiver<Vitals>,
    metrics: Arc<Metrics>,
) -> Result<()> {
    let ready = |State(known): State<Known>| async move { readyz(&known.vitals.borrow()) };
    let router = Router::new()
        .route(
            "/healthz",
            get(|State(known): State<Known>| async move {
                let answer = healthz(&known.vitals.borrow(), Moment::now(), TOO_LONG);
                known.metrics.healthz(answer.status);
                answer
            }),
        )
        .route(
            "/livez",
            get(|State(known): State<Known>| async move {
                let answer = livez(&known.vitals.borrow(), Moment::now(), TOO_LONG);
                known.metrics.livez(answer.status);
                answer
            }),
        )
        .route("/readyz", get(ready));
    let router = router.with_state(Known { vitals, metrics });
    http::serve(bind, router).await
}
